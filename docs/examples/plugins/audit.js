// Names every request that went wrong in the daemon's log, in plain JavaScript.

/** @type {import("./nexus").Plugin} */
export const plugin = {
  name: "audit",

  onError(req, error) {
    console.error(`${req.request_id} from ${req.event.sender_id} failed in ${error.stage}: ${error.message}`);
  },
};
