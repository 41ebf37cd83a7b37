"""A child process that ends with its parent, however the parent ends.

The parent keeps the writing end of a pipe and gives the reading end as stdin, with `PLAUDIT_LIFELINE=stdin`. When the
parent goes, the kernel closes the pipe, reading ends, and the child sends itself SIGTERM. Portable, and not fooled by
`kill -9`, unlike signal handlers; not fooled by re-parenting, unlike comparing parent ids.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping

VARIABLE = "PLAUDIT_LIFELINE"


def watch(environment: Mapping[str, str] = os.environ) -> threading.Thread | None:
    """Begin to watch, where the parent asked for it. Returns the watching thread, or None."""
    if environment.get(VARIABLE) != "stdin":
        return None
    thread = threading.Thread(target=_wait_for_end, name="lifeline", daemon=True)
    thread.start()
    return thread


def _wait_for_end() -> None:
    descriptor = sys.stdin.fileno()
    while os.read(descriptor, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
