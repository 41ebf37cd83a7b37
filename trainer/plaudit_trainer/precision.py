"""Which device to compute on, and in which precision."""

import functools
import time

import torch

from plaudit_trainer.config import TrainerConfig

_ROWS, _IN, _OUT = 256, 576, 1536
"""A layer of a small model, for a minibatch: some milliseconds in either precision."""
_TRIES = 5


def pick_device(config: TrainerConfig) -> torch.device:
    """The configured device; auto takes a GPU where there is one."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def pick_dtype(config: TrainerConfig, device: torch.device) -> torch.dtype:
    """The configured precision; auto takes bfloat16 on a GPU, and on a CPU that multiplies faster in it."""
    if config.precision != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.precision]
    return torch.bfloat16 if device.type == "cuda" or bfloat16_is_faster() else torch.float32


def decided(config: TrainerConfig) -> TrainerConfig:
    """The configuration with `precision` said outright, for processes that share a run: their CPUs may be unlike."""
    dtype = pick_dtype(config, pick_device(config))
    return config.model_copy(update={"precision": "bfloat16" if dtype == torch.bfloat16 else "float32"})


@functools.cache
def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16 than in float32. Measured once a process.

    That it has instructions for it says nothing: an Intel Xeon whose tiles (AMX) a virtual machine hides still has
    AVX-512's, which reach half to two thirds of float32's rate (docs/explanation/experiments.md).
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    seconds = {dtype: float("inf") for dtype in (torch.bfloat16, torch.float32)}
    for _ in range(_TRIES):  # in turns, and the best of each: whatever else runs here disturbs both alike
        for dtype, best in seconds.items():
            seconds[dtype] = min(best, _multiplying(dtype))
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _multiplying(dtype: torch.dtype) -> float:
    """Seconds for one product."""
    rows_BD, weight_OD = torch.ones(_ROWS, _IN, dtype=dtype), torch.ones(_OUT, _IN, dtype=dtype)
    began = time.perf_counter()
    torch.nn.functional.linear(rows_BD, weight_OD)
    return time.perf_counter() - began
