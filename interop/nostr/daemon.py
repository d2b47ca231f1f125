"""The daemon under test, in a state directory and a workspace of its own."""

import json
import os
import subprocess

START_S = 60
STOP_S = 60
LOG_LINES_SHOWN = 40


class Daemon:
    def __init__(self, program, home, configuration):
        self.program = program
        self.ledgers = os.path.join(home, "workspace", "data")
        self.log = os.path.join(home, "state", "logs", "nex.log")
        os.makedirs(os.path.join(home, "workspace"), 0o700)
        config = os.path.join(home, "workspace", "nex.yaml")
        with open(config, "w", encoding="utf-8") as file:
            # JSON is YAML.
            json.dump(configuration, file)
        state = os.path.join(home, "state")
        self._environment = {**os.environ, "HOME": home, "NEXUS_STATE_DIR": state, "NEXUS_CONFIG": config}

    def nexus(self, *arguments):
        """Runs one command of the program to its end."""
        command = [self.program, *arguments]
        return subprocess.run(command, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STOP_S, check=False)

    def ask(self, *arguments):
        """The JSON that a command answers."""
        done = self.nexus(*arguments, "--json")
        if done.returncode != 0:
            raise RuntimeError(f"nexus {' '.join(arguments)} exited {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def start(self):
        return self.ask("daemon", "start", "--detach")

    def stop(self):
        """None, or what went wrong."""
        done = self.nexus("daemon", "stop")
        return None if done.returncode == 0 else f"`nexus daemon stop` exited {done.returncode}: {done.stderr.strip()}"

    def show_log(self):
        if os.path.exists(self.log):
            with open(self.log, "rb") as file:
                print("\n".join(file.read().decode(errors="replace").splitlines()[-LOG_LINES_SHOWN:]))
