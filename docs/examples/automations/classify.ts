// Has a small model say what a message is about: what is urgent goes to another agent, spam to none, and any
// other agent is told. Grants: llm.
import type { Automation } from "./nexus";

const KINDS = ["urgent", "spam", "question", "other"];
const PROMPT_CHARS = 4000;

export const automation: Automation = {
  name: "classify",
  description: "Sorts messages by what a model says they are about",
  triggers: { event: { types: ["text"] } },
  config: { model: "small", urgent: "helper" },

  async handler({ request, config, nexus }) {
    const { text } = await nexus.llm({
      agent: config.model,
      system: `Answer with one word, which is one of: ${KINDS.join(", ")}.`,
      prompt: request.event.content.slice(0, PROMPT_CHARS),
      max_tokens: 5,
    });
    const said = text.toLowerCase();
    const kind = KINDS.find((word) => said.includes(word)) ?? "other";
    if (kind === "spam") return { handled: true };
    if (kind === "urgent") return { fire: true, agent: config.urgent, context: "This is urgent." };
    return { enrich: `A model takes this for: ${kind}.` };
  },
};
