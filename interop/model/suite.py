"""A real language model, behind the loopback, answering through a running daemon.

The model is small and says what it likes; nothing of that is judged. What must hold: its words arrive as it
makes them, the ledger says of each turn how it ended and what it used, as the server itself does, a turn knows
what was said before it, and one that is cut short leaves the model idle.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request

from daemon import Daemon, Failure

# Most of it is over after 10 s, on a quiet core.
TIME_BOX_S = 240
PART_S = 60
STOP_S = 10
POLL_S = 0.05
HASTY_MS = 3000
BRIEF_TOKENS = 8
# How the ledger calls the ends that the server gives.
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
FIRST, SECOND = "Name three colours.", "Name two more."


def configuration(url, default):
    """Each conversation has a session of its own, in which a message ends the turn before it."""
    each = f"runner: llm, url: '{url}'"
    return f"""
daemon: {{ port: 0 }}
ledgers: {{ min_free_mb: 1 }}
timer: {{ heartbeat_interval_ms: 0 }}
access:
  policies:
    - {{ name: each, match: {{ }}, effect: allow, queue_mode: interrupt, session: {{ key: "cli:{{peer_id}}" }} }}
agents:
  default: {default}
  plain: {{ {each}, model: smollm2, max_tokens: 200 }}
  brief: {{ {each}, model: smollm2-endless, max_tokens: {BRIEF_TOKENS} }}
  hasty: {{ {each}, model: smollm2-endless, timeout_ms: {HASTY_MS} }}
  endless: {{ {each}, model: smollm2-endless }}
"""


class ModelServer:
    """The model's own process, which ends with its stdin."""

    def __init__(self, native, model):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "server.mjs")
        command = ["node", script, native, model]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._base = None

    def wait(self):
        """Waits until the model is loaded."""
        line = self._process.stdout.readline()
        if not line:
            raise Failure("the model's server ended at its start")
        self._base = f"http://127.0.0.1:{json.loads(line)['port']}"

    def url(self):
        return f"{self._base}/v1/"

    def account(self):
        # Whatever the environment says of proxies: this is the loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self._base}/account", timeout=PART_S) as answer:
            return json.load(answer)

    def ended(self, n):
        """What it says of its n-th answer, once that has come to an end."""

        def look():
            return [one for one in self.account()["requests"][n : n + 1] if one["end"]]

        return eventually(f"the end of the model's answer {n}", look)[0]

    def end(self):
        """Has it end, whatever happened; its exit code."""
        self._process.stdin.close()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(STOP_S)


def eventually(what, look):
    """The first result that is something."""
    deadline = time.monotonic() + PART_S
    while not (found := look()):
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {PART_S} s")
        time.sleep(POLL_S)
    return found


