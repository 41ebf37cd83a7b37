"""Version folders made by hand, byte by byte, so that each can be wrong in one way. No torch."""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from plaudit.wire.fingerprint import base_fingerprint, file_sha256
from plaudit.wire.versions import VersionKind
from plaudit_server.engine.base import AdapterRef

HIDDEN, INNER, RANK = 8, 12, 2
SHAPES = {
    "model.layers.0.self_attn.q_proj": (HIDDEN, HIDDEN),
    "model.layers.0.mlp.up_proj": (INNER, HIDDEN),
    "model.layers.0.mlp.down_proj": (HIDDEN, INNER),
}
PREFIX = "base_model.model."


def safetensors(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file of (dtype, shape, bytes)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


def bf16(values: np.ndarray[Any, Any]) -> bytes:
    """float32 values truncated to bfloat16."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def base_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the base model."""
    weights: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in SHAPES.items()}
    return weights | {
        "model.embed_tokens.weight": (32, HIDDEN),
        "lm_head.weight": (32, HIDDEN),
        "model.norm.weight": (8,),
    }


def make_base(folder: Path) -> Path:
    """A base model: a config and weights of the right shapes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    tensors = {name: ("BF16", shape, bytes(2 * math.prod(shape))) for name, shape in base_shapes().items()}
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


@dataclass
class _Folder:
    """What the folders of adapters and of whole models share."""

    folder: Path
    base: Path
    name: str = "v1"
    parent: str = "base"
    seed: int = 0

    kind: ClassVar[VersionKind]

    def __post_init__(self) -> None:
        self.tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
        sequence = {"prompt_ids": [1, 2], "response_ids": [3, 4], "parent_logprobs": [-1.0, -2.0]}
        self.probe: dict[str, Any] = {"format": 1, "sequences": [sequence | {"new_logprobs": [-1.1, -1.9]}] * 8}
        self.manifest: dict[str, Any] = {}
        random = np.random.default_rng(self.seed)
        for name, shape in self.shapes().items():
            self.tensors[name] = ("BF16", shape, bf16(random.normal(0, 0.1, shape).astype("<f4")))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each tensor."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Fields of the manifest that only this kind has."""
        raise NotImplementedError

    def seal(self) -> AdapterRef:
        """Write the manifest over what lies there; `manifest` overrides its fields."""
        files = [p for p in self.folder.rglob("*") if p.is_file() and not p.is_symlink() and p.name != "manifest.json"]
        manifest = {
            "format": 1,
            "version": self.name,
            "parent": self.parent,
            "base_model": "test",
            "base_fingerprint": base_fingerprint(self.base),
            "run_id": "run",
            "batch_ids": ["batch"],
            "created_at": "2026-01-01T00:00:00Z",
            "files": {
                str(p.relative_to(self.folder)): {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in files
            },
            "tensors": {
                name: {"sha256": hashlib.sha256(raw).hexdigest(), "shape": list(shape), "dtype": dtype}
                for name, (dtype, shape, raw) in self.tensors.items()
            },
        }
        (self.folder / "manifest.json").write_text(json.dumps(manifest | self.facts() | self.manifest), "utf-8")
        return self.ref()

    def ref(self) -> AdapterRef:
        """As it would be registered now."""
        digest = file_sha256(self.folder / "manifest.json")
        return AdapterRef(self.name, self.parent, str(self.folder), digest, self.kind)


@dataclass
class VersionFolder(_Folder):
    """An adapter's version under construction: change something, then `seal` it."""

    kind = "adapter"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.config: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": RANK,
            "bias": "none",
            "target_modules": ["q_proj", "up_proj", "down_proj"],
            "modules_to_save": None,
            "use_dora": False,
            "rank_pattern": {},
            "megatron_core": "megatron.core",
        }
        self.weights: bytes | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A and B of each adapted module."""
        return {
            f"{PREFIX}{module}.lora_{side}.weight": shape
            for module, (out, inside) in SHAPES.items()
            for side, shape in (("A", (RANK, inside)), ("B", (out, RANK)))
        }

    def facts(self) -> dict[str, Any]:
        """Its LoRA; no `kind`, as before there were others."""
        rank, alpha = self.config.get("r"), self.config.get("lora_alpha")
        return {"lora": {"rank": rank, "alpha": alpha, "target_modules": ["q_proj"]}}

    def write(self) -> "VersionFolder":
        """Write everything but the manifest."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "adapter").mkdir(parents=True)
        raw = self.weights if self.weights is not None else safetensors(self.tensors)
        (self.folder / "adapter/adapter_model.safetensors").write_bytes(raw)
        (self.folder / "adapter/adapter_config.json").write_text(json.dumps(self.config), encoding="utf-8")
        (self.folder / "probe.json").write_text(json.dumps(self.probe), encoding="utf-8")
        return self


@dataclass
class WholeFolder(_Folder):
    """A version that is a whole model, under construction: change something, then `seal` it."""

    kind = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.config: dict[str, Any] = json.loads((self.base / "config.json").read_text(encoding="utf-8"))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of the base model."""
        return base_shapes()

    def facts(self) -> dict[str, Any]:
        """What it is."""
        return {"kind": self.kind}

    def write(self) -> "WholeFolder":
        """Write everything but the manifest."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "model").mkdir(parents=True)
        (self.folder / "model/model.safetensors").write_bytes(safetensors(self.tensors))
        (self.folder / "model/config.json").write_text(json.dumps(self.config), encoding="utf-8")
        (self.folder / "probe.json").write_text(json.dumps(self.probe), encoding="utf-8")
        return self
