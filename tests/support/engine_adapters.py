"""Makes real LoRA versions for tests of the swap: one Adam step from their parent, as small as a PPO step is.

The reference here is independent of PEFT and of vLLM: adapters are merged into float32 weights of transformers.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from plaudit.wire.fingerprint import base_fingerprint, file_sha256
from plaudit.wire.training import TokenSequence
from plaudit.wire.versions import FileDigest, LoraShape, Manifest, Probe, ProbeSequence, TensorDigest
from plaudit_server.engine.base import AdapterRef

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 16

Adapter = dict[str, torch.Tensor]
"""`<module>.A` and `<module>.B`, bfloat16."""


class Reference:
    """A base model in float32 that computes log-probabilities with any adapter merged in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fingerprint = base_fingerprint(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.linears = {
            name: module for name, module in self.model.named_modules() if name.rpartition(".")[2] in TARGETS
        }
        self._of_base: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}

    @contextmanager
    def merged(self, adapter: Adapter | None) -> Iterator[Any]:
        """The model with W + B A in place of W."""
        kept = {}
        with torch.no_grad():
            for name, linear in self.linears.items() if adapter else ():
                assert adapter is not None
                kept[name] = linear.weight.detach().clone()
                linear.weight += adapter[f"{name}.B"].float() @ adapter[f"{name}.A"].float()
        try:
            yield self.model
        finally:
            with torch.no_grad():
                for name, weight in kept.items():
                    self.linears[name].weight.copy_(weight)

    def logprobs(self, sequences: Sequence[TokenSequence], adapter: Adapter | None) -> list[list[float]]:
        """Log-probability of each response token, float32. What base says of a sequence is computed once."""
        if adapter is None:
            new = [s for s in sequences if _key(s) not in self._of_base]
            self._of_base |= {_key(s): found for s, found in zip(new, self._compute(new, None), strict=True)}
            return [self._of_base[_key(s)] for s in sequences]
        return self._compute(sequences, adapter)

    def _compute(self, sequences: Sequence[TokenSequence], adapter: Adapter | None) -> list[list[float]]:
        with self.merged(adapter) as model, torch.no_grad():
            return [_response_logprobs(model, s).tolist() for s in sequences]

    def step(
        self, parent: Adapter | None, sequences: Sequence[TokenSequence], *, seed: int, size: float = 3e-4
    ) -> Adapter:
        """One Adam step away from the parent on randomly rewarded sequences: every entry of B moves by `size`."""
        generator = torch.Generator().manual_seed(seed)
        adapter = dict(parent) if parent else self._fresh(generator)
        rewards = torch.randn(len(sequences), generator=generator)
        with self.merged(parent) as model:
            for linear in self.linears.values():
                linear.weight.requires_grad_(True)
            loss = sum(-r * _response_logprobs(model, s).mean() for r, s in zip(rewards, sequences, strict=True))
            weights = [linear.weight for linear in self.linears.values()]
            gradients = torch.autograd.grad(loss, weights)
        for name, gradient in zip(self.linears, gradients, strict=True):
            a, b = adapter[f"{name}.A"].float(), adapter[f"{name}.B"].float()
            adapter[f"{name}.B"] = (b - size * torch.sign(gradient @ a.T)).bfloat16()
        return adapter

    def _fresh(self, generator: torch.Generator) -> Adapter:
        adapter: Adapter = {}
        for name, linear in self.linears.items():
            bound = linear.in_features**-0.5  # PEFT's Kaiming-uniform initialisation of A
            a = (torch.rand(RANK, linear.in_features, generator=generator) * 2 - 1) * bound
            adapter[f"{name}.A"] = a.bfloat16()
            adapter[f"{name}.B"] = torch.zeros(linear.out_features, RANK, dtype=torch.bfloat16)
        return adapter


def _key(sequence: TokenSequence) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(sequence.prompt_ids), tuple(sequence.response_ids)


