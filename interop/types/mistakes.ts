// What the types have to refuse: a line behind `@ts-expect-error` that is no mistake any more is an error itself.
import type { Automation, Plugin } from "./nexus";

export const plugin: Plugin = {
  name: "mistakes",
  // @ts-expect-error: there is no such section
  sections: ["events"],

  // @ts-expect-error: there is no such answer
  afterReceiveEvent() {
    return "stop";
  },

  async afterRunAgent(req, nexus) {
    // @ts-expect-error: it may be missing
    req.event.attachments.length;
    // @ts-expect-error: nobody knows yet who speaks
    req.principal.name;
    // @ts-expect-error: a call has a name
    req.response?.tool_calls[0].tool;
    const { text, usage, model, stop_reason } = await nexus.llm({ agent: "small", prompt: "Well?", max_tokens: 5 });
    const tokens: number | null | undefined = usage.input_tokens;
    const of: string = `${model} ${stop_reason} ${text} ${tokens}`;
    // @ts-expect-error: there is no such end
    if (stop_reason === "done") return;
    // @ts-expect-error: it has no text
    await nexus.send({ to: of });
    const { delivery_id } = await nexus.send({ text: of, n: 1, key: "a" });
    const sent: string = delivery_id;
    const { hits } = await nexus.search({ query: sent, limit: 3 });
    // @ts-expect-error: it is a number
    const score: string = hits[0].score;
    const { rows } = await nexus.ledger.query("SELECT ?1", [1, "a", true, null], "nexus");
    // @ts-expect-error: it may be a text, or nothing
    const first: number = rows[0][0];
    // @ts-expect-error: there is no such ledger
    await nexus.ledger.query("SELECT 1", [], "cortex");
    const { encoding, headers } = await nexus.fetch("https://a.example/", { headers: { accept: "text/plain" } });
    // @ts-expect-error: there is no such encoding
    if (encoding === "base64") console.log(headers["date"], score, first);
    // @ts-expect-error: there is no such thing in a script
    setTimeout(() => {}, 1);
  },
};

export const automation: Automation = {
  name: "mistakes",
  // @ts-expect-error: there is no such principal
  triggers: { principal: { type: "boss" } },
  // @ts-expect-error: there is no such advice
  handler: () => ({ answer: "yes" }),
};
