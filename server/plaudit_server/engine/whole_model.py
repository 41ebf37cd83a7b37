"""Is this folder a whole model that may take the base model's place? Checked before loading, without torch.

The engine goes on with the settings, the tokenizer and the chat template that it was started with: only weights are
replaced. So everything else of the new model must be the base model's.
"""

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.wire.fingerprint import base_fingerprint
from plaudit.wire.versions import Manifest, Probe
from plaudit_server.engine.artefact import (
    ArtefactRefused,
    StoredTensor,
    check_content,
    check_files,
    convert,
    header_shapes,
    read_json,
    read_manifest,
    read_probe,
    read_safetensors,
)
from plaudit_server.engine.base import AdapterRef

MODEL_FOLDER = "model"
_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"
_ALLOWED_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".md", ".model"}
_VOLATILE = {"_name_or_path", "_model_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
_TIED = "lm_head.weight"
COMPARED = {"float32": ("<u4", 0x8000_0000), "float16": ("<u2", 0x8000), "bfloat16": ("<u2", 0x8000)}
"""Types in which weights can be compared: how wide their bits are, and which of them is the sign."""


@dataclass(frozen=True, slots=True)
class WholeModel:
    """Weights that a replica can hold.

    Args:
        name: `base`, or the version's.
        label: by which a worker says that it holds them.
        folder: what vLLM reads.
        tensors: by name in the checkpoint; they lie in mapped files.
        probe: None for base, which has no parent to differ from.
        parent: the version that the probe compares with.
        digests: what `resident_digests` has computed.
    """

    name: str
    label: str
    folder: Path
    tensors: Mapping[str, StoredTensor]
    probe: Probe | None = None
    parent: str | None = None
    digests: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    def resident_digests(self, dtype: str) -> dict[str, str]:
        """SHA-256 of each tensor as an engine that computes in `dtype` must hold it; computed once.

        Zeros have no sign here: a worker on the CPU reads its matrices back as products, which do not keep it.
        """
        if dtype not in self.digests:
            if dtype not in COMPARED:
                raise ArtefactRefused(f"the engine computes in {dtype}, with which weights cannot be compared")
            self.digests[dtype] = {name: _digest(tensor, dtype) for name, tensor in self.tensors.items()}
        return self.digests[dtype]


def _digest(tensor: StoredTensor, dtype: str) -> str:
    kind, sign = COMPARED[dtype]
    bits = np.frombuffer(convert(tensor, dtype), kind)
    return hashlib.sha256(np.where(bits == sign, bits.dtype.type(0), bits).tobytes()).hexdigest()


def check_whole_model(ref: AdapterRef, base: Path) -> WholeModel:
    """Check a version's folder.

    Args:
        ref: where it is, and the manifest hash that was registered.
        base: the folder of the base model that the engine was started with.

    Raises:
        ArtefactRefused: with one sentence saying what is wrong.
    """
    folder = Path(ref.location)
    manifest = read_manifest(folder, ref)
    if manifest.base_fingerprint != base_fingerprint(base):
        raise ArtefactRefused(f"{ref.name} was made for another base model than the one served")
    check_files(folder, manifest, {f"{MODEL_FOLDER}/{_CONFIG}", "probe.json"})
    _check_folder(folder, manifest)
    model = (folder / MODEL_FOLDER).resolve()
    check_same_settings(model, base)
    tensors = read_tensors(model)
    _check_tensors(tensors, manifest, base)
    label = f"{ref.name}-{ref.manifest_sha256[:8]}"
    return WholeModel(ref.name, label, model, tensors, read_probe(folder), ref.parent)


def read_base_weights(base: Path) -> WholeModel:
    """The base model's own weights, to go back to. Raises ArtefactRefused where they are no safetensors."""
    return WholeModel("base", f"base-{base_fingerprint(base)[:8]}", base.resolve(), read_tensors(base))


def _check_folder(folder: Path, manifest: Manifest) -> None:
    """Nothing lies there that the manifest does not list, and nothing that could be run when it is read."""
    model = folder / MODEL_FOLDER
    for path in model.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.suffix not in _ALLOWED_SUFFIXES:
            raise ArtefactRefused(f"{name} does not belong in a model; only safetensors are loaded")
        if name not in manifest.files:
            raise ArtefactRefused(f"{name} is not in manifest.json")


def check_same_settings(model: Path, base: Path) -> None:
    """Architecture, tokenizer and chat template are the base model's. Raises ArtefactRefused."""
    ours, theirs = read_json(base / _CONFIG), read_json(model / _CONFIG)
    for key in sorted((set(ours) | set(theirs)) - _VOLATILE):
        if ours.get(key) != theirs.get(key):
            raise ArtefactRefused(f"config.json differs from the base model's in {key}: only weights can be swapped")
    if (base / _TOKENIZER).is_file() and (model / _TOKENIZER).is_file():
        known, given = read_json(base / _TOKENIZER), read_json(model / _TOKENIZER)
        if _vocabulary(known) != _vocabulary(given):
            raise ArtefactRefused("the tokenizer is not the base model's, with which the engine goes on")
    templates = [path for path in (base / _TEMPLATE, model / _TEMPLATE) if path.is_file()]
    if len({path.read_text(encoding="utf-8").strip() for path in templates}) > 1:
        raise ArtefactRefused("the chat template is not the base model's, with which the engine goes on")


def _vocabulary(tokenizer: Mapping[str, Any]) -> tuple[Any, Any]:
    """Which id means what."""
    model = tokenizer.get("model") or {}
    added = [(token.get("id"), token.get("content")) for token in tokenizer.get("added_tokens") or []]
    return model.get("vocab"), added


def read_tensors(model: Path) -> dict[str, StoredTensor]:
    """All tensors of a model's folder, without reading them. Raises ArtefactRefused."""
    tensors: dict[str, StoredTensor] = {}
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            found = read_safetensors(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if twice := sorted(set(found) & set(tensors)):
            raise ArtefactRefused(f"{twice[0]} is in two files")
        tensors |= found
    if not tensors:
        raise ArtefactRefused(f"{model} has no safetensors")
    return tensors


def _check_tensors(tensors: Mapping[str, StoredTensor], manifest: Manifest, base: Path) -> None:
    if set(tensors) != set(manifest.tensors):
        raise ArtefactRefused("the tensors in the files are not those in manifest.json")
    shapes = {name: shape for path in sorted(base.glob("*.safetensors")) for name, shape in header_shapes(path).items()}
    if odd := sorted((set(shapes) ^ set(tensors)) - {_TIED}):
        raise ArtefactRefused(f"{odd[0]} is in one of the base model and this one only")
    for name, tensor in tensors.items():
        if name in shapes and list(tensor.shape) != list(shapes[name]):
            raise ArtefactRefused(f"{name} has shape {list(tensor.shape)}, the base model's has {list(shapes[name])}")
        check_content(name, tensor, manifest)
