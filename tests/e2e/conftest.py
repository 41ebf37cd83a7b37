"""What end-to-end tests share: the bundled model, unpacked once, and one vLLM with a parent and its child."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from plaudit_server.engine.bundled import ensure_model
from plaudit_server.settings import Settings
from tests.support.engine_faults import Case


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
