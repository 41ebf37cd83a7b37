"""Real versions that are whole models, for tests and benchmarks: the base model with every weight a little off.

As in `engine_adapters.py` the reference is transformers in float32, independent of vLLM.
"""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from plaudit.wire.fingerprint import base_fingerprint, file_sha256
from plaudit.wire.training import TokenSequence
from plaudit.wire.versions import FileDigest, Manifest, Probe, ProbeSequence
from plaudit_server.engine.base import AdapterRef
from tests.support.engine_adapters import _response_logprobs, tensor_digest

SIZE = 0.02
"""Noise on each weight, as a share of the standard deviation of its tensor."""


def logprobs_of(model: Path, sequences: Sequence[TokenSequence]) -> list[list[float]]:
    """Log-probability of each response token, float32."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        return [_response_logprobs(loaded, s).tolist() for s in sequences]


def publish_whole(
    root: Path,
    base: Path,
    name: str,
    *,
    parent: AdapterRef | None,
    sequences: Sequence[TokenSequence],
    seed: int,
    size: float = SIZE,
) -> AdapterRef:
    """Write a version's folder: noise on the parent's weights, and the probe of both."""
    before = Path(parent.location) / "model" if parent else base
    folder = root / name
    model = folder / "model"
    model.mkdir(parents=True)
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, model / path.name)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        key: (t.float() + size * t.float().std() * torch.randn(t.shape, generator=generator)).to(t.dtype)
        for key, t in load_file(before / "model.safetensors").items()
    }
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    rows = zip(sequences, logprobs_of(before, sequences), logprobs_of(model, sequences), strict=True)
    probe = Probe(
        sequences=[
            ProbeSequence(prompt_ids=s.prompt_ids, response_ids=s.response_ids, parent_logprobs=p, new_logprobs=n)
            for s, p, n in rows
        ]
    )
    (folder / "probe.json").write_text(probe.model_dump_json(), encoding="utf-8")
    files = [path for path in folder.rglob("*") if path.is_file()]
    manifest = Manifest(
        kind="full",
        version=name,
        parent=parent.name if parent else "base",
        base_model="test",
        base_fingerprint=base_fingerprint(base),
        run_id="run-test",
        batch_ids=["batch-test"],
        created_at=datetime.now(UTC),
        files={str(p.relative_to(folder)): FileDigest(sha256=file_sha256(p), bytes=p.stat().st_size) for p in files},
        tensors={key: tensor_digest(tensor) for key, tensor in tensors.items()},
    )
    path = folder / "manifest.json"
    path.write_text(manifest.model_dump_json(), encoding="utf-8")
    return AdapterRef(name, manifest.parent, str(folder), file_sha256(path), "full")
