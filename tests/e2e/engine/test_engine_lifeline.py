"""However the server ends, nothing that it started stays. Real processes, no model."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from plaudit_server.engine import lifeline

pytestmark = pytest.mark.e2e

# A stand-in for vLLM: it starts a child, which starts a grandchild in a session of its own, and all ignore SIGTERM.
FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
depth = int(sys.argv[2])
if depth:
    subprocess.Popen([sys.executable, sys.argv[0], sys.argv[1], str(depth - 1)], start_new_session=depth == 1)
with open(os.path.join(sys.argv[1], f"pid-{depth}.tmp"), "w") as file:
    file.write(str(os.getpid()))
os.rename(file.name, file.name[:-4])
time.sleep(600)
"""

# A stand-in for the server: it holds the lifeline.
SERVER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", *sys.argv[1:]], stdin=subprocess.PIPE, start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


class Family:
    """A server, its lifeline, and three generations below."""

    def __init__(self, folder: Path) -> None:
        self.private = folder / "private"
        self.private.mkdir()
        script = folder / "family.py"
        script.write_text(FAMILY, encoding="utf-8")
        command = [lifeline.__file__, str(self.private), sys.executable, str(script), str(folder), "2"]
        self.server = subprocess.Popen([sys.executable, "-c", SERVER, *command], stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        self.lifeline = int(self.server.stdout.readline())
        paths = [folder / f"pid-{depth}" for depth in range(3)]
        assert eventually(lambda: all(path.exists() for path in paths))
        self.pids = [int(path.read_text()) for path in paths]

    def alive(self) -> list[int]:
        return [pid for pid in [*self.pids, self.lifeline] if running(pid)]

    def end(self) -> None:
        self.server.kill()
        self.server.wait()
        assert self.server.stdout is not None
        self.server.stdout.close()
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: object, seconds: float = 10) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    family = Family(tmp_path)
    yield family
    family.end()


def test_kill_9_of_the_server_takes_all_with_it(family: Family) -> None:
    assert len(family.alive()) == 4

    family.server.kill()

    assert eventually(lambda: not family.alive()), f"left behind: {family.alive()}"
    assert not family.private.exists()


def test_sigterm_to_the_lifeline_takes_all_with_it(family: Family) -> None:
    os.kill(family.lifeline, signal.SIGTERM)

    assert eventually(lambda: not family.alive())


def test_the_end_of_the_command_takes_its_children_with_it(family: Family) -> None:
    os.kill(family.pids[2], signal.SIGKILL)

    assert eventually(lambda: not family.alive())


def test_ctrl_c_is_left_to_the_server(family: Family) -> None:
    os.kill(family.lifeline, signal.SIGINT)
    time.sleep(0.5)

    assert len(family.alive()) == 4


def test_the_plugin_ends_a_process_whose_lifeline_is_gone(tmp_path: Path) -> None:
    """What is left when the lifeline itself is killed: each vLLM process watches its parent."""
    code = "import os; from plaudit_server.engine import plugin; plugin.register(); import time; time.sleep(600)"
    environment = {**os.environ, "PLAUDIT_CPU_LORA": "0"}
    parent = (
        "import os, subprocess, sys, time\n"
        "env = {**os.environ, 'PLAUDIT_LIFELINE_PID': str(os.getpid())}\n"
        f"child = subprocess.Popen([sys.executable, '-c', {code!r}], env=env, start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    time.sleep(1)
    assert running(child)

    process.kill()
    process.wait()
    process.stdout.close()

    assert eventually(lambda: not running(child))
