"""What Plaudit adds inside vLLM's own processes (entry point group `vllm.general_plugins`).

vLLM loads this in every process it makes, also in a vLLM that has nothing to do with Plaudit but shares the
environment; there it does nothing. An engine that was started by hand for Plaudit says so by `PLAUDIT_CPU_LORA=1`.
"""

import os
import threading
import time

LIFELINE_VARIABLE = "PLAUDIT_LIFELINE_PID"
"""Set by `lifeline.py` in the environment of the engine it runs: its own process id."""

KERNEL_VARIABLE = "PLAUDIT_CPU_LORA"
"""`0` keeps vLLM's own CPU LoRA functions. `1` asks for Plaudit's mends where Plaudit did not start the engine."""


def register() -> None:
    """Called once by vLLM in each of its processes, before a model is built."""
    lifeline, kernel = os.environ.get(LIFELINE_VARIABLE), os.environ.get(KERNEL_VARIABLE)
    if lifeline:
        parent = expected_parent(int(lifeline))
        watch_parent(parent)
    elif kernel != "1":
        return
    if not lifeline or parent != int(lifeline):  # vLLM's first process draws no tokens
        from plaudit_server.engine import cpu_seeds

        cpu_seeds.install()
    if kernel != "0":
        from plaudit_server.engine import cpu_lora

        cpu_lora.install()


def expected_parent(lifeline: int) -> int:
    """The process without which this one has no purpose.

    vLLM's first process leads the session, and its parent is the lifeline. Asking the kernel there would answer
    with the adopter where the lifeline had ended before this plugin was loaded.
    """
    return lifeline if os.getsid(0) == os.getpid() else os.getppid()


def watch_parent(parent: int, *, every_s: float = 0.5) -> threading.Thread:
    """End this process soon after its parent has ended, however the parent ended.

    An orphan is given a new parent by the kernel; polling for that needs no privilege and, unlike
    `PR_SET_PDEATHSIG`, does not fire when only the thread that forked us ends.
    """

    def poll() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(1)

    thread = threading.Thread(target=poll, name="plaudit-watch-parent", daemon=True)
    thread.start()
    return thread
