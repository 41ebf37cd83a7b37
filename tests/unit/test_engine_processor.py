"""How many cores an engine may count on."""

from pathlib import Path

import pytest

from plaudit_server.engine.processor import count_cores, count_memory_nodes


def lay(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="ascii")


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """Four cores of two threads each: 0 and 4 are one, 1 and 5, …"""
    for number in range(8):
        siblings = f"{number % 4},{number % 4 + 4}\n"
        lay(tmp_path, f"devices/system/cpu/cpu{number}/topology/thread_siblings_list", siblings)
    return tmp_path


def test_two_threads_of_a_core_count_once(system: Path) -> None:
    assert count_cores(range(8), system) == 4


def test_what_this_process_may_not_run_on_does_not_count(system: Path) -> None:
    assert count_cores([0, 4, 1], system) == 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("odd", 4)]
)
def test_a_containers_quota_bounds_them(system: Path, quota: str, cores: int) -> None:
    lay(system, "fs/cgroup/cpu.max", quota + "\n")

    assert count_cores(range(8), system) == cores


def test_where_nothing_is_told_every_processor_is_a_core(tmp_path: Path) -> None:
    assert count_cores(range(3), tmp_path) == 3
    assert count_memory_nodes(tmp_path) == 1


def test_memory_nodes_are_counted(tmp_path: Path) -> None:
    for name in ("node0", "node1", "possible"):
        (tmp_path / "devices/system/node" / name).mkdir(parents=True)

    assert count_memory_nodes(tmp_path) == 2


def test_this_machine_has_at_least_one() -> None:
    assert count_cores() >= 1 and count_memory_nodes() >= 1
