"""Recorded GitHub webhooks against a running daemon that is killed in the middle.

What must hold, for every delivery: it is answered 200 in the end, the ledger has it exactly once,
and its request has come to an end. What was answered 200 before the kill is in the ledger that the
killed daemon left behind. A forged or oversized delivery is refused and leaves no trace.
"""

import argparse
import concurrent.futures
import contextlib
import glob
import http.client
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time

from daemon import Daemon, Failure, free_port
from sender import Delivery, Sender, send_once

CONCURRENCY = 8
SECRET = "it's only for this test"
REDELIVERED = 25
SHOWN = 5
# The webhook adapter's own default for `max_body_bytes`, and how much larger its line may be.
DEFAULT_BODY_BYTES = 768 << 10
LINE_FACTOR = 2
SETTLE_S = 120
POLL_S = 0.1
FAILURES_SHOWN = 20
TERMINAL = {"completed", "denied", "handled_by_automation", "failed", "expired"}


def recorded(examples):
    """One delivery per recorded payload of the package, in a fixed order."""
    deliveries = []
    for index in sorted(glob.glob(os.path.join(examples, "*", "index.json"))):
        source = os.path.basename(os.path.dirname(index))
        with open(index, encoding="utf-8") as file:
            hooks = json.load(file)
        for hook in hooks:
            for number, payload in enumerate(hook["examples"]):
                body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
                deliveries.append(Delivery(f"{source}.{hook['name']}.{number}", hook["name"], body))
    if len({delivery.id for delivery in deliveries}) != len(deliveries):
        raise Failure("two recorded payloads got one delivery id")
    return deliveries


def configuration(port, body_bytes):
    """Every webhook may speak, and `echo` answers it: all eight stages run."""
    line_bytes = max(1 << 20, body_bytes * LINE_FACTOR)
    return f"""
daemon: {{ port: 0 }}
timer: {{ heartbeat_interval_ms: 0 }}
access:
  policies:
    - name: hooks
      match: {{ principal: {{ type: webhook }} }}
      effect: allow
adapters:
  webhook:
    command: "builtin:webhook"
    max_line_bytes: {line_bytes}
    accounts:
      github:
        credential_ref: github/hook
        config:
          verify: github
          bind: "127.0.0.1:{port}"
          max_body_bytes: {body_bytes}
          max_line_bytes: {line_bytes}
"""


class Ledgers:
    """Read-only questions to the tables that outside readers may rely on."""

    def __init__(self, directory):
        self.directory = directory

    def ask(self, ledger, sql):
        path = os.path.join(self.directory, ledger)
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql).fetchall()

    def recorded(self):
        """How often each event id is there."""
        sql = "SELECT event_id, count(*) FROM events WHERE channel = 'webhook' AND direction = 'inbound' GROUP BY event_id"
        return dict(self.ask("events.db", sql))

    def statuses(self):
        """The statuses of each event's requests."""
        found = {}
        for event_id, status in self.ask("nexus.db", "SELECT event_id, status FROM nexus_requests WHERE channel = 'webhook'"):
            found.setdefault(event_id, []).append(status)
        return found


def left_behind(daemon, scratch):
    """What a killed daemon's ledger holds, read from a copy: opening the file itself would repair it."""
    for name in ("events.db", "events.db-wal"):
        path = os.path.join(daemon.ledgers, name)
        if os.path.exists(path):
            shutil.copy(path, os.path.join(scratch, name))
    return Ledgers(scratch).recorded()


def send_all(sender, deliveries, daemon, scratch):
    """Sends everything; kills and restarts the daemon when half is accepted. Returns problems."""
    problems = []
    half = len(deliveries) // 2
    killed = threading.Event()

    def accepted(count):
        if count == half:
            daemon.kill()
            killed.set()

    sender.on_accepted = accepted
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(CONCURRENCY))
        # If something goes wrong, the pool is not waited for until everyone's patience ends.
        stack.push(lambda kind, *_: sender.give_up() if kind else None)
        sent = [pool.submit(sender.send, delivery) for delivery in deliveries]
        if not killed.wait(SETTLE_S):
            raise Failure(f"only {len(sender.accepted())} deliveries accepted after {SETTLE_S} s")
        daemon.wait_killed()
        kept = left_behind(daemon, scratch)
        before = sender.accepted()
        problems += [f"{id}: answered 200, and not in the ledger after the kill" for id in before - kept.keys()]
        if len(before) == len(deliveries):
            problems.append("everything was accepted before the kill: it was not in the middle")
        print(f"killed PID {daemon.last_pid} with {len(before)} of {len(deliveries)} accepted and {len(kept)} recorded", flush=True)
        daemon.start()
        for future in concurrent.futures.as_completed(sent):
            problem = future.result()
            if problem:
                problems.append(problem)
    return problems


