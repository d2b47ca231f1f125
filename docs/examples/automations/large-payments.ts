// Lets only payments of some size through to an agent, and tells it what they are. Needs no grant.
import type { Automation } from "./nexus";

export const automation: Automation = {
  name: "large-payments",
  description: "Keeps small payments away from agents",
  triggers: { principal: { type: "webhook" }, event: { channels: ["webhook"] } },
  config: { least: 1000 },

  handler({ request, config }) {
    const { amount, currency } = JSON.parse(request.event.content);
    if (typeof amount !== "number") throw new Error("the payment has no amount");
    if (amount < config.least) return { handled: true };
    return { enrich: `A payment of ${amount} ${currency}, which is large.` };
  },
};
