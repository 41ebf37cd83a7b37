"""What prompts begin with alike is computed once, and nothing else changes."""

import pytest
import torch

from plaudit_trainer import shared_prefix
from plaudit_trainer.models import POLICY, Backbone, Encoded, Exchange
from plaudit_trainer.rollouts import draw_unpublished
from tests.support.tiny_models import END, stir, tiny_backbone, tiny_gpt2, tiny_llama

TEMPLATE = tuple(5 + i % 40 for i in range(33))
EXCHANGES = [
    Exchange((*TEMPLATE, 6, 7), (8, 9, END)),
    Exchange((*TEMPLATE, 50), (10, END, END, 11)),
    Exchange((*TEMPLATE, 12, 13, 14, 15, 16, 17), (18,)),
    Exchange((*TEMPLATE, 50), (21, 22, 23, 24, 25)),
]


def alone(backbone: Backbone) -> Backbone:
    """The same, row by row: nothing is shared."""
    backbone.shares_prefixes = False
    return backbone


def close(a: torch.Tensor | None, b: torch.Tensor | None) -> None:
    assert a is not None and b is not None
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_length_is_what_all_begin_with_less_one_token() -> None:
    assert shared_prefix.length([e.prompt_ids for e in EXCHANGES]) == 33
    assert shared_prefix.length([TEMPLATE * 4] * 3) == 4 * 33 - 1, "the last prompt token is each row's own"
    assert shared_prefix.length([(1, *TEMPLATE * 4), (2, *TEMPLATE * 4)]) == 0


def test_little_is_not_worth_sharing() -> None:
    assert shared_prefix.length([TEMPLATE]) == 0
    assert shared_prefix.length([(5, 6, 7, 8), (5, 6, 7, 9)]) == 0


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_features_and_trunk_are_the_same(cut: int) -> None:
    shared, plain = tiny_backbone(cut=cut), alone(tiny_backbone(cut=cut))
    for a, b in zip(shared.encode(EXCHANGES), plain.encode(EXCHANGES), strict=True):
        assert isinstance(a, Encoded)
        close(a.trunk_TD, b.trunk_TD)
        close(a.prefix_TF, b.prefix_TF)
        close(a.context_D, b.context_D)


@pytest.mark.parametrize("adapter", [None, POLICY])
def test_logprobs_are_the_same(adapter: str | None) -> None:
    shared, plain = tiny_backbone(), alone(tiny_backbone())
    got = []
    for backbone in (shared, plain):
        stir(backbone, POLICY)
        with backbone.using(adapter):
            got.append(backbone.all_logprobs(backbone.encode(EXCHANGES), [0.7, 1.0, 1.3, 1.0]))
    for a, b in zip(*got, strict=True):
        close(a, b)


def test_the_gradient_flows_through_what_is_shared() -> None:
    gradients = []
    for backbone in (tiny_backbone(), alone(tiny_backbone())):
        stir(backbone, POLICY)
        with backbone.using(POLICY):
            backbone.logprobs(backbone.encode(EXCHANGES), [1.0] * 4).square().sum().backward()
        gradients.append([w.grad for w in backbone.adapter(POLICY).values()])
    for a, b in zip(*gradients, strict=True):
        assert a is not None and b is not None and a.any()
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_fewer_positions_are_computed() -> None:
    backbone, seen = tiny_backbone(), []
    backbone.layers()[-1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args or (kwargs["hidden_states"],))[0].shape[:2].numel()), with_kwargs=True
    )
    with torch.no_grad():
        encoded = backbone.encode(EXCHANGES)
        seen.clear()
        backbone.states(encoded)
        once = sum(seen)
        seen.clear()
        alone(backbone).states(encoded)
    assert once < sum(seen) / 2


def test_answers_are_drawn_as_if_nothing_were_shared() -> None:
    prompts = [e.prompt_ids for e in EXCHANGES]
    drawn, positions = [], []
    for backbone in (tiny_backbone(), alone(tiny_backbone())):
        stir(backbone, POLICY)
        seen: list[int] = []
        backbone.layers()[-1].register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append((args or (kwargs["hidden_states"],))[0].shape[:2].numel()),
            with_kwargs=True,
        )
        drawn.append(draw_unpublished(backbone, prompts, max_new_tokens=6, temperature=1.0, seed=3))
        positions.append(sum(seen))
    for (shared, its), (plain, others) in zip(*drawn, strict=True):
        assert shared == plain
        close(torch.tensor(its), torch.tensor(others))
    assert positions[0] < positions[1] - 2 * len(TEMPLATE)


def test_who_cannot_share_does_not() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    assert tiny_backbone(tiny_llama()).shares_prefixes
    assert not tiny_backbone(tiny_gpt2(), cut=1).shares_prefixes, "it is run whole"
    shape = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    windowed = MistralForCausalLM(shape)
    assert not tiny_backbone(windowed).shares_prefixes, "late positions do not see the beginning"
    checkpointed = tiny_backbone()
    checkpointed.checkpoint_layers()
    assert not checkpointed.shares_prefixes
