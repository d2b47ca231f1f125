"""The daemon under test, in a state directory and a workspace of its own, and what is said to it over its control socket."""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import time

START_S = 60
STOP_S = 60
# Longer than any agent here is silent, several times over.
PART_S = 60
POLL_S = 0.05
LOG_LINES_SHOWN = 40
CODE = re.compile(r"`yes (\d{3}-\d{3})`")
# Below the kernel's range for outgoing connections: while a server is down, a client that connects to a port of that range
# may be given the same one as its own, and then it talks to itself.
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
        self.workspace = os.path.join(home, "workspace")
        self.ledgers = os.path.join(self.workspace, "data")
        self.log = os.path.join(home, "daemon.log")
        self.socket = os.path.join(home, "state", "nex.sock")
        self.last_pid = None
        self._config = os.path.join(self.workspace, "nex.yaml")
        self._process = None
        os.mkdir(self.workspace, 0o700)
        self._write(configuration)
        state = os.path.join(home, "state")
        self._environment = {**os.environ, "HOME": home, "NEXUS_STATE_DIR": state, "NEXUS_CONFIG": self._config}

    def _write(self, configuration):
        with open(self._config, "w", encoding="utf-8") as file:
            file.write(configuration)

    def nexus(self, *arguments, text=""):
        """Runs one command of the program to its end, with this text as its stdin; its output."""
        command = [self.program, *arguments]
        done = subprocess.run(command, env=self._environment, input=text, capture_output=True, text=True, timeout=STOP_S, check=False)
        if done.returncode != 0:
            raise Failure(f"`nexus {' '.join(arguments)}` exited {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def reload(self, configuration):
        self._write(configuration)
        self.nexus("daemon", "reload")

    def start(self):
        """Starts it in the foreground; returns once it is ready."""
        with open(self.log, "ab") as log:
            command = [self.program, "daemon", "start"]
            self._process = subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.last_pid = self._process.pid
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None:
                raise Failure(f"the daemon exited {self._process.returncode} at its start")
            if time.monotonic() > deadline:
                raise Failure(f"the daemon was not ready within {START_S} s")
            time.sleep(POLL_S)

    def _connect(self):
        connection = http.client.HTTPConnection("localhost", timeout=PART_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PART_S)
        connection.sock.connect(self.socket)
        return connection

    def _is_ready(self):
        try:
            with contextlib.closing(self._connect()) as connection:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def say(self, text, conversation):
        """Sends a message; its answer."""
        connection = self._connect()
        body = json.dumps({"text": text, "conversation": conversation})
        connection.request("POST", "/control/send", body, {"Content-Type": "application/json"})
        return Answer(connection)

    def kill(self):
        """SIGKILL, at once and without waiting: any thread may call it."""
        self._process.send_signal(signal.SIGKILL)

    def wait_killed(self):
        code = self._process.wait(STOP_S)
        if code != -signal.SIGKILL:
            raise Failure(f"the daemon ended by itself, with {code}")

    def stop(self):
        """Stops it as a user would. Returns None, or what went wrong."""
        try:
            self.nexus("daemon", "stop")
        except Failure as failure:
            return str(failure)
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


class Answer:
    """The parts of one answer, as they come."""

    def __init__(self, connection):
        self._connection = connection
        self._response = connection.getresponse()
        self.tokens = []
        self.questions = []

    def until(self, kind):
        """The next part of this kind; tokens and questions before it are kept."""
        while True:
            line = self._response.readline()
            if not line:
                raise Failure(f"the answer ended without a part `{kind}`")
            if not line.strip():
                continue
            part = json.loads(line)
            if part["type"] == "token":
                self.tokens.append(part["text"])
            if part["type"] == "question":
                self.questions.append(part["text"])
            if part["type"] == kind:
                return part
            if part["type"] == "end":
                raise Failure(f"the answer ended without a part `{kind}`: {part}")

    def code(self):
        """The code of the next question."""
        text = self.until("question")["text"]
        found = CODE.search(text)
        if found is None:
            raise Failure(f"a question without a code: {text}")
        return found.group(1)

    def end(self):
        end = self.until("end")
        self._connection.close()
        return end
