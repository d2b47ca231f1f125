// Looks at each heartbeat whether messages could not be delivered, and has an agent look into it, once: until it is
// enabled again. Grants: ledger.query.
import type { Automation } from "./nexus";

export const automation: Automation = {
  name: "undelivered",
  description: "Has an agent look into messages that could not be delivered",
  triggers: { event: { channels: ["timer"], types: ["system/heartbeat"] } },
  config: { agent: "helper", failed: 1 },

  async handler({ config, nexus }) {
    const { rows } = await nexus.ledger.query("SELECT count(*) FROM deliveries WHERE status = 'failed'", [], "nexus");
    const failed = Number(rows[0][0]);
    if (failed < config.failed) return;
    return {
      fire: true,
      agent: config.agent,
      context: `${failed} messages could not be delivered. Find out why, and say what to do.`,
      disable: true,
    };
  },
};
