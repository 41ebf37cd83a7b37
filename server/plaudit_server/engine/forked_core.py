"""vLLM's engine core as a fork of its API server, on the CPU: it need not import all of vLLM and torch once more.

vLLM forks it wherever it can. On the CPU it asks for fresh processes everywhere, because a worker's OpenMP reads the
number and the cores of its threads from the environment when it is loaded. The worker stays a fresh process here; the
core, which schedules and multiplies nothing, has no such need. An engine starts in 21 instead of 29 s on two cores, and
takes 0.6 GB less.
"""

import multiprocessing
import os
from collections.abc import Callable

TESTED = ("0.32.0",)
"""Versions of vLLM of which the end-to-end tests have started a core like this."""


def install(in_fork: Callable[[int], object]) -> bool:
    """Have this process, where it is vLLM's first, fork its engine core. Returns whether it will.

    Args:
        in_fork: called in the fork, which inherits no thread of this process, with the id of this process.
    """
    from vllm.platforms import current_platform
    from vllm.v1.engine import utils
    from vllm.version import __version__

    if not current_platform.is_cpu() or __version__.partition("+")[0] not in TESTED:
        return False
    parent = os.getpid()
    os.register_at_fork(after_in_child=lambda: in_fork(parent))
    utils.get_mp_context = lambda: multiprocessing.get_context("fork")
    return True
