"""CPU LoRA for vLLM, all adapters of a step at once. Replaces one method of one tested vLLM version; else stock stays.

Stock `lora/ops/torch_ops/lora_ops.py` copies an adapter's matrices once per token before it multiplies, which costs
most of the throughput of a busy engine. It also takes the slot number −1, which means "no adapter", as an index: in
a batch that mixes base and adapters, the base's tokens get whatever lies in the last slot.

Here every token is multiplied by the A of all adapters in the step, what is not its own is set to zero, and one
multiplication by the B side by side adds the rest up. With S adapters that is S times the arithmetic of LoRA, which
is 4 % of the model's at rank 16, in a fraction of the calls: a CPU's steps are short, and what costs there is the call.
"""

# ruff: noqa: PLR0917  # the signature is vLLM's

import functools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TESTED = ("0.32.0",)
"""Versions of vLLM whose method this replaces; a test compares it with the stock one."""

_log = logging.getLogger("vllm.plaudit")  # below vLLM's own logger, so that it reaches the engine's log


def install() -> bool:
    """Put this in place of vLLM's, in this process. Returns whether it was done."""
    from vllm.platforms import current_platform
    from vllm.version import __version__

    if not current_platform.is_cpu():
        return False
    if __version__.partition("+")[0] not in TESTED:
        _log.warning("Plaudit's CPU LoRA kernel was not tested with vLLM %s; the stock one is used", __version__)
        return False
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    PunicaWrapperCPU.add_lora_linear = add_lora_linear
    _log.info("Plaudit's CPU LoRA kernel is in place")
    return True


def add_lora_linear(
    self: Any,
    y: "torch.Tensor",
    x: "torch.Tensor",
    lora_a_stacked: "tuple[torch.Tensor, ...]",
    lora_b_stacked: "tuple[torch.Tensor, ...]",
    scale: float,
    output_slices: tuple[int, ...],
    **_unused: Any,
) -> None:
    """y[:, slice] += scale · x Aᵀ Bᵀ, each token by its own adapter's A and B. Tokens without one are left alone.

    Shapes: x [tokens, in], y [tokens, sum of slices]; a slice's A [slots, 1, rank, in] and B [slots, 1, slice, rank].
    """
    step = _step_of(tuple(self.token_lora_indices.tolist()))
    if step is None:
        return
    x_TI, y_TO = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    left = 0
    for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
        a_SRI, b_SOR = a[step.slots, 0], b[step.slots, 0]
        h_TSR = (x_TI @ a_SRI.flatten(0, 1).T).unflatten(1, a_SRI.shape[:2])
        if step.not_own_TS1 is not None:
            h_TSR.masked_fill_(step.not_own_TS1, 0)  # and not times 0: nothing of another's adapter, NaN neither
        y_TO.narrow(1, left, width).addmm_(h_TSR.flatten(1), b_SOR.transpose(1, 2).flatten(0, 1), alpha=scale)
        left += width


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers of one step share."""

    slots: "slice | torch.Tensor"
    """The adapters that take part; a slice where that spares copying their A."""
    not_own_TS1: "torch.Tensor | None"
    """For each token the adapters that are not its own; None: there is one, and it is everyone's."""


@functools.lru_cache(maxsize=8)
def _step_of(slots: tuple[int, ...]) -> _Step | None:
    """Who takes part, from each token's slot. A step asks for it in every layer: hence the cache."""
    import torch

    used = sorted({slot for slot in slots if slot >= 0})
    if not used:
        return None
    span = range(used[0], used[-1] + 1)
    chosen = list(span) if len(span) <= 2 * len(used) else used
    mine_TS = torch.tensor(slots)[:, None] == torch.tensor(chosen)
    return _Step(
        slots=slice(span.start, span.stop) if chosen == list(span) else torch.tensor(chosen),
        not_own_TS1=None if bool(mine_TS.all()) else ~mine_TS[:, :, None],
    )
