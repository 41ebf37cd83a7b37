"""The discrete soft actor-critic: its loss, its values and its targets against what a few lines by hand give."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit_trainer.algorithms import sac
from plaudit_trainer.algorithms.base import Lesson
from plaudit_trainer.algorithms.soft_critic import Moments, SoftCritics, retrace
from plaudit_trainer.models import POLICY, REFERENCE, Backbone
from plaudit_trainer.rollouts import end_tokens
from tests.support.tiny_lessons import lesson_of
from tests.support.tiny_models import END, VOCABULARY, stir, tiny_backbone, tiny_config

HEAT = 0.7


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    return lesson_of(tiny_backbone(), Path(), Path(), tiny_config(), count=64)


def critics_of(lesson: Lesson, **changes: Any) -> SoftCritics:
    embeddings_VD = lesson.backbone.model.get_input_embeddings().weight.detach()
    return SoftCritics(lesson.judge, lesson.data.encoded, embeddings_VD, [END], tiny_config(**changes))


def q_by_hand(state_NJ: Tensor, end_NJ: Tensor, worth_VJ: Tensor) -> Tensor:
    """(N, V, J)."""
    ends_V = torch.nn.functional.one_hot(torch.tensor(END), VOCABULARY)
    return state_NJ[:, None] + worth_VJ + ends_V[None, :, None] * end_NJ[:, None]


# The policy's loss


def test_the_loss_and_its_gradient_are_exact_over_the_whole_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    states, width, alpha = 300, 8, 0.3  # more than two chunks
    hidden_ND, reference_ND, weight_VD = noise(states, width), noise(states, width), noise(VOCABULARY, width)
    state_NJ, end_NJ, worth_VJ = noise(states, 2), noise(states, 2), noise(VOCABULARY, 2)
    heat_N, tokens_N, pull_N = torch.full((states,), HEAT), torch.arange(states) % VOCABULARY, noise(states)

    ours_ND = hidden_ND.clone().requires_grad_(True)
    loss_N, kl_N, taken_N = sac._SoftPolicyLoss.apply(
        ours_ND, reference_ND, weight_VD, heat_N, state_NJ, end_NJ, worth_VJ, torch.tensor([END]), tokens_N, alpha
    )
    (loss_N * pull_N).sum().backward()

    plain_ND = hidden_ND.clone().requires_grad_(True)
    logprobs_NV = (plain_ND @ weight_VD.T / HEAT).log_softmax(-1)
    ratio_NV = logprobs_NV - (reference_ND @ weight_VD.T / HEAT).log_softmax(-1)
    smaller_NV = q_by_hand(state_NJ, end_NJ, worth_VJ).min(2).values
    expected_N = (logprobs_NV.exp() * (alpha * ratio_NV - smaller_NV)).sum(1)
    (expected_N * pull_N).sum().backward()

    torch.testing.assert_close(loss_N, expected_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kl_N, (logprobs_NV.exp() * ratio_NV).sum(1).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(taken_N, logprobs_NV.detach().gather(1, tokens_N[:, None])[:, 0])
    assert ours_ND.grad is not None and plain_ND.grad is not None
    torch.testing.assert_close(ours_ND.grad, plain_ND.grad, atol=1e-5, rtol=1e-4)


def test_no_padding_leaks_into_a_step(lesson: Lesson) -> None:
    """The loss of answers of unlike length in one pass is that of each on its own."""
    learner = sac._SoftActorCritic(lesson, tiny_config())
    learner.alpha = 0.1
    rows = sorted(range(16), key=lambda r: lesson.data.lengths[r])
    lengths = [lesson.data.lengths[r] for r in rows]
    assert lengths[0] < lengths[-1]
    whole = learner.accumulate(rows, lesson.data.reference)["loss"]
    alone = [learner.accumulate([r], lesson.data.reference)["loss"] for r in rows]
    parts = sum(n * loss for n, loss in zip(lengths, alone, strict=True))
    assert whole == pytest.approx(parts / sum(lengths), abs=1e-5)
    lesson.backbone.model.zero_grad()


# The critics


def test_q_is_one_number_for_each_token_whichever_way_it_is_asked(lesson: Lesson) -> None:
    """The taken token's Q from features equals that token's entry of the whole vocabulary's."""
    critics = critics_of(lesson)
    generator = torch.Generator().manual_seed(1)
    critics.weight_FJ = torch.randn(critics.weight_FJ.shape, generator=generator)
    q_NVJ = q_by_hand(critics.state(), critics.end(), critics.worth())
    tokens_N = torch.tensor([t for e in lesson.data.encoded for t in e.exchange.response_ids])
    assert (tokens_N == END).any()
    torch.testing.assert_close(q_NVJ[torch.arange(len(tokens_N)), tokens_N], critics.taken(), atol=1e-4, rtol=1e-4)


def test_values_are_the_smaller_expectation_less_the_kl(lesson: Lesson) -> None:
    backbone = lesson.backbone
    stir(backbone, POLICY, size=0.2)
    learner = sac._SoftActorCritic(lesson, tiny_config())
    chances_NV, kl_N = by_hand(backbone, lesson)
    generator = torch.Generator().manual_seed(2)
    learner.critics.weight_FJ = torch.randn(learner.critics.weight_FJ.shape, generator=generator)
    q_NVJ = q_by_hand(learner.critics.state(), learner.critics.end(), learner.critics.worth())
    expected_N = (chances_NV[:, :, None] * q_NVJ).sum(1).min(1).values - 0.4 * kl_N
    torch.testing.assert_close(learner.critics.values(learner.policy, 0.4), expected_N, atol=1e-3, rtol=1e-3)
    assert learner.kl == pytest.approx(kl_N.sum().item() / 64, rel=1e-3)
    backbone.copy_adapter(REFERENCE, POLICY)


