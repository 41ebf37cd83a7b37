"""CPU LoRA for vLLM, grouped by adapter. Replaces the torch functions of one tested vLLM version; else stock stays.

Stock `lora/ops/torch_ops/lora_ops.py` copies an adapter's matrices once per token before it multiplies, which costs
most of the throughput of a busy engine. It also takes the slot number −1, which means "no adapter", as an index: in
a batch that mixes base and adapters, the base's tokens get whatever lies in the last slot. Here rows are gathered by
adapter, each adapter is multiplied once, and rows without one are left alone.
"""

# ruff: noqa: PLR0917  # the signatures are vLLM's

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TESTED = ("0.32.0",)
"""Versions of vLLM whose functions these replace; a test compares them with the stock ones."""

_log = logging.getLogger("vllm.plaudit")  # below vLLM's own logger, so that it reaches the engine's log


def install() -> bool:
    """Put these functions in place of vLLM's, in this process. Returns whether it was done."""
    from vllm.platforms import current_platform
    from vllm.version import __version__

    if not current_platform.is_cpu():
        return False
    if __version__.partition("+")[0] not in TESTED:
        _log.warning("Plaudit's CPU LoRA kernel was not tested with vLLM %s; the stock one is used", __version__)
        return False
    from vllm.lora.punica_wrapper import punica_cpu

    for function in (sgmv_shrink, sgmv_expand, sgmv_expand_slice, bgmv_shrink, bgmv_expand, bgmv_expand_slice):
        setattr(punica_cpu, function.__name__, function)
    _log.info("Plaudit's CPU LoRA kernel is in place")
    return True


def sgmv_shrink(
    inputs: "torch.Tensor",
    lora_a_weights: "torch.Tensor",
    output_tensor: "torch.Tensor",
    b_seq_start_loc: "torch.Tensor",
    seq_len_tensor: "torch.Tensor",
    lora_indices_tensor: "torch.Tensor",
    batches: int,
    max_seq_length: int,
    token_nums: int,
    scaling: float,
) -> None:
    """output[:, :r] = scaling · inputs Aᵀ, for runs of tokens of one adapter each."""
    _shrink(inputs, lora_a_weights, output_tensor, _of_runs(lora_indices_tensor, seq_len_tensor), scaling)


def bgmv_shrink(
    inputs: "torch.Tensor",
    lora_b_weights: "torch.Tensor",
    output_tensor: "torch.Tensor",
    lora_indices_tensor: "torch.Tensor",
    scaling: float = 1.0,
) -> None:
    """As `sgmv_shrink`, with an adapter's slot for each token."""
    _shrink(inputs, lora_b_weights, output_tensor, _of_tokens(lora_indices_tensor), scaling)


def sgmv_expand(
    inputs: "torch.Tensor",
    lora_b_weights: "torch.Tensor",
    output_tensor: "torch.Tensor",
    b_seq_start_loc: "torch.Tensor",
    seq_len_tensor: "torch.Tensor",
    lora_indices_tensor: "torch.Tensor",
    batches: int,
    max_seq_length: int,
    token_nums: int,
    add_inputs: bool = False,
) -> None:
    """output (+)= inputs Bᵀ, for runs of tokens of one adapter each."""
    width = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    rows = _of_runs(lora_indices_tensor, seq_len_tensor)
    _expand(inputs, lora_b_weights, output_tensor[:, :width], rows, add=add_inputs)


def bgmv_expand(
    inputs: "torch.Tensor",
    lora_b_weights: "torch.Tensor",
    output_tensor: "torch.Tensor",
    lora_indices_tensor: "torch.Tensor",
    add_inputs: bool = True,
) -> None:
    """As `sgmv_expand`, with an adapter's slot for each token."""
    width = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    _expand(inputs, lora_b_weights, output_tensor[:, :width], _of_tokens(lora_indices_tensor), add=add_inputs)


def sgmv_expand_slice(
    inputs: "torch.Tensor",
    lora_b_weights: "torch.Tensor",
    output_tensor: "torch.Tensor",
    b_seq_start_loc: "torch.Tensor",
    seq_len_tensor: "torch.Tensor",
    lora_indices_tensor: "torch.Tensor",
    batches: int,
    max_seq_length: int,
    token_nums: int,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = False,
) -> None:
    """As `sgmv_expand`, into some columns of the output: q, k and v share one."""
    into = output_tensor[:, slice_offset : slice_offset + slice_size]
    _expand(inputs, lora_b_weights, into, _of_runs(lora_indices_tensor, seq_len_tensor), add=add_inputs)


def bgmv_expand_slice(
    inputs: "torch.Tensor",
    lora_b_weights: "torch.Tensor",
    output_tensor: "torch.Tensor",
    lora_indices_tensor: "torch.Tensor",
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """As `sgmv_expand_slice`, with an adapter's slot for each token."""
    into = output_tensor[:, slice_offset : slice_offset + slice_size]
    _expand(inputs, lora_b_weights, into, _of_tokens(lora_indices_tensor), add=add_inputs)


Rows = Mapping[int, "torch.Tensor | None"]
"""For each adapter's slot its tokens' places; None: all tokens are its own. Tokens without adapter are in none."""


def _of_runs(slots: "torch.Tensor", lengths: "torch.Tensor") -> Rows:
    return _rows(tuple(slots.tolist()), tuple(lengths.tolist()))


def _of_tokens(slots: "torch.Tensor") -> Rows:
    return _rows(tuple(slots.tolist()), None)


@functools.lru_cache(maxsize=8)
def _rows(slots: tuple[int, ...], lengths: tuple[int, ...] | None) -> Rows:
    """One step of the engine asks for the same rows hundreds of times, in every layer: hence the cache."""
    import torch

    if len(set(slots)) == 1:
        return {slots[0]: None} if slots[0] >= 0 else {}
    slots_T = torch.tensor(slots)
    if lengths is not None:
        slots_T = torch.repeat_interleave(slots_T, torch.tensor(lengths))
    return {slot: torch.nonzero(slots_T == slot)[:, 0] for slot in sorted(set(slots)) if slot >= 0}


def _shrink(
    inputs: "torch.Tensor", weights: "torch.Tensor", output: "torch.Tensor", rows: Rows, scaling: float
) -> None:
    rank = weights.shape[-2]
    into = output[:, :rank]
    if not (len(rows) == 1 and None in rows.values()):
        into.zero_()
    for slot, places in rows.items():
        a = weights[slot].reshape(rank, -1).to(output.dtype)
        chosen = inputs if places is None else inputs[places]
        product = scaling * (chosen.to(output.dtype) @ a.T)
        if places is None:
            into.copy_(product)
        else:
            into[places] = product


def _expand(inputs: "torch.Tensor", weights: "torch.Tensor", into: "torch.Tensor", rows: Rows, *, add: bool) -> None:
    for slot, places in rows.items():
        b = weights[slot].reshape(weights.shape[-2], -1)[: into.shape[1]].to(into.dtype)
        chosen = inputs if places is None else inputs[places]
        product = chosen.to(into.dtype) @ b.T
        if places is None:
            into.add_(product) if add else into.copy_(product)
        elif add:
            into.index_add_(0, places, product)
        else:
            into[places] = product
