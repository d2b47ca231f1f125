// Lets only payments of some size through to an agent, and tells it what they are. Needs no grant.
import type { Automation } from "./nexus";

export const automation: Automation = {
  name: "large-payments",
  description: "Keeps small payments away from agents",
  triggers: { principal: { type: "webhook" }, event: { channels: ["webhook"] } },
  config: { least: 1000 },

  handler({ request, config }) {
    let amount: unknown;
    let currency: unknown;
    try {
      ({ amount, currency } = JSON.parse(request.event.content));
    } catch {
      // It has no amount. To throw would let it through: an event goes on without an automation that fails.
    }
    if (typeof amount !== "number") {
      console.warn(`${request.event.event_id} is no payment that can be read; it goes to no agent`);
      return { handled: true };
    }
    if (amount < config.least) return { handled: true };
    return { enrich: `A payment of ${amount} ${currency}, which is large.` };
  },
};
