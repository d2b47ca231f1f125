// Asks somebody how it goes, every so many hours. Grants: send.
import type { Automation } from "./nexus";

const HOUR_MS = 3_600_000;

export const automation: Automation = {
  name: "check-in",
  description: "Asks how it goes, once a day",
  triggers: { event: { channels: ["timer"], types: ["system/heartbeat"] } },
  config: { every_hours: 24, adapter: "fake", account: "me", to: "ann", text: "How is it going?" },
  state: { asked_at: 0 },

  async handler({ request, config, state, nexus }) {
    // The time of the event, and not that of the call: of a request that is repeated it is the same.
    const now = request.event.timestamp;
    if (now - state.asked_at < config.every_hours * HOUR_MS) return;
    const { adapter, account, to, text } = config;
    await nexus.send({ adapter, account, to, text });
    return { state: { asked_at: now } };
  },
};
