"""The daemon under test, in a state directory and a workspace of its own."""

import http.client
import os
import random
import signal
import socket
import subprocess
import time

START_S = 60
STOP_S = 60
POLL_S = 0.05
LOG_LINES_SHOWN = 40
# Below the kernel's range for outgoing connections: while the daemon is down, a client that connects
# to a port of that range may be given the same one as its own, and then it talks to itself.
PORTS = range(20_000, 30_000)
PORT_TRIES = 100


class Failure(Exception):
    """The suite can't go on."""


def free_port():
    for port in random.sample(PORTS, PORT_TRIES):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Failure(f"none of {PORT_TRIES} ports is free")


class Daemon:
    def __init__(self, program, home, configuration):
        self.program = program
        self.port = free_port()
        self.workspace = os.path.join(home, "workspace")
        self.ledgers = os.path.join(self.workspace, "data")
        self.log = os.path.join(home, "daemon.log")
        self.last_pid = None
        self._process = None
        os.mkdir(self.workspace, 0o700)
        config = os.path.join(self.workspace, "nex.yaml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(configuration(self.port))
        state = os.path.join(home, "state")
        self._environment = {**os.environ, "HOME": home, "NEXUS_STATE_DIR": state, "NEXUS_CONFIG": config}

    def nexus(self, *arguments, text=None):
        """Runs one command of the program to its end."""
        command = [self.program, *arguments]
        return subprocess.run(command, env=self._environment, input=text, capture_output=True, text=True, timeout=STOP_S, check=False)

    def credential(self, name, value):
        done = self.nexus("credential", "set", name, text=value)
        if done.returncode != 0:
            raise Failure(f"`nexus credential set` exited {done.returncode}: {done.stderr.strip()}")

    def start(self):
        """Starts it in the foreground; returns once the webhook port answers."""
        with open(self.log, "ab") as log:
            command = [self.program, "daemon", "start"]
            self._process = subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.last_pid = self._process.pid
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None:
                raise Failure(f"the daemon exited {self._process.returncode} at its start")
            if time.monotonic() > deadline:
                raise Failure(f"the webhook port did not answer within {START_S} s")
            time.sleep(POLL_S)

    def _answers(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def kill(self):
        """SIGKILL, at once and without waiting: any thread may call it."""
        self._process.send_signal(signal.SIGKILL)

    def wait_killed(self):
        code = self._process.wait(STOP_S)
        if code != -signal.SIGKILL:
            raise Failure(f"the daemon ended by itself, with {code}")

    def stop(self):
        """Stops it as a user would. Returns None, or what went wrong."""
        done = self.nexus("daemon", "stop")
        if done.returncode != 0:
            return f"`nexus daemon stop` exited {done.returncode}: {done.stderr.strip()}"
        code = self._process.wait(STOP_S)
        return None if code == 0 else f"the stopped daemon exited {code}"

    def end(self):
        """Makes sure that it is gone, whatever happened."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(STOP_S)

    def show_log(self):
        if not os.path.exists(self.log):
            return
        with open(self.log, "rb") as file:
            lines = file.read().decode(errors="replace").splitlines()
        print("\n".join(lines[-LOG_LINES_SHOWN:]))
