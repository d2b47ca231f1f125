"""A user's client and relays that others wrote, and a daemon between them.

What must hold, with each relay: a project that is defined and spoken to there is prepared, its agent answers with a
signature that the client finds right, a second message goes to the same agent of the same process, and after the
relay went and came back the daemon is there again. Each message is recorded once and comes to an end.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile

from daemon import Daemon, Failure
from relays import all_relays

CLIENT_S = 150
TERMINAL = {"completed", "denied", "handled_by_automation", "failed", "expired"}


class Client:
    """client.mjs with one user's key."""

    def __init__(self, program, relay):
        self._program = program
        self._relay = relay
        self._secret = hashlib.sha256(relay.label.encode()).hexdigest()

    def run(self, verb, *words):
        command = ["node", self._program, verb, self._relay.url, self._secret, *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CLIENT_S, check=False)
        if done.returncode != 0:
            raise Failure(f"client.mjs {verb} failed: {done.stderr.strip()}")
        return json.loads(done.stdout.splitlines()[-1])


def rows(ledgers, name, sql):
    path = os.path.join(ledgers, f"{name}.db")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(sql).fetchall()


def configuration(home, relay, public):
    # JSON is YAML.
    return json.dumps({
        "daemon": {"port": 0},
        "timer": {"heartbeat_interval_ms": 0},
        "agents": {"default": "echo"},
        "nostr": {"relays": [relay.url], "auth": [relay.url], "whitelist": [public]},
        "projects": {"path": os.path.join(home, "projects")},
    })


def started_at(daemon, coordinate):
    """When each process of the project was started."""
    projects = json.loads(daemon.nexus("project", "list", "--json"))
    return [project["startedAt"] for project in projects if coordinate in project.values()]


def exchange(client, coordinate, text, problems):
    """One message and its answer: the message's id and the answer's author."""
    told = client.run("ask", coordinate, text)
    answer = told["answer"]
    if text not in answer["content"]:
        problems.append(f"`{text}` was answered by `{answer['content']}`")
    if not any(tag[0] == "e" and tag[1] == told["question"]["id"] for tag in answer["tags"]):
        problems.append(f"the answer does not name the question: {answer['tags']}")
    return told["question"]["id"], answer["pubkey"]


def check_ledgers(daemon, asked, problems):
    """Each message is there once, and its request has ended well."""
    recorded = rows(daemon.ledgers, "events", "SELECT event_id FROM events WHERE channel = 'nostr' AND direction = 'inbound'")
    for event_id in asked:
        count = sum(1 for (name,) in recorded if name == f"nostr:{event_id}")
        if count != 1:
            problems.append(f"{event_id} is recorded {count} times")
    for event_id, status in rows(daemon.ledgers, "nexus", "SELECT event_id, status FROM nexus_requests WHERE channel = 'nostr'"):
        if status not in TERMINAL:
            problems.append(f"the request of {event_id} is still {status}")
        elif event_id.removeprefix("nostr:") in asked and status != "completed":
            problems.append(f"the request of {event_id} ended {status}")


def story(relay, nexus, program, scratch):
    """The whole story with one relay; the problems."""
    problems, asked, authors = [], [], set()
    client = Client(program, relay)
    relay.start()
    coordinate = client.run("define", "interop")["coordinate"]
    home = os.path.join(scratch, "home-" + relay.label.replace(" ", "-"))
    os.mkdir(home, 0o700)
    daemon = Daemon(nexus, home, configuration(home, relay, coordinate.split(":")[1]))
    try:
        daemon.start()
        for text in ("the first message", "the second message"):
            question, author = exchange(client, coordinate, text, problems)
            asked.append(question)
            authors.add(author)
        started = started_at(daemon, coordinate)
        relay.stop()
        relay.start()
        question, author = exchange(client, coordinate, "after the relay came back", problems)
        asked.append(question)
        authors.add(author)
        again = started_at(daemon, coordinate)
        if len(started) != 1 or started != again:
            problems.append(f"the project's process was not one and the same: {started}, then {again}")
        if len(authors) != 1:
            problems.append(f"several keys answered: {authors}")
        stopped = daemon.stop()
        if stopped:
            problems.append(stopped)
    except (Failure, subprocess.TimeoutExpired) as failure:
        problems.append(str(failure))
    finally:
        daemon.end()
    if not problems:
        check_ledgers(daemon, asked, problems)
    if problems:
        daemon.show_log()
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nexus", required=True, type=os.path.abspath)
    parser.add_argument("--client", required=True, type=os.path.abspath, help="client.mjs, beside its modules")
    options = parser.parse_args()
    passed, failed = 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        for relay in all_relays(scratch, options.nexus):
            try:
                problems = story(relay, options.nexus, options.client, scratch)
            except (Failure, subprocess.TimeoutExpired) as failure:
                problems = [str(failure)]
            finally:
                relay.stop()
            for problem in problems:
                print(f"{relay.label}: {problem}")
            print(f"{'FAILED' if problems else 'ok'}: {relay.label}", flush=True)
            passed, failed = passed + (not problems), failed + bool(problems)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
