"""Which engine serves a model, what is started for it, and that it says what it is."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from plaudit_server.engine.keeper import ChildKeeper
from plaudit_server.engine.transformers_engine import (
    NOTE,
    launch_worker,
    serves_by_transformers,
    transformers_engine,
)
from plaudit_server.errors import SettingError
from plaudit_server.settings import Settings


def folder(root: Path, **config: Any) -> Path:
    root.mkdir(exist_ok=True)
    (root / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("engine", "has_encoder", "expected"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("transformers", False, True),
        ("transformers", True, True),
        ("vllm", False, False),
        ("fake", True, False),
    ],
)
def test_the_models_config_decides_unless_told(engine: Any, has_encoder: bool, expected: bool, tmp_path: Path) -> None:
    base = folder(tmp_path, is_encoder_decoder=has_encoder)
    assert serves_by_transformers(Settings(engine=engine), base) is expected


def test_a_config_without_the_word_is_a_causal_model(tmp_path: Path) -> None:
    assert serves_by_transformers(Settings(), folder(tmp_path, model_type="llama")) is False


def test_vllm_with_an_encoder_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="unset PLAUDIT_ENGINE, or set it to transformers"):
        serves_by_transformers(Settings(engine="vllm"), folder(tmp_path / "flan", is_encoder_decoder=True))


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(SettingError, match=r"config\.json cannot be read"):
        serves_by_transformers(Settings(), tmp_path)


def test_the_command_line_follows_the_settings() -> None:
    args = "--max-rows 4 --dtype bfloat16"
    settings = Settings(data=Path("data"), engine_max_model_len=512, engine_threads=3, engine_args=args)
    launch = launch_worker(settings, Path("/m"), Path("/tmp/x"))
    assert launch.command[1:3] == ["-m", "plaudit_server.engine.hf"]
    assert launch.command[3:] == [
        *("--uds", "/tmp/x/engine.sock", "--model", "/m", "--max-model-len", "512"),
        *("--threads", "3"),
        *("--max-rows", "4", "--dtype", "bfloat16"),
    ]
    assert launch.socket == Path("/tmp/x/engine.sock") and launch.environment["HF_HUB_OFFLINE"] == "1"


async def test_it_says_that_it_is_slower(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        engine = transformers_engine(Settings(data=tmp_path), folder(tmp_path / "flan", is_encoder_decoder=True))
    assert "slower than vLLM" in caplog.text and "flan" in caplog.text
    replica = engine.fleet.replicas[0]
    assert engine.health()[0].detail is None, "while it starts, what is wrong is more telling"
    replica.state = "ready"
    assert engine.health()[0].detail == NOTE
    replica.state, replica.detail = "down", "the engine ended"
    assert engine.health()[0].detail == "the engine ended"
    (keeper,) = engine.fleet.keepers
    assert isinstance(keeper, ChildKeeper) and keeper._launcher is launch_worker


def test_the_server_never_imports_torch_for_it() -> None:
    import subprocess
    import sys

    code = (
        "import sys, plaudit_server.engine.transformers_engine, plaudit_server.services; "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"
