"""Attention over short sequences on a processor, as two batched matrix products.

PyTorch's own kernel for the CPU (2.13) is made for long sequences. Over a hundred positions its backward pass takes
four to five times as long as the products here (53 against 13 ms for 16 rows, 9 heads, 102 positions, bfloat16, one
thread), and for one query a row, which is what every drawn token costs, its forward pass fifteen times (12.2 against
0.8 ms for 128 rows). From some 500 positions on it is the faster one, and the one that needs less memory.

Shapes: B rows, H heads, G heads that share keys and values, T queries, K keys, D a head.
"""

from typing import Any

import torch
from torch import Tensor

LONGEST = 256
"""Queries a row up to which the products are used: above, their scores would take memory and win no time."""

_NAME = "plaudit_short"


def install(model: Any) -> None:
    """Let a model attend by the products where they are faster.

    Nothing changes on a GPU, beside an encoder (T5 adds biases of its own), or where the attention is not PyTorch's.
    """
    if model.device.type != "cpu" or model.config.is_encoder_decoder or model.config._attn_implementation != "sdpa":
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The interface of `transformers.integrations.sdpa_attention`, which gets all that is long or out of the way."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    out_of_the_way = any(more.get(name) is not None for name in ("position_bias", "cache")) or more.get("dropout")
    if query.shape[2] > LONGEST or out_of_the_way:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        answer: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **more
        )
        return answer
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask, scaling=scaling, causal=causal), None


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, causal: bool = True
) -> Tensor:
    """(B, T, H, D): softmax(query · keyᵀ · scaling) · value.

    Args:
        query: (B, H, T, D).
        key: (B, H / G, K, D), not repeated for the heads that share it.
        value: as `key`.
        mask: (B or 1, 1, T, K), True or 0 where a position is seen, False or a large negative number where not.
        scaling: of the products of query and key.
        causal: without a mask, the last query sees all keys, the one before it all but the last, and so on.
    """
    rows, heads, queries, width = query.shape
    sharing, keys = key.shape[1], key.shape[2]
    query_BHND = (query * scaling).reshape(rows, sharing, heads // sharing * queries, width)
    score_BHGTK = (query_BHND @ key.transpose(-1, -2)).view(rows, sharing, -1, queries, keys)
    if mask is None and causal and queries > 1:
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    if mask is not None and mask.dtype == torch.bool:
        # Not −∞: a padding position sees nothing, and its NaN would reach all who look past it in the next layer.
        score_BHGTK = score_BHGTK.masked_fill(~mask[:, :, None], torch.finfo(query.dtype).min)
    elif mask is not None:
        score_BHGTK = score_BHGTK + mask[:, :, None]
    weight_BHNK = torch.softmax(score_BHGTK, dim=-1).view(rows, sharing, -1, keys)
    return (weight_BHNK @ value).view(rows, heads, queries, width).transpose(1, 2).contiguous()
