// Answers the first message of each sender within a day by itself, and leaves the others to the agent. Needs no grant.
import type { Automation } from "./nexus";

const DAY_MS = 86_400_000;
// A state may have 64 KiB, and a character up to three bytes.
const STATE_CHARS_MAX = 20_000;

export const automation: Automation = {
  name: "follow-up",
  description: "Says once a day that a message has arrived",
  triggers: { event: { types: ["text"] } },
  config: { text: "Thank you, we have your message and will come back to you." },
  // When each sender was answered; the oldest are forgotten.
  state: { answered: [] },

  handler({ request, config, state }) {
    const { channel, sender_id, timestamp } = request.event;
    const sender = `${channel}:${sender_id}`;
    const recent = state.answered.filter((one: { at: number }) => timestamp - one.at < DAY_MS);
    if (recent.some((one: { sender: string }) => one.sender === sender)) return;
    const answered = [...recent, { sender, at: timestamp }];
    while (JSON.stringify(answered).length > STATE_CHARS_MAX) answered.shift();
    return { reply: config.text, state: { answered } };
  },
};
