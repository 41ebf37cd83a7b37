"""The products that stand in for PyTorch's attention: the same numbers, the same gradients, the same models."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (as all of PyTorch calls it)

from plaudit_trainer import short_attention
from plaudit_trainer.short_attention import LONGEST, attend
from tests.support.tiny_models import tiny_gpt2, tiny_llama


def _inputs(groups: int, queries: int, keys: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries)
    shapes = [(5, 2 * groups, queries, 8), (5, 2, keys, 8), (5, 2, keys, 8)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def _pytorchs(given: list[Tensor], mask: Tensor | None, *, causal: bool = False) -> Tensor:
    query, key, value = given
    groups = query.shape[1] // key.shape[1]
    repeated = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, *repeated, attn_mask=mask, is_causal=causal, scale=0.3)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (4, 7), (7, 7)])
@pytest.mark.parametrize("kind", ["seen", "added"])
def test_values_and_gradients_are_pytorchs(groups: int, queries: int, keys: int, kind: str) -> None:
    seen = torch.rand(5, 1, queries, keys, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[..., 0] = True
    mask = seen if kind == "seen" else torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    ours, theirs = _inputs(groups, queries, keys), _inputs(groups, queries, keys)
    found, expected = attend(*ours, mask, scaling=0.3), _pytorchs(theirs, mask).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-5)


def test_without_a_mask_no_query_sees_what_comes_after_it() -> None:
    given = _inputs(3, 6, 6)
    expected = _pytorchs(given, None, causal=True).transpose(1, 2)
    torch.testing.assert_close(attend(*given, None, scaling=0.3), expected, rtol=1e-5, atol=1e-6)
    everything = _pytorchs(given, None).transpose(1, 2)
    torch.testing.assert_close(attend(*given, None, scaling=0.3, causal=False), everything, rtol=1e-5, atol=1e-6)


def test_a_padding_position_that_sees_nothing_stays_finite() -> None:
    given = _inputs(1, 3, 3)
    mask = torch.ones(3, 3, dtype=torch.bool).tril()[None, None].clone()
    mask[..., 0, :] = False
    assert attend(*given, mask, scaling=0.3).isfinite().all()


@pytest.mark.parametrize(("make", "length"), [(tiny_llama, 12), (tiny_llama, LONGEST + 4), (tiny_gpt2, 12)])
def test_a_model_computes_what_it_did(make, length: int) -> None:
    model, changed = make(), make()
    short_attention.install(changed)
    assert changed.config._attn_implementation != model.config._attn_implementation == "sdpa"
    ids_BT = torch.randint(3, 60, (3, length), generator=torch.Generator().manual_seed(3))
    seen_BT = torch.ones_like(ids_BT)
    seen_BT[1, :5] = 0  # padded on the left, as for `generate`
    with torch.no_grad():
        before = model(input_ids=ids_BT, attention_mask=seen_BT).logits
        after = changed(input_ids=ids_BT, attention_mask=seen_BT).logits
    torch.testing.assert_close(after[seen_BT.bool()], before[seen_BT.bool()], rtol=1e-4, atol=1e-4)