class Suite:
    def __init__(self):
        self.daemon = None
        self.server = None
        self.passed = 0
        self.failures = []

    def check(self, is_so, what):
        print(("ok      " if is_so else "FAILED  ") + what, flush=True)
        if is_so:
            self.passed += 1
        else:
            self.failures.append(what)

    def use(self, agent):
        self.daemon.reload(configuration(self.server.url(), agent))

    def turns(self, conversation, count):
        """The turns of a conversation in the ledger, once there are so many."""
        path = os.path.join(self.daemon.ledgers, "agents.db")
        columns = "model, stop_reason, input_tokens, output_tokens"
        text = "(SELECT content FROM messages m WHERE m.turn_id = t.turn_id AND role = 'assistant')"
        query = f"SELECT {columns}, coalesce({text}, '') FROM turns t WHERE session = ? ORDER BY depth"

        def look():
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as ledger:
                rows = ledger.execute(query, (f"cli:{conversation}",)).fetchall()
            return rows if len(rows) >= count else None

        return eventually(f"turn {count} of {conversation}", look)

    def agree(self, what, turn, said):
        """Whether ledger and server say the same of an answer that came to its own end."""
        model, stop_reason, input_tokens, output_tokens, text = turn
        self.check(stop_reason == STOP_REASONS.get(said["end"]), f"{what}: the ledger has the reason of its end ({stop_reason})")
        used = (input_tokens, output_tokens)
        counted = (said["prompt_tokens"], said["completion_tokens"])
        self.check(used == counted, f"{what}: the ledger has the tokens that were used {used}")
        self.check(model == said["model"] and text == said["text"], f"{what}: the ledger has the model and its words")

    def answers(self):
        answer = self.daemon.say(FIRST, "talk")
        end = answer.end()
        said = self.server.ended(0)
        self.check(end["status"] == "completed" and said["end"] == "stop", "an answer: the model came to its end")
        self.check(len(answer.tokens) > 1, f"an answer: it came in pieces ({len(answer.tokens)})")
        self.check("".join(answer.tokens) == end["text"] == said["text"] != "", f"an answer: it is the model's: {said['text']!r}")
        self.agree("an answer", self.turns("talk", 1)[0], said)

    def remembers(self):
        end = self.daemon.say(SECOND, "talk").end()
        said = self.server.ended(1)
        first = self.server.ended(0)
        heard = [(message["role"], message["content"]) for message in said["messages"]]
        wanted = [("user", FIRST), ("assistant", first["text"]), ("user", SECOND)]
        self.check(heard == wanted, "a second turn: the model was told of the first")
        self.check(said["prompt_tokens"] > first["prompt_tokens"] + first["completion_tokens"], "a second turn: that is what it costs")
        self.check(end["text"] == said["text"], "a second turn: it is answered")
        self.agree("a second turn", self.turns("talk", 2)[1], said)

    def is_brief(self):
        self.use("brief")
        end = self.daemon.say(FIRST, "brief").end()
        said = self.server.ended(2)
        self.check(said["max_tokens"] == BRIEF_TOKENS, "max_tokens: the model was told")
        full = (said["end"], said["completion_tokens"]) == ("length", BRIEF_TOKENS)
        self.check(full and end["status"] == "completed", "max_tokens: the answer ends there")
        self.agree("max_tokens", self.turns("brief", 1)[0], said)

    def is_hasty(self):
        self.use("hasty")
        answer = self.daemon.say(FIRST, "hasty")
        end = answer.end()
        is_late = end["status"] == "failed" and "time is up" in (end["reason"] or "")
        self.check(is_late, "timeout: the request fails and says why")
        said = self.server.ended(3)
        self.check(said["end"] == "closed", f"timeout: the connection is closed, after {said['completion_tokens']} tokens")
        self.check(self.server.account()["running"] == 0, "timeout: the model is idle again")
        _, stop_reason, _, output_tokens, text = self.turns("hasty", 1)[0]
        self.check(stop_reason == "timeout", f"timeout: the ledger says so ({stop_reason})")
        self.check(said["text"].startswith(text), "timeout: the ledger has no words but the model's")
        self.check(bool(output_tokens) == bool(answer.tokens), f"timeout: what came is paid for ({output_tokens})")
        self.check(bool(text) == bool(answer.tokens), "timeout: what came is kept")

    def is_interrupted(self):
        self.use("endless")
        endless = self.daemon.say(FIRST, "long")
        endless.until("token")
        self.check(self.server.account()["running"] == 1, "two at once: the first words are here while the model speaks")
        self.use("plain")
        other = self.daemon.say(FIRST, "other")
        end = other.end()
        account = self.server.account()
        self.check(account["running"] == 1 and account["requests"][4]["end"] is None, "two at once: one goes on")
        said = self.server.ended(5)
        self.check("".join(other.tokens) == end["text"] == said["text"], "two at once: the other is answered")
        self.agree("two at once", self.turns("other", 1)[0], said)

        end = self.daemon.say(SECOND, "long").end()
        cut_short = self.server.ended(4)
        self.check(cut_short["end"] == "closed", f"an interrupt: the connection is closed, after {cut_short['completion_tokens']} tokens")
        self.check(endless.end()["status"] == "completed", "an interrupt: whoever waited is told of the end")
        aborted, after = self.turns("long", 2)[:2]
        self.check(aborted[1] == "aborted", f"an interrupt: the ledger says so ({aborted[1]})")
        said = self.server.ended(6)
        heard = [message["content"] for message in said["messages"]]
        self.check(heard == [FIRST, aborted[4], SECOND], "an interrupt: the next turn knows what was said")
        self.check(cut_short["text"].startswith(aborted[4]) and aborted[4] != "", "an interrupt: that is the model's")
        self.check(end["text"] == said["text"], "an interrupt: the next turn is answered")
        self.agree("an interrupt", after, said)

    def run(self, nexus, native, model, home):
        self.server = ModelServer(native, model)
        self.server.wait()
        self.daemon = Daemon(nexus, home, configuration(self.server.url(), "plain"))
        self.daemon.start()
        self.answers()
        self.remembers()
        self.is_brief()
        self.is_hasty()
        self.is_interrupted()
        account = self.server.account()
        self.check(len(account["requests"]) == 7, f"the model was asked once for each turn ({len(account['requests'])})")
        self.check(account["running"] == 0, "the model is idle at the end")
        wrong = self.daemon.stop()
        self.check(wrong is None, f"the daemon stops{'' if wrong is None else ': ' + wrong}")

    def end(self):
        if self.daemon is not None:
            self.daemon.end()
        if self.server is not None:
            code = self.server.end()
            self.check(code == 0, f"the model's server ends ({code})")
        if self.failures and self.daemon is not None:
            self.daemon.show_log()


def time_is_up(_number, _frame):
    raise Failure(f"it took more than {TIME_BOX_S} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nexus", required=True, help="the program under test")
    parser.add_argument("--native", required=True, help="the directory of node-llama-cpp's native module")
    parser.add_argument("--model", required=True, help="the model's GGUF file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, time_is_up)
    signal.alarm(TIME_BOX_S)
    suite = Suite()
    with tempfile.TemporaryDirectory(prefix="nexus-model-") as home:
        try:
            suite.run(*map(os.path.abspath, (arguments.nexus, arguments.native, arguments.model)), home)
        except (Failure, OSError, ValueError, sqlite3.Error, http.client.HTTPException) as failure:
            suite.check(False, f"the suite went to its end: {failure}")
        finally:
            signal.alarm(0)
            suite.end()
    print(f"{suite.passed} passed, {len(suite.failures)} failed")
    return 1 if suite.failures else 0


if __name__ == "__main__":
    sys.exit(main())
