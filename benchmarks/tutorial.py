"""From `git clone` to the first rated answer, on real processes: `python -m benchmarks.tutorial`.

Clones this repository into an empty folder and follows docs/tutorial/first-loop.md word for word: `make run` there
installs the locked stack, unpacks the model and starts engine, server and trainer on port 8000, which must be free.
`first_rated_answer_s` counts everything. Downloads are a part of the installation, and pip does not tell how large a
part; so with `--warm` the clone is installed once beforehand, its .venv removed, and the time measured with pip's cache
filled: what then remains is not downloading. Needs git, and a commit of whatever is to be measured.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import write_result
from tests.support.tutorial import ROOT, Follower

RATED = ".venv/bin/plaudit rate"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tutorial", description=__doc__)
    parser.add_argument("--warm", action="store_true", help="fill pip's cache by a first installation, not counted")
    parser.add_argument("--folder", type=Path, help="an empty folder to clone into (default: a temporary one)")
    parser.add_argument("--no-write", action="store_true", help="print only; benchmarks/results stays as it is")
    return parser


def clean_environment() -> dict[str, str]:
    """A reader's: nothing of Plaudit is set, and nothing of this checkout is on Python's path."""
    ours = {"PYTHONPATH", "VIRTUAL_ENV"}
    return {k: v for k, v in os.environ.items() if not k.startswith("PLAUDIT_") and k not in ours}


def measure(folder: Path, *, warm: bool) -> dict[str, Any]:
    """Follow the tutorial in a clone within `folder`."""
    environment, clone = clean_environment(), folder / "plaudit"
    began = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], env=environment, check=True)
    cloned = time.monotonic() - began
    if warm:
        subprocess.run(["make", "--silent", "setup"], cwd=clone, env=environment, check=True)
        shutil.rmtree(clone / ".venv")
    follower = Follower(clone, environment=environment)
    try:
        at = follower.follow()
    finally:
        follower.stop()
    rated = next(seconds for command, seconds in at.items() if command.startswith(RATED))
    (started,) = [seconds for command, seconds in at.items() if command == "make run"]
    return {
        "warm": warm,
        "clone_s": round(cloned, 1),
        "installed_and_started_s": started,
        "first_rated_answer_s": round(cloned + rated, 1),
        "steps_s": at,
        "log": (clone / "make-run.log").read_text(encoding="utf-8", errors="replace").splitlines(),
    }


def main() -> None:
    """Measure, print, keep."""
    given = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whatever ends us, the service is ended too
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(given.folder or Path(temporary), warm=given.warm)
    print("\n".join(figures.pop("log")))
    for command, seconds in figures["steps_s"].items():
        print(f"{seconds:8.1f} s  {command}")
    print(f"first rated answer {figures['first_rated_answer_s']:.0f} s after git clone")
    if not given.no_write:
        print(write_result("tutorial", figures))


if __name__ == "__main__":
    main()
