"""A child with a lifeline ends when its parent is killed; one without does not watch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from plaudit import lifeline

CHILD = "from plaudit import lifeline; import time; lifeline.watch(); print('ready', flush=True); time.sleep(60)"

PARENT = f"""
import os, subprocess, sys, time
read, write = os.pipe()
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=read, stdout=subprocess.PIPE, start_new_session=True,
                         env={{**os.environ, "PLAUDIT_LIFELINE": "stdin"}})
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_child_ends_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def test_without_the_variable_nothing_is_watched():
    assert lifeline.watch({}) is None