def settled(ledgers, expected):
    """Waits until every expected event has only ended requests, or time is up."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        statuses = ledgers.statuses()
        if all(statuses.get(id) and set(statuses[id]) <= TERMINAL for id in expected) or time.monotonic() > deadline:
            return statuses
        time.sleep(POLL_S)


def judge(delivery, accepted, recorded, statuses):
    """What is wrong with one delivery, or None."""
    id = delivery.event_id
    if id not in accepted:
        return f"{id}: never accepted"
    if recorded.get(id) != 1:
        return f"{id}: {recorded.get(id, 0)} times in the ledger"
    if len(statuses.get(id, [])) != 1:
        return f"{id}: {len(statuses.get(id, []))} requests"
    if statuses[id][0] not in TERMINAL:
        return f"{id}: still `{statuses[id][0]}` after {SETTLE_S} s"
    return None


def refusals(port, sample, body_bytes):
    """A forged signature, none at all, and a body over the limit: a problem or None each."""
    forged = Delivery("forged", sample.name, sample.body)
    unsigned = Delivery("unsigned", sample.name, sample.body)
    large = Delivery("large", sample.name, b" " * (body_bytes + 1))
    cases = [(forged, "not the secret", 401), (unsigned, None, 401), (large, SECRET, 413)]
    for delivery, secret, wanted in cases:
        try:
            status, _ = send_once(port, delivery, secret)
        except (OSError, http.client.HTTPException) as error:
            status = f"{type(error).__name__}: {error}"
        yield None if status == wanted else f"{delivery.label}: answered {status} instead of {wanted}"


def shown(daemon, deliveries):
    """Whether the program itself shows recorded events: a problem or None each."""
    for delivery in deliveries:
        answer = daemon.nexus("events", "show", delivery.event_id, "--json")
        yield None if delivery.event_id in answer else f"{delivery.event_id}: `nexus events show` says {answer}"


def suite(daemon, port, deliveries, body_bytes, scratch):
    """Runs everything; returns one entry per check: None, or what is wrong."""
    checks = []
    sender = Sender(port, SECRET)
    daemon.start()
    checks.append(None)  # it started
    problems = send_all(sender, deliveries, daemon, scratch)
    checks += problems or [None]
    ledgers = Ledgers(daemon.ledgers)
    statuses = settled(ledgers, [delivery.event_id for delivery in deliveries])

    checks += [sender.send(delivery) for delivery in deliveries[:: max(1, len(deliveries) // REDELIVERED)]]
    checks += refusals(port, deliveries[0], body_bytes)
    checks += shown(daemon, deliveries[:SHOWN])
    checks.append(daemon.stop())

    # Read again: nothing may have been added by the redeliveries and the refused ones.
    recorded, statuses = ledgers.recorded(), ledgers.statuses()
    accepted = sender.accepted()
    checks += [judge(delivery, accepted, recorded, statuses) for delivery in deliveries]
    checks += [f"{id}: in the ledger, and never sent" for id in recorded.keys() - {delivery.event_id for delivery in deliveries}]
    counts = {}
    for ended in statuses.values():
        counts[ended[0]] = counts.get(ended[0], 0) + 1
    print(f"{len(deliveries)} deliveries, {sender.retries()} retries, requests: {counts}")
    return checks


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nexus", required=True, help="the program under test")
    parser.add_argument("--examples", required=True, help="the unpacked package")
    arguments = parser.parse_args()
    deliveries = recorded(arguments.examples)
    body_bytes = max(DEFAULT_BODY_BYTES, *(len(delivery.body) for delivery in deliveries))
    home = tempfile.mkdtemp(prefix="nexus-webhook-")
    scratch = os.path.join(home, "left-behind")
    os.mkdir(scratch)
    port = free_port()
    daemon = Daemon(os.path.abspath(arguments.nexus), home, configuration(port, body_bytes))
    try:
        daemon.nexus("credential", "set", "github/hook", text=SECRET)
        checks = suite(daemon, port, deliveries, body_bytes, scratch)
    except Failure as failure:
        checks = [str(failure)]
    finally:
        daemon.end()
    problems = [check for check in checks if check]
    for problem in problems[:FAILURES_SHOWN]:
        print(f"FAILED {problem}")
    if problems:
        daemon.show_log()
        print(f"everything is kept in {home}")
    else:
        shutil.rmtree(home)
    print(f"{len(checks) - len(problems)} passed, {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
