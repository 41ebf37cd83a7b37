"""Identities that server and trainer must compute alike."""

import hashlib
import json
from pathlib import Path

_HEAD_BYTES = 1 << 20


def base_fingerprint(folder: Path) -> str:
    """SHA-256 naming a base model: its config, and of each weight file its name, size and first MiB.

    Cheap for any size of model (a 7 B one takes milliseconds); two fine-tunes of the same shape differ in the first
    MiB of weights. The swap probe, which compares behaviour, stands behind it.

    Args:
        folder: a Hugging Face model folder.
    """
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for volatile in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        config.pop(volatile, None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    weights = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".gguf"))
    for path in weights:
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HEAD_BYTES))
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
