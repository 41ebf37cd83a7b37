"""What end-to-end tests share: the bundled model, unpacked once.

Two processes play them (`make e2e`), for an engine starts on one core, and much is waiting. A module stays in one
process, and so does the folder `engine`, whose tests ask one vLLM; the longest come first, or one would run on alone.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

from plaudit_server.engine.bundled import ensure_model
from plaudit_server.settings import Settings

LONGEST_FIRST = ("test_soak", "engine", "test_whole_models", "test_loop", "test_people", "test_fleet")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the tests' own arithmetic: one core a process


def group(nodeid: str) -> str:
    """What stays in one process."""
    module = Path(nodeid.partition("::")[0])
    return "engine" if module.parent.name == "engine" else module.stem


class ByGroup(LoadScopeScheduling):
    """Instead of `--dist loadgroup`, which with pytest 9.2 and xdist 3.8 heeds no group."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    here = Path(__file__).parent
    items.sort(key=lambda item: rank.get(group(item.nodeid), len(rank)) if here in item.path.parents else -1)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of SmolLM2-135M-Instruct: the one that `make run` unpacked, else a fresh one."""
    unpacked = Path(__file__).parents[2] / "data"
    data = unpacked if (unpacked / "models").is_dir() else tmp_path_factory.mktemp("base")
    return ensure_model(Settings(data=data, model=None))