@torch.no_grad()
def by_hand(backbone: Backbone, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """(N, V) of POLICY, and its KL to REFERENCE, from the model's own logits: no trunk, no chunks."""
    found = []
    for name in (POLICY, REFERENCE):
        rows = []
        for e in lesson.data.encoded:
            ids = torch.tensor([e.exchange.prompt_ids + e.exchange.response_ids])
            with backbone.using(name):
                logits_TV = backbone.model(input_ids=ids, use_cache=False).logits[0]
            rows.append(logits_TV[len(e.exchange.prompt_ids) - 1 : -1].log_softmax(-1))
        found.append(torch.cat(rows))
    policy_NV, reference_NV = found
    return policy_NV.exp(), (policy_NV.exp() * (policy_NV - reference_NV)).sum(1)


def test_retrace_in_numbers() -> None:
    """Three tokens; δ = (V₂ − Q₁, V₃ − Q₂, score − Q₃), carried back through c₂ and c₃."""
    value_R, trace_R = torch.tensor([9.0, 2.0, 3.0]), torch.tensor([9.0, 0.5, 0.8])
    taken_RJ = torch.tensor([[1.0, 0.0], [1.5, 0.0], [2.0, 0.0]])
    first = retrace(value_R, taken_RJ, trace_R, 5.0, 1.0)[:, 0]
    deltas = [2 - 1, 3 - 1.5, 5 - 2]
    expected = [1 + deltas[0] + 0.5 * (deltas[1] + 0.8 * deltas[2]), 1.5 + deltas[1] + 0.8 * deltas[2], 5.0]
    assert first.tolist() == pytest.approx(expected)
    assert retrace(value_R, taken_RJ, torch.ones(3), 5.0, 1.0)[-1].tolist() == [5.0, 5.0]


def test_on_policy_with_full_traces_and_its_own_values_the_target_is_the_score() -> None:
    """Where V is Q of what was taken, all that is in between cancels."""
    taken_RJ = torch.tensor([[0.3], [-1.0], [0.7]])
    target_RJ = retrace(taken_RJ[:, 0], taken_RJ, torch.ones(3), 2.0, 1.0)
    assert target_RJ[:, 0].tolist() == pytest.approx([2.0, 2.0, 2.0])


def test_the_critics_learn_which_tokens_are_liked(lesson: Lesson) -> None:
    config = tiny_config(sac_prior=0.1)
    learner = sac._SoftActorCritic(lesson, config)
    for _ in range(2):
        figures = learner.evaluate(lesson.data.reference)
    worth_V = learner.critics.worth().min(1).values
    seen = sorted({t for e in lesson.data.encoded for t in e.exchange.response_ids} - {END})
    liked = torch.tensor([worth_V[t] for t in seen if 3 <= t < 30]).mean()
    assert liked > torch.tensor([worth_V[t] for t in seen if t >= 30]).mean()
    assert figures["explained_variance"] > 0.4
    assert figures["twins_apart"] > 0


def test_no_value_lies_beyond_the_best_score(lesson: Lesson) -> None:
    critics = critics_of(lesson)
    states = len(critics.state_NF)
    policy = Moments(torch.zeros(states, critics.width), torch.zeros(states), torch.zeros(states))
    critics.weight_FJ = critics.weight_FJ * 1000  # as if backups had diverged
    score_B = torch.linspace(-1, 1, 64)
    target_NJ = critics.back_up(policy, torch.ones(states), score_B, alpha=0.0, gamma=1.0, lam=0.9)
    assert target_NJ.min() >= -1 and target_NJ.max() <= 1


def test_the_twins_start_as_halves_of_the_reward_model(lesson: Lesson) -> None:
    """At an answer's last token and mean length, a half's word part is the reward model's."""
    critics = critics_of(lesson)
    heads_FJ = torch.stack([half.mean(1) for half in lesson.judge.weight_FK.chunk(2, dim=1)], dim=1) / lesson.judge.std
    torch.testing.assert_close(critics.start_FJ[: critics.width], heads_FJ[: critics.width])
    assert end_tokens(lesson.backbone.model) == critics.ends


# The temperature


def test_the_temperature_puts_the_optimum_at_the_target(lesson: Lesson) -> None:
    config = tiny_config(kl_target=2.0)
    learner = sac._SoftActorCritic(lesson, config)
    learner.evaluate(lesson.data.reference)
    rows = list(range(24))
    alpha = learner._temperature(rows)
    logprobs_NV = torch.cat(learner.reference)[: sum(lesson.data.lengths[:24])] @ lesson.backbone.unembedding_VD.T
    smaller_NV = sac._smaller(
        torch.cat(learner.state[:24]), torch.cat(learner.end[:24]), learner.worth_VJ, torch.tensor([END])
    )
    kl = sac.tilted_kl(logprobs_NV.log_softmax(-1), smaller_NV, alpha).sum().item() / 24
    assert 1.0 < kl < 2.2  # the grid's step is √2, so up to a factor of two below; states are a sample
    looser = sac._SoftActorCritic(lesson, tiny_config(kl_target=8.0))
    looser.evaluate(lesson.data.reference)
    assert looser._temperature(rows) < alpha


def test_the_kl_of_a_tilted_distribution_in_numbers() -> None:
    logprobs_NV, q_NV = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert sac.tilted_kl(logprobs_NV, q_NV, 1.0).item() == pytest.approx(expected, abs=1e-6)
