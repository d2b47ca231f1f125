#!/usr/bin/env python3
"""nexus.py --bench DIR [--nexus PATH] [--torture] [ARGUMENTS of bench.py or torture.py]

Puts the daemon beside the supervisors of a public benchmark. DIR holds its bench.py and torture.py;
this file adds two tools to their table and calls them:

  nexus      one adapter with N accounts, each with a monitor of its own
  ref-shell  the benchmark's reference loop, with the same child as nexus: a shell that execs bsleep

An adapter is called with words of the protocol, so its child can't be bsleep itself: compare nexus with
ref-shell, and ref-shell with ref to see what that shell costs.

  nexus.py --bench DIR nexus 200 --restarts 20 --idle 20
  nexus.py --bench DIR --torture nexus
"""

import argparse
import importlib
import json
import os
import shlex
import sqlite3
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# The shortest pause and the most restarts that a configuration may ask for.
RESTART = {
    "max_restarts": 1000,
    "backoff_base_ms": 1,
    "backoff_multiplier": 1,
    "backoff_max_ms": 1,
    "errored_retry_ms": 1,
}
INFO = {"channel": "bench", "name": "idle", "version": "1", "supports": ["monitor"], "multi_account": True}


# Of the benchmark's lines, and of the events that stand for them.
LINE_BYTES = 200


def generate(total, done):
    """Writes `total` bytes of events and exits at once, after it made the file `done`."""
    lines = []
    for number in range(total // LINE_BYTES):
        event = {"event_id": f"bench:{number}", "timestamp": 0, "content": "", "content_type": "text", "channel": "bench", "account_id": "k0"}
        event |= {"sender_id": "u", "peer_id": "p", "peer_kind": "dm"}
        line = json.dumps(event, separators=(",", ":"))
        event["content"] = "x" * (LINE_BYTES - 1 - len(line))
        lines.append(json.dumps(event, separators=(",", ":")) + "\n")
    data = "".join(lines).encode()
    assert len(data) == total
    while data:
        data = data[os.write(1, data) :]
    open(done, "w").close()


def write_adapter(bench, directory):
    """The adapter's program; its path. The child is looked up now: torture.py puts another in its place."""
    path = os.path.join(directory, "adapter.sh")
    child = shlex.quote(os.path.abspath(bench.KID))
    info = shlex.quote(json.dumps(INFO))
    text = f'#!/bin/sh\nif [ "$1" = info ]; then echo {info}; else exec {child} 1000; fi\n'
    bench.wr(path, text, 0o755)
    return path


def tools(bench, program):
    """The tools, as classes of the benchmark's own kind."""

    class Nexus(bench.Tool):
        name = "nexus"

        def __init__(self):
            super().__init__()
            # The daemon's working directory is its own, so paths must not depend on it.
            self.d = os.path.abspath(self.d)
            self.env = {"HOME": self.d, "NEXUS_STATE_DIR": self.d + "/state", "NO_COLOR": "1"}

        def config(self):
            return self.d + "/workspace/nex.yaml"

        def prep(self, n):
            command = shlex.join(["/bin/sh", write_adapter(bench, self.d)])
            accounts = {f"k{i}": {} for i in range(n)}
            config = {
                "daemon": {"port": 0},
                "ledgers": {"min_free_mb": 1},
                "timer": {"heartbeat_interval_ms": 0},
                "adapters": {"bench": {"command": command, "restart": RESTART, "accounts": accounts}},
            }
            # JSON is YAML.
            bench.wr(self.config(), json.dumps(config))

        def prep_pipe(self, command):
            # The benchmark's generator writes lines that are no events; this one writes as many events of
            # the same length, and then says so and exits at once, as that one does.
            words = command.split()
            self.bytes, self.done = int(words[1]), os.path.abspath(words[3])
            self.prep(1)
            own = shlex.join([sys.executable, os.path.abspath(__file__), "--generate", str(self.bytes), self.done])
            info = shlex.quote(json.dumps(INFO))
            text = f'#!/bin/sh\nif [ "$1" = info ]; then echo {info}; elif [ -e {shlex.quote(self.done)} ]; then exec sleep 1000; else exec {own}; fi\n'
            bench.wr(os.path.join(self.d, "adapter.sh"), text, 0o755)

        def logs(self):
            """A file as long as the events that the ledger has are together."""
            path = os.path.join(self.d, "accounted")
            ledger = os.path.join(self.d, "workspace/data/events.db")
            count, before = 0, -1
            while count != before:
                before = count
                with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=30) as events:
                    (count,) = events.execute("SELECT count(*) FROM events WHERE channel = 'bench'").fetchone()
                time.sleep(0.5)
            with open(path, "wb") as file:
                file.truncate(count * LINE_BYTES)
            return [path]

        def cmd(self):
            return [program, "daemon", "start", "--config", self.config()]

        # roots() stays the daemon: its keeper is below it, and naming that one too would count it twice.

    class RefShell(bench.T["ref"]):
        name = "ref-shell"

        def cmd(self):
            script = write_adapter(bench, os.path.abspath(self.d))
            mode = os.environ.get("REFMODE", "vfork")
            return [bench.H + "/bin/spawnref", mode, str(self.n), "/bin/sh", script, "monitor"]

    return Nexus, RefShell


def main():
    if sys.argv[1:2] == ["--generate"]:
        return generate(int(sys.argv[2]), sys.argv[3])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--bench", required=True, help="directory of bench.py")
    parser.add_argument("--nexus", default=os.path.join(HERE, "../../target/release/nexus"), help="the daemon's program")
    parser.add_argument("--torture", action="store_true", help="run torture.py instead of bench.py")
    options, rest = parser.parse_known_args()
    program = os.path.abspath(options.nexus)
    if not os.access(program, os.X_OK):
        parser.error(f"no program at {program}; build it with `cargo build --release`, or name it with --nexus")
    # A relative WORK would mean another directory to every process.
    os.environ["WORK"] = os.path.abspath(os.environ.get("WORK", "./run"))
    sys.path.insert(0, os.path.abspath(options.bench))
    bench = importlib.import_module("bench")
    for tool in tools(bench, program):
        bench.T[tool.name] = tool
    if options.torture:
        # Its work is at the top level: importing it runs it, with the table that was just changed.
        sys.argv = ["torture.py", *rest]
        importlib.import_module("torture")
    else:
        sys.argv = ["bench.py", *rest]
        bench.main()


if __name__ == "__main__":
    main()
