"""The processor that an engine may use, as Linux tells it; elsewhere all cores, in one piece."""

import math
import os
from collections.abc import Collection
from pathlib import Path

_SYSTEM = Path("/sys")


def count_cores(usable: Collection[int] | None = None, system: Path = _SYSTEM) -> int:
    """Physical cores that this process may run on, and no more than a container's quota pays for.

    Two threads of one core share the units that multiply matrices: both together are no faster than one.

    Args:
        usable: numbers of the logical processors; those this process may run on unless given.
        system: where `sysfs` is mounted.
    """
    if usable is None:
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_read(system / f"devices/system/cpu/cpu{n}/topology/thread_siblings_list") or str(n) for n in usable}
    quota, _, period = _read(system / "fs/cgroup/cpu.max").partition(" ")  # "max 100000", or microseconds of both
    paid = math.ceil(int(quota) / int(period)) if quota.isdigit() and period.isdigit() else len(cores)
    return max(1, min(len(cores), paid))


def count_memory_nodes(system: Path = _SYSTEM) -> int:
    """Memory nodes (NUMA) of this machine."""
    return max(1, len(list((system / "devices/system/node").glob("node[0-9]*"))))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
