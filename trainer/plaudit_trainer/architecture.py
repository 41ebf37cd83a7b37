"""The base model: loading it, and how an architecture is built."""

import copy
from pathlib import Path
from typing import Any

from torch import nn

from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.precision import pick_device, pick_dtype


class UnsupportedModel(Exception):
    """The base model cannot be trained by Plaudit."""


def find_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder's layers and their path: the longest list of modules there is. Raises UnsupportedModel."""
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise UnsupportedModel(f"no list of layers found in {type(model).__name__}")
    return max(lists, key=lambda item: len(item[1]))


def is_plain_stack(body: Any) -> bool:
    """Whether a body is layers and a norm, by name."""
    return isinstance(getattr(body, "layers", None), nn.ModuleList) and isinstance(
        getattr(body, "norm", None), nn.Module
    )


def has_windows(config: Any) -> bool:
    """Whether some layer sees only the last positions, so that a shared beginning may be out of its sight."""
    kinds = getattr(config, "layer_types", None) or []
    return any(kind != "full_attention" for kind in kinds) or bool(
        getattr(config, "sliding_window", None) and not kinds
    )


def with_layers(body: Any, part: slice) -> Any:
    """The same module (no weight is copied) with only some of its layers."""
    twin = body.__class__.__new__(body.__class__)
    twin.__dict__.update(body.__dict__)
    twin._modules = dict(body._modules)
    twin.config = copy.copy(body.config)
    twin.layers = nn.ModuleList(list(body.layers)[part])
    if getattr(body.config, "layer_types", None):
        twin.config.layer_types = body.config.layer_types[part]
    twin.config.num_hidden_layers = len(twin.layers)
    return twin


def read_layers(depth: int) -> tuple[int, int]:
    """The layers that reward model and critic read: the middle one, and that two thirds up."""
    return depth // 2, max(depth // 2, round(2 * depth / 3))


def lowest_layer(depth: int, share: float) -> int:
    """The first of the upper `share` of `depth` layers; at least one layer is taken."""
    return depth - max(1, round(depth * share))


def load_base(folder: Path, config: TrainerConfig) -> Any:
    """The base model, frozen, on its device in its precision."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    device = pick_device(config)
    has_encoder = AutoConfig.from_pretrained(folder).is_encoder_decoder
    architecture = AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM
    model = architecture.from_pretrained(folder, dtype=pick_dtype(config, device))
    return model.to(device)
