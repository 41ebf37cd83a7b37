"""What all prompts of a pass begin with (template, system prompt) is computed once, not once an answer.

Keys and values of the shared positions are the same in every row, and causal attention lets nothing behind them change
them. Gradients flow through them as through any others. Shapes: B rows, H heads, T positions, K per head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

WORTHWHILE = 64
"""Positions that must be saved; below, a pass of its own costs more than it spares."""


class _Shared(DynamicLayer):
    """One layer's keys and values: the first call's are kept, later calls see them before their own."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The kept ones, then these: (B, H, T, K) each."""
        if not self.is_initialized:
            kept: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return kept
        rows = len(key_states)
        before = self.keys.expand(rows, -1, -1, -1), self.values.expand(rows, -1, -1, -1)
        return torch.cat([before[0], key_states], dim=-2), torch.cat([before[1], value_states], dim=-2)


def length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts begin with, less at least one that is left to each; 0 where sharing is not worthwhile."""
    longest = min(map(len, prompts)) - 1
    first, last = min(prompts), max(prompts)  # in the order of tuples, all others lie between these two
    shared = next((i for i in range(max(0, longest)) if first[i] != last[i]), max(0, longest))
    return shared if shared * (len(prompts) - 1) >= WORTHWHILE else 0


def run(body: Any, head: dict[str, Tensor], rest: dict[str, Tensor], *, depth: int, lowest: int, **more: Any) -> Any:
    """(output of the one row `head`, output of the rows `rest` that go on from it).

    Args:
        head: `input_ids` or `inputs_embeds` of the shared positions.
        rest: the same of each row's further positions, padded on the right.
        depth: layers of the whole model.
        lowest: index of the body's first layer in it.
    """
    shared = [_Shared() for _ in range(depth - lowest)]
    # Layers know their place in the whole model, and the body asks place 0 how many positions came before.
    cache = Cache(layers=[shared[0]] * lowest + shared)
    first = body(**head, past_key_values=cache, use_cache=True, **more)
    return first, body(**rest, past_key_values=cache, use_cache=True, **more)


@torch.no_grad()
def cache(model: Any, ids: Sequence[int], rows: int) -> DynamicCache:
    """Keys and values of these first tokens, for so many rows to go on from in `generate`."""
    ids_1P = torch.tensor([list(ids)], device=model.device)
    kept: DynamicCache = model.base_model(input_ids=ids_1P, use_cache=True).past_key_values
    kept.batch_repeat_interleave(rows)
    return kept
