"""Runs a command, and fails if it leaves a process behind.

This process is a subreaper (prctl(2)): whatever the command starts, however often it forks, changes
its session or scrubs its environment, becomes our child when its own parent ends. A mark in the
environment would miss the daemon's children, which inherit no environment.
"""

import ctypes
import os
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
# The daemon's keeper may take 10 s to clear up after a daemon that was killed.
GRACE_S = 15
POLL_S = 0.05
COMMAND_CHARS_MAX = 200


def become_subreaper():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children():
    """Living direct children: (pid, command line)."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                # The name in parentheses may hold anything, parentheses included.
                state, parent = stat.read().rpartition(b")")[2].split()[:2]
            with open(f"/proc/{name}/cmdline", "rb") as cmdline:
                command = cmdline.read().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and state != b"Z":
            found.append((int(name), command[:COMMAND_CHARS_MAX].strip()))
    return found


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def run(argv):
    """The command's exit code; collects the orphans that end meanwhile."""
    os.environ["NEXUS_CI_MARK"] = str(os.getpid())
    main = os.spawnvp(os.P_NOWAIT, argv[0], argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: os.kill(main, number))
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == main:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def leftovers():
    """What is still there after the grace, all of it killed."""
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        reap()
        if not children():
            return []
        time.sleep(POLL_S)
    found = []
    while left := children():
        # A killed process hands its own children to us: they are in the next round.
        for pid, command in left:
            if (pid, command) not in found:
                found.append((pid, command))
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
        reap()
    return found


def main():
    become_subreaper()
    code = run(sys.argv[1:])
    left = leftovers()
    for pid, command in left:
        print(f"left running: PID {pid}: {command}")
    if left:
        print(f"FAILED: {len(left)} processes were left running (killed now)")
        return code or 1
    print("no process was left running")
    return code


if __name__ == "__main__":
    # Line by line, in order with what the command prints.
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
