"""The relays: two that we did not write, and ours. Each is a process of its own on a port that is given to it,
and may be stopped and started again there."""

import os
import signal
import socket
import subprocess
import sys
import time

from daemon import Failure, free_port

START_S = 30
STOP_S = 15
POLL_S = 0.05

# As its documentation has it, but for the addresses that a proof may name: clients write them with and without a slash.
NOSTR_RELAY = """
DEBUG: false
relay_name: interop
sysop_pubkey: "00"
sysop_contact: nobody@example.invalid
storage:
  sqlalchemy.url: sqlite+aiosqlite:///{directory}/relay.sqlite3
  num_concurrent_reqs: 10
  num_concurrent_adds: 2
  validators:
    - nostr_relay.validators.is_not_too_large
    - nostr_relay.validators.is_signed
    - nostr_relay.validators.is_recent
    - nostr_relay.validators.is_not_hellthread
  oldest_event: 31536000
  max_event_size: 4096
verification:
  nip05_verification: disabled
gunicorn:
  bind: 127.0.0.1:{port}
  workers: 1
  loglevel: info
authentication:
  enabled: true
  relay_urls: ["ws://127.0.0.1:{port}", "ws://127.0.0.1:{port}/"]
  actions: {{save: a, query: a}}
message_timeout: 1800
"""


class Relay:
    """`keeps`: whether what was published is there after another start."""

    def __init__(self, label, directory, port, command, keeps):
        self.label = label
        self.keeps = keeps
        self.url = f"ws://127.0.0.1:{port}"
        self._port = port
        self._directory = directory
        self._command = command
        self._process = None

    def start(self):
        log = os.path.join(self._directory, "relay.log")
        # gunicorn leaves a directory in HOME.
        environment = {**os.environ, "HOME": self._directory}
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                self._command, cwd=self._directory, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                with open(log, encoding="utf-8", errors="replace") as file:
                    raise Failure(f"{self.label} does not listen: {file.read()[-2000:]}")
            time.sleep(POLL_S)

    def _listens(self):
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=5).close()
        except OSError:
            return False
        return True

    def stop(self):
        """Ends it and whatever it started."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(STOP_S)
                if number == signal.SIGTERM and not self._group_lives():
                    break
            except subprocess.TimeoutExpired:
                continue
        self._process = None

    def _group_lives(self):
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def all_relays(scratch, nexus):
    """Every relay with and without AUTH, as far as it can be without."""
    here = os.path.dirname(os.path.abspath(__file__))

    def made(name, command, keeps):
        directory = os.path.join(scratch, name.replace(" ", "-"))
        os.mkdir(directory, 0o700)
        port = free_port()
        return Relay(name, directory, port, command(directory, port), keeps)

    def ours(*more):
        return lambda directory, port: [nexus, "nostr", "relay", "--listen", f"127.0.0.1:{port}", "--directory", directory, *more]

    def local(*more):
        return lambda _, port: [sys.executable, os.path.join(here, "localrelay.py"), str(port), *more]

    def python(directory, port):
        path = os.path.join(directory, "relay.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(NOSTR_RELAY.format(directory=directory, port=port))
        program = os.path.join(os.path.dirname(sys.executable), "nostr-relay")
        return [program, "-c", path, "serve"]

    yield made("nexus", ours(), True)
    yield made("nexus auth", ours("--auth"), True)
    yield made("nostr-relay auth", python, True)
    yield made("LocalRelay", local(), False)
    yield made("LocalRelay auth", local("auth"), False)
