"""Keeps a PostgreSQL server for one run of the tests: stops it and removes its folder when that run has ended.

Run with the folder, the id of the process not to outlive, the server's user (or nothing) and its command. Returns at
once; what keeps is a child that nobody waits for.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(folder: str, run: int, command: list[str], user: str | None) -> None:
    """Watch the run; the kernel would not tell us of a process that is not our child."""
    if os.fork():
        os._exit(0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)  # whoever reads our output would wait for it to end
    with Path(folder, "log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, user=user, cwd=folder)
    while server.poll() is None and _lives(run):
        time.sleep(0.5)
    if server.poll() is None:
        server.send_signal(signal.SIGINT)  # fast: it does not wait for clients
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}.lock").unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[4:], sys.argv[3] or None)
