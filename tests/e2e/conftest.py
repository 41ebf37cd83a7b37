"""What end-to-end tests share: the bundled model, unpacked once, and one vLLM with a parent and its child.

Two processes play them (`make e2e`): half of the time an engine only starts, on one core. A module stays in one
process, and so do all `test_engine_*`, which ask the shared vLLM; the longest come first, or one would run on alone.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from xdist.scheduler import LoadScopeScheduling

from plaudit_server.engine.bundled import ensure_model
from plaudit_server.settings import Settings
from tests.support.engine_faults import Case

LONGEST_FIRST = ("test_soak", "test_engine", "test_whole_models", "test_loop", "test_people", "test_fleet")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the tests' own arithmetic: one core a process


def group(nodeid: str) -> str:
    """What stays in one process."""
    module = Path(nodeid.partition("::")[0]).stem
    return "test_engine" if module.startswith("test_engine_") else module


class ByGroup(LoadScopeScheduling):
    """Instead of `--dist loadgroup`, which with pytest 9.2 and xdist 3.8 heeds no group."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(group(item.nodeid), len(rank)))


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of SmolLM2-135M-Instruct: the one that `make run` unpacked, else a fresh one."""
    unpacked = Path(__file__).parents[2] / "data"
    data = unpacked if (unpacked / "models").is_dir() else tmp_path_factory.mktemp("base")
    return ensure_model(Settings(data=data, model=None))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def case(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Case]:
    """Real vLLM with two small trained versions; an engine's start is dear, so tests of the engine share it."""
    async with Case.open(base_model, tmp_path_factory.mktemp("swap")) as case:
        yield case
