"""The example agent of the Agent Client Protocol's own SDK, answering through a running daemon.

A turn of it says a few words, reads a file by a tool that needs no permission, asks for permission to
edit another, and says what it did. What must hold: all of that arrives in its order, the owner's answer
decides what it does, a turn that is cut short leaves the same process ready for the next one, and a process that
is killed in the middle of a turn costs that turn and nothing more. After a restart of the daemon, of which this agent
remembers nothing, the session goes on where it was.
"""

import argparse
import json
import os
import shlex
import signal
import sqlite3
import sys
import tempfile
import time

from daemon import POLL_S, Daemon, Failure

FIRST_WORDS = "I'll help you with that."
ALLOWED = "Perfect! I've successfully updated the configuration."
REFUSED = "I understand you prefer not to make that change."
# It takes at least five seconds for a turn: this one ends before that.
HASTY_MS = 2500
# What is recorded once its answer is on its way.
RECORDED_S = 30


def configuration(agent):
    """The owner is asked about everything, and each conversation has a session of its own."""
    command = shlex.join(["node", agent])
    each = f"runner: acp, command: {quoted(command)}, timeout_ms: 60000"
    return f"""
daemon: {{ port: 0 }}
ledgers: {{ min_free_mb: 1 }}
timer: {{ heartbeat_interval_ms: 0 }}
access:
  policies:
    - {{ name: each, match: {{ }}, effect: allow, session: {{ key: "cli:{{peer_id}}" }} }}
agents:
  default: example
  example: {{ {each}, permissions: {{ ask: always, timeout_ms: 30000 }} }}
"""


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


class Suite:
    def __init__(self):
        self.failures = []

    def check(self, is_so, what):
        print(("ok      " if is_so else "FAILED  ") + what, flush=True)
        if not is_so:
            self.failures.append(what)


def tool_calls(daemon):
    path = os.path.join(daemon.ledgers, "agents.db")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as ledger:
        query = "SELECT t.session, c.call_id, c.name, c.status FROM tool_calls c JOIN turns t USING (turn_id) ORDER BY t.depth, c.n"
        return ledger.execute(query).fetchall()


def depth(daemon, conversation):
    """How many turns follow each other in the session of a conversation."""
    path = os.path.join(daemon.ledgers, "agents.db")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as ledger:
        query = "SELECT count(*), max(depth) - min(depth) + 1 FROM turns WHERE session = ?"
        turns, length = ledger.execute(query, (f"cli:{conversation}",)).fetchone()
    return length if turns == length else None


def comes_to(daemon, conversation, turns):
    """Whether the session of a conversation has so many turns, at once or soon."""
    deadline = time.monotonic() + RECORDED_S
    while depth(daemon, conversation) != turns:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def connected(daemon):
    """The processes of the agent that there were, in their order."""
    with open(daemon.log, encoding="utf-8", errors="replace") as log:
        return [int(json.loads(line)["pid"]) for line in log if "ACP agent connected" in line]


def answered(suite, daemon, word, conversation, last_words):
    answer = daemon.say("Please update the configuration.", conversation)
    code = answer.code()
    suite.check("".join(answer.tokens).startswith(FIRST_WORDS), f"{word}: what it said before its question was there by then")
    suite.check("Modifying critical configuration file" in answer.questions[0], f"{word}: the question says what it wants")
    end = daemon.say(f"{word} {code}", f"{conversation}-elsewhere").end()
    suite.check(end["status"] == "handled_by_automation", f"{word}: the answer of the owner reaches no agent")
    end = answer.end()
    suite.check(end["status"] == "completed", f"{word}: the turn is complete")
    suite.check(last_words in (end["text"] or ""), f"{word}: the agent did as it was answered")
    suite.check("".join(answer.tokens) == end["text"], f"{word}: what was streamed is the answer")
    return end


def killed(suite, daemon):
    """The agent's process dies in the middle of a turn."""
    answer = daemon.say("Please update the configuration.", "killed")
    answer.until("token")
    os.kill(connected(daemon)[-1], signal.SIGKILL)
    end = answer.end()
    suite.check(end["status"] == "failed" and "died" in (end["reason"] or ""), "a turn whose agent is killed has failed, and says why")
    suite.check(answer.questions == [], "it is not asked again: it may have acted")
    answered(suite, daemon, "no", "killed", REFUSED)
    suite.check(len(set(connected(daemon))) == 2, "another process answers")


def restarted(suite, daemon):
    """The daemon stops and starts in between two turns of a session."""
    suite.check(comes_to(daemon, "first", 2), "the turns of a session follow each other")
    wrong = daemon.stop()
    suite.check(wrong is None, f"the daemon stops{'' if wrong is None else ': ' + wrong}")
    daemon.start()
    answered(suite, daemon, "yes", "first", ALLOWED)
    suite.check(comes_to(daemon, "first", 3), "the session goes on behind its last turn")


def run(suite, daemon, rewrite):
    answered(suite, daemon, "yes", "first", ALLOWED)
    calls = tool_calls(daemon)
    wanted = [("call_1", "Reading project files", "completed"), ("call_2", "Modifying critical configuration file", "completed")]
    suite.check([call[1:] for call in calls] == wanted, "the tool calls are recorded with their ends")
    answered(suite, daemon, "no", "first", REFUSED)
    killed(suite, daemon)
    restarted(suite, daemon)
    rewrite()
    answer = daemon.say("Please update the configuration.", "hasty")
    end = answer.end()
    suite.check(end["status"] == "failed" and "time is up" in (end["reason"] or ""), "a turn that takes too long ends at its time")
    suite.check("took too long" in (end["text"] or ""), "who asked is told")
    # The agent took the word to stop: it begins anew in the same session.
    answer = daemon.say("Again.", "hasty")
    answer.until("token")
    suite.check(answer.tokens[0].startswith(FIRST_WORDS), "the next turn begins")
    answer.end()
    suite.check(len(connected(daemon)) == 3, "no other process was started than for the death and the restart")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nexus", required=True)
    parser.add_argument("--agent", required=True)
    arguments = parser.parse_args()
    suite = Suite()
    with tempfile.TemporaryDirectory() as home:
        text = configuration(os.path.abspath(arguments.agent))
        daemon = Daemon(os.path.abspath(arguments.nexus), home, text)

        def rewrite():
            """Gives the agent less time: its process stays."""
            daemon.reload(text.replace("timeout_ms: 60000", f"timeout_ms: {HASTY_MS}"))

        try:
            daemon.start()
            run(suite, daemon, rewrite)
            wrong = daemon.stop()
            suite.check(wrong is None, f"the daemon stops{'' if wrong is None else ': ' + wrong}")
        except (Failure, OSError) as failure:
            suite.check(False, f"the suite went to its end: {failure}")
        finally:
            daemon.end()
            if suite.failures:
                daemon.show_log()
    return 1 if suite.failures else 0


if __name__ == "__main__":
    sys.exit(main())
