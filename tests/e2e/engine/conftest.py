"""One vLLM for all of this folder, with a parent and its child: an engine's start is dear."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.engine_faults import Case


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def case(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Case]:
    """Real vLLM with two small trained versions."""
    async with Case.open(base_model, tmp_path_factory.mktemp("swap")) as case:
        yield case
