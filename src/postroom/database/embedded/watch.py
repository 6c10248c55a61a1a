"""
The watch over an embedded server: its parent process, run as a script.

    python watch.py PLAN

It knows nothing of postroom, so that it starts in a few milliseconds and stays small: PLAN is a
JSON object with all that it needs (see Plan). It starts the server, starts it again when it
crashes, and stops it when the users' lock has no holder left. When the watch is killed, the
kernel sends the server the signal of a fast shutdown.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

STOP_SIGNAL = signal.SIGUSR1
"""What the last user sends, who holds the users' lock exclusively meanwhile."""

LOCKED = b"locked\n"
"""What it prints as soon as it holds its lock, which says that there is a watch."""

_PR_SET_PDEATHSIG = 1
_LOCK_LIMIT_S = 10.0
_LIVED_S = 10.0
_FAILURES_MAX = 5


class Plan(TypedDict):
    """
    What to watch.

    Attributes:
        command: The server and its arguments; it is to stay in the foreground.
        uid, gid: Who it runs as; None where that is us.
        data: Its data folder, which is also its processes' working directory.
        watch_lock: The file that the watch holds as long as it lives.
        users_lock: The file of which each user holds a share.
        socket_dir: A folder to remove in the end; "" for none.
    """

    command: list[str]
    uid: int | None
    gid: int | None
    data: str
    watch_lock: str
    users_lock: str
    socket_dir: str


def main() -> int:
    plan: Plan = json.loads(sys.argv[1])
    if os.fork():
        return 0  # who started us waits for this one; the watch belongs to nobody
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A service manager sends these to everybody at once, when users are still to finish.
        signal.signal(number, lambda _number, _frame: None)
    lock = _locked(plan["watch_lock"])
    if lock is None:
        return 1
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    events: queue.SimpleQueue[str] = queue.SimpleQueue()
    signal.signal(STOP_SIGNAL, lambda _number, _frame: events.put("stop"))
    os.write(1, LOCKED)
    os.dup2(2, 1)  # the one who waits for that line sees the end of it
    _in_thread(_wait_for_last_user, plan["users_lock"], events)
    ended_well = _watch(plan, events)
    _remove(plan["socket_dir"])
    return 0 if ended_well else 1


def _watch(plan: Plan, events: queue.SimpleQueue[str]) -> bool:
    failures = 0
    while True:
        clear_leftovers(Path(plan["data"]))
        started = time.monotonic()
        server = _start(plan)
        _in_thread(_announce_end, server, events)
        if events.get() != "exited":
            _stop(server)
            return True
        failures = 0 if time.monotonic() - started > _LIVED_S else failures + 1
        _say(f"the server ended with {server.returncode}")
        if failures == _FAILURES_MAX:
            return False
        time.sleep(0.1 * failures)


def _start(plan: Plan) -> subprocess.Popen[bytes]:
    become = {} if plan["uid"] is None else {"user": plan["uid"], "group": plan["gid"], "extra_groups": ()}
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        plan["command"],
        stdin=subprocess.DEVNULL,
        cwd="/",
        preexec_fn=_die_with_parent(os.getpid()),
        **become,
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number, limit_s in ((signal.SIGINT, 60), (signal.SIGQUIT, 20), (signal.SIGKILL, 20)):
        server.send_signal(number)
        try:
            server.wait(limit_s)
            return
        except subprocess.TimeoutExpired:
            _say(f"the server did not end {limit_s} s after signal {number}")


def clear_leftovers(data: Path) -> None:
    """
    Let no process of an earlier server of this data run on, and forget that server.

    PostgreSQL looks after this itself, by the process id in postmaster.pid. But that id may be
    another program's by now, after a reboot or in a new container, and then it refuses to start.
    """
    if not Path("/proc/self").exists():
        return
    waits = [(None, 10.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)]
    for number, limit_s in waits:
        ends = time.monotonic() + limit_s
        while pids := processes_in(data):
            if number is not None:
                for pid in pids:
                    _kill(pid, number)
            if time.monotonic() > ends:
                break
            time.sleep(0.02)
        else:
            (data / "postmaster.pid").unlink(missing_ok=True)
            return


def processes_in(data: Path) -> list[int]:
    """The processes that work in this folder: all of a server's do, and nobody else."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink() == data:
                    found.append(int(entry.name))
            except OSError:
                continue  # it is gone, or not ours to ask
    return found


def _locked(path: str) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    ends = time.monotonic() + _LOCK_LIMIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            # Somebody who looks whether there is a watch holds it for a moment.
            if time.monotonic() > ends:
                return None
            time.sleep(0.01)


def _announce_end(server: subprocess.Popen[bytes], events: queue.SimpleQueue[str]) -> None:
    server.wait()
    events.put("exited")


def _wait_for_last_user(path: str, events: queue.SimpleQueue[str]) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Held until we end, so that a new user waits and then starts a new watch.
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    events.put("unused")


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before it was asked for

    return ask


def _in_thread(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass


def _remove(folder: str) -> None:
    try:
        if folder:
            Path(folder).rmdir()
    except OSError:
        pass


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')} watch: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    os._exit(main())
