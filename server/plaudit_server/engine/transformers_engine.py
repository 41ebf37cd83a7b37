"""The engine on Hugging Face transformers: for models that vLLM has not, T5 and its kin above all.

A child (`hf/`) that speaks the part of vLLM's interface that `VllmEngine` uses. Proving, restarting, routing and
retiring are therefore the same code; drawing is slower: small batches in step, no paged cache, no kernels of its own.
"""

import json
import logging
import os
import shlex
import sys
from pathlib import Path

from plaudit_server.engine.process import Launch
from plaudit_server.engine.vllm import VllmEngine
from plaudit_server.errors import SettingError
from plaudit_server.settings import Settings

NOTE = "transformers engine: slower than vLLM, small batches drawn in step"

_log = logging.getLogger(__name__)


def serves_by_transformers(settings: Settings, base: Path) -> bool:
    """Whether the transformers engine serves this model: told so, or the model has an encoder, which vLLM cannot do.

    Raises:
        SettingError: vLLM was asked for by name, but the model has an encoder.
    """
    if settings.engine == "fake":
        return False
    has_encoder = is_encoder_decoder(base)
    if settings.engine == "vllm" and has_encoder:
        raise SettingError(
            f"PLAUDIT_ENGINE=vllm, but {base.name} has an encoder, and vLLM serves no such model: "
            "unset PLAUDIT_ENGINE, or set it to transformers"
        )
    return has_encoder or settings.engine == "transformers"


def is_encoder_decoder(base: Path) -> bool:
    """Whether a model's config says that it has an encoder beside its decoder."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"PLAUDIT_MODEL={base}: config.json cannot be read ({error})") from error
    return bool(config.get("is_encoder_decoder"))


def transformers_engine(settings: Settings, base: Path) -> VllmEngine:
    """The engine, and a word about its speed in the log."""
    _log.warning("%s is served by the %s", base.name, NOTE)
    return VllmEngine(settings, base, launcher=launch_worker, note=NOTE)


def launch_worker(settings: Settings, base: Path, folder: Path) -> Launch:
    """The child's command. `engine_args` are the worker's: `python -m plaudit_server.engine.hf --help` lists them."""
    socket = folder / "engine.sock"
    command = [sys.executable, "-m", "plaudit_server.engine.hf", "--uds", str(socket), "--model", str(base)]
    command += ["--max-model-len", str(settings.engine_max_model_len)]
    if settings.engine_threads:
        command += ["--threads", str(settings.engine_threads)]
    command += shlex.split(settings.engine_args)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    return Launch(command, environment, socket, settings.data / "logs" / "engine.log")