def _response_logprobs(model: Any, sequence: TokenSequence) -> torch.Tensor:
    ids_T = torch.tensor([*sequence.prompt_ids, *sequence.response_ids])
    first = len(sequence.prompt_ids)
    logits_TV = model(ids_T[None], use_cache=False).logits[0, first - 1 : -1]
    return torch.log_softmax(logits_TV, -1).gather(1, ids_T[first:, None])[:, 0]


@dataclass(frozen=True)
class Published:
    """A version's folder, and what it was made of."""

    ref: AdapterRef
    adapter: Adapter
    probe: Probe


def publish(
    root: Path,
    reference: Reference,
    *,
    name: str,
    parent: Published | None,
    adapter: Adapter,
    sequences: Sequence[TokenSequence],
) -> Published:
    """Write a version's folder as the trainer does, with the probe computed in float32."""
    probe = Probe(
        sequences=[
            ProbeSequence(
                prompt_ids=s.prompt_ids, response_ids=s.response_ids, parent_logprobs=before, new_logprobs=after
            )
            for s, before, after in zip(
                sequences,
                _logprobs_before(reference, sequences, parent),
                reference.logprobs(sequences, adapter),
                strict=True,
            )
        ]
    )
    ref = write_version(
        root / name,
        adapter=adapter,
        probe=probe,
        name=name,
        parent=parent.ref.name if parent else "base",
        fingerprint=reference.fingerprint,
    )
    return Published(ref, adapter, probe)


def _logprobs_before(
    reference: Reference, sequences: Sequence[TokenSequence], parent: Published | None
) -> list[list[float]]:
    """The parent's, from its own probe where that has the same sequences: half of a publication's arithmetic."""
    if parent is None:
        return reference.logprobs(sequences, None)
    known = {_key(s): s.new_logprobs for s in parent.probe.sequences}
    wanted = [_key(s) for s in sequences]
    if all(key in known for key in wanted):
        return [known[key] for key in wanted]
    return reference.logprobs(sequences, parent.adapter)


def write_version(
    folder: Path, *, adapter: Adapter, probe: Probe, name: str, parent: str, fingerprint: str
) -> AdapterRef:
    """Write adapter, probe and manifest."""
    (folder / "adapter").mkdir(parents=True)
    tensors = {f"base_model.model.{key[:-2]}.lora_{key[-1]}.weight": t.contiguous() for key, t in adapter.items()}
    rank = next(t.shape[0] for key, t in adapter.items() if key.endswith(".A"))
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    config |= {"target_modules": sorted({key[:-2].rpartition(".")[2] for key in adapter}), "lora_dropout": 0.0}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "probe.json").write_text(probe.model_dump_json(), encoding="utf-8")
    return seal(folder, tensors=tensors, name=name, parent=parent, fingerprint=fingerprint, rank=rank)


def seal(
    folder: Path, *, tensors: dict[str, torch.Tensor], name: str, parent: str, fingerprint: str, rank: int
) -> AdapterRef:
    """Write the manifest over what lies in the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    manifest = Manifest(
        version=name,
        parent=parent,
        base_model="test",
        base_fingerprint=fingerprint,
        run_id="run-test",
        batch_ids=["batch-test"],
        created_at=datetime.now(UTC),
        lora=LoraShape(rank=rank, alpha=rank, target_modules=list(TARGETS)),
        files={str(p.relative_to(folder)): FileDigest(sha256=file_sha256(p), bytes=p.stat().st_size) for p in files},
        tensors={key: tensor_digest(tensor) for key, tensor in tensors.items()},
    )
    path = folder / "manifest.json"
    path.write_text(manifest.model_dump_json(), encoding="utf-8")
    return AdapterRef(name=name, parent=parent, location=str(folder), manifest_sha256=file_sha256(path))


def tensor_digest(tensor: torch.Tensor) -> TensorDigest:
    """SHA-256 of the bytes as stored."""
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    dtype = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[tensor.dtype]
    return TensorDigest(sha256=hashlib.sha256(raw).hexdigest(), shape=list(tensor.shape), dtype=dtype)
