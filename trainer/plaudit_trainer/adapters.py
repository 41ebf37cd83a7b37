"""A version's policy on disk: a PEFT LoRA adapter that vLLM loads, and the probe that proves it live.

What is published is what is measured: weights are rounded to bfloat16, the type they are stored in, before the
probe's log-probabilities are computed.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plaudit.wire.versions import LoraShape, Probe, ProbeSequence
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange
from plaudit_trainer.seq2seq import Seq2SeqBackbone

_PREFIX = "base_model.model."
_LAYER = re.compile(r"\.(\d+)\.")
ENGINE_NOISE = 0.09
"""Standard deviation (nats) of served minus trained change a token: bf16 rounding of two passes of the engine."""


class MalformedAdapter(Exception):
    """The folder holds no adapter that fits this base model."""


def read_shape(folder: Path) -> LoraShape:
    """The geometry of a saved adapter."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return LoraShape(rank=config["r"], alpha=config["lora_alpha"], target_modules=sorted(config["target_modules"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MalformedAdapter(f"{folder}: {error!r}. Publish the version again or start from another") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A saved adapter's weights, float32, by module path less PEFT's prefix."""
    shape = read_shape(folder)
    if shape.alpha != shape.rank:
        raise MalformedAdapter(
            f"{folder}: alpha {shape.alpha} differs from rank {shape.rank}; Plaudit keeps them equal"
        )
    weights = load_file(folder / "adapter_model.safetensors")
    return {name.removeprefix(_PREFIX): tensor.float() for name, tensor in weights.items()}


def lowest_adapted_layer(weights: dict[str, Tensor]) -> int:
    """The lowest layer that an adapter changes."""
    return min(int(found.group(1)) for name in weights if (found := _LAYER.search(name)))


def write_into(backbone: Backbone, name: str, weights: dict[str, Tensor]) -> None:
    """Set an adapter's weights; layers that `weights` lacks keep theirs.

    Raises:
        MalformedAdapter: a weight has no place in this model, or another shape.
    """
    places = backbone.adapter(name)
    with torch.no_grad():
        for path, weight in weights.items():
            if path not in places or places[path].shape != weight.shape:
                raise MalformedAdapter(f"{path} with shape {list(weight.shape)} does not fit the base model")
            places[path].copy_(weight)


def round_to_stored(backbone: Backbone, name: str) -> None:
    """Round an adapter to bfloat16, in place: from here on it is what `save` writes."""
    with torch.no_grad():
        for weight in backbone.adapter(name).values():
            weight.copy_(weight.bfloat16())


def save(backbone: Backbone, name: str, folder: Path, base_model: str) -> LoraShape:
    """Write an adapter as PEFT does: bfloat16 safetensors, alpha = rank."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {path: w.detach().bfloat16().cpu().contiguous() for path, w in backbone.adapter(name).items()}
    save_file(
        {_PREFIX + path: w for path, w in weights.items()}, folder / "adapter_model.safetensors", {"format": "pt"}
    )
    rank = next(w.shape[0] for path, w in weights.items() if path.endswith("lora_A.weight"))
    shape = LoraShape(
        rank=rank, alpha=rank, target_modules=sorted({path.rpartition(".")[2] for path in backbone.linears})
    )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": backbone.transposed,
        "target_modules": shape.target_modules,
        "layers_to_transform": list(range(backbone.cut, backbone.depth)),
        "layers_pattern": backbone.layers_path.rpartition(".")[2],
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    if isinstance(backbone, Seq2SeqBackbone):
        config |= backbone.peft_placement()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return shape


def make_probe(
    backbone: Backbone, exchanges: Sequence[Exchange], config: TrainerConfig
) -> tuple[Probe, dict[str, float]]:
    """Log-probabilities (temperature 1) of POLICY and REFERENCE on the answers that tell them apart best.

    They are computed in the precision the engine serves in, because bfloat16 rounds a part of a small step away, here
    as there. Where that is not float32, the change in float32 goes along: the server's instrument against the noise.
    The backbone is left in the last precision used.

    Args:
        exchanges: candidates, the likeliest to differ first; they are measured until the slope can be told to ± 0.1 or
            the configured size is reached.

    Returns:
        The probe, and metrics: size, mean |Δ| (nats a token), the slope's expected half-width.
    """
    precision = engine_precision(backbone, config)
    backbone.to_precision(precision)
    sequences: list[ProbeSequence] = []
    tokens, energy, change = 0, 0.0, 0.0
    for start in range(0, len(exchanges), 8):
        part = exchanges[start : start + 8]
        for exchange, (before_R, after_R) in zip(part, _both(backbone, part), strict=True):
            sequences.append(_probe_sequence(exchange, before_R, after_R))
            delta_R = (after_R - before_R).double()
            tokens += len(delta_R)
            energy += (delta_R**2).sum().item()
            change += delta_R.abs().sum().item()
        enough = tokens >= config.probe_min_tokens and _half_width(energy) <= 0.1
        if enough or tokens >= config.probe_tokens or len(sequences) >= config.probe_sequences:
            break
    if precision != torch.float32:
        backbone.to_precision(torch.float32)
        pairs = _both(backbone, exchanges[: len(sequences)])
        for sequence, (before_R, after_R) in zip(sequences, pairs, strict=True):
            sequence.exact_change = (after_R - before_R).tolist()
    figures = {"sequences": len(sequences), "tokens": tokens, "mean_change": change / max(tokens, 1)}
    figures["slope_half_width"] = min(_half_width(energy), 1e6)
    return Probe(sequences=sequences), {f"probe/{k}": float(v) for k, v in figures.items()}


def engine_precision(backbone: Backbone, config: TrainerConfig) -> torch.dtype:
    """What the engine computes in, as configured; by default float32 on the CPU and bfloat16 on a GPU."""
    return precision_on(backbone.device.type, config)


def precision_on(device: str, config: TrainerConfig) -> torch.dtype:
    """As `engine_precision`, for a kind of device."""
    if config.probe_precision == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.probe_precision]


def _both(backbone: Backbone, exchanges: Sequence[Exchange]) -> list[tuple[Tensor, Tensor]]:
    """Log-probabilities of each exchange's response tokens under REFERENCE and under POLICY."""
    encoded, ones = backbone.encode(exchanges), [1.0] * len(exchanges)
    with backbone.using(REFERENCE):
        parent = backbone.all_logprobs(encoded, ones)
    with backbone.using(POLICY):
        new = backbone.all_logprobs(encoded, ones)
    return list(zip(parent, new, strict=True))


def _half_width(energy: float) -> float:
    """Of the 95 % interval of a slope through the origin, given Σ Δ²."""
    return 1.96 * ENGINE_NOISE / max(energy, 1e-12) ** 0.5


def _probe_sequence(exchange: Exchange, parent_R: Tensor, new_R: Tensor) -> ProbeSequence:
    return ProbeSequence(
        prompt_ids=list(exchange.prompt_ids),
        response_ids=list(exchange.response_ids),
        parent_logprobs=parent_R.tolist(),
        new_logprobs=new_R.tolist(),
    )
