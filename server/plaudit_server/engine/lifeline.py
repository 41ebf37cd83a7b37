"""Runs one command and ends it, with everything it started, as soon as standard input closes.

Started by `process.py` as a script, with a pipe as standard input whose other end only the server holds. However
the server ends, `kill -9` included, the kernel closes that end, and the engine goes with the server. The engine
gets its own session, so that one signal reaches its API server, engine core and workers alike, and this process
adopts what those leave behind.

    python lifeline.py <folder to remove at the end> <command> [argument …]

Imports the standard library only: it must outlive anything that goes wrong in the engine.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

GRACE_S = 3.0
LIFELINE_VARIABLE = "PLAUDIT_LIFELINE_PID"  # as in plugin.py, which is not imported here on purpose
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Run the command; its exit status is ours."""
    folder, command = arguments[0], arguments[1:]
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the server, which ends us in order
    _adopt_orphans()
    environment = {**os.environ, LIFELINE_VARIABLE: str(os.getpid())}
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)
    try:
        _wait_for_either(child)
    finally:
        _end_group(child)
        shutil.rmtree(folder, ignore_errors=True)
    return child.returncode


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _adopt_orphans() -> None:
    """Linux: processes that the engine leaves behind become our children, where we can find and end them."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wait_for_either(child: subprocess.Popen[bytes]) -> None:
    """Return when the command has ended or standard input has closed."""
    while child.poll() is None:
        readable, _, _ = select.select([0], [], [], 0.2)
        if readable and not os.read(0, 4096):
            return


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Ask politely, wait a little, insist."""
    _signal_group(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and (child.poll() is None or _adopted()):
        time.sleep(0.05)
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()
    # Those that left the group become our children when their parent ends, generation by generation.
    while orphans := _adopted():
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _adopted() -> list[int]:
    """Our living children, the command's orphans among them. Zombies are collected on the way."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in path.read_text(encoding="ascii").split()]
    return [pid for pid in found if not _is_zombie(pid)]


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
