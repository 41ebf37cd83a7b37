"""Drawing answers: in proportion to their chances, and with the log-probabilities they were drawn with."""

import pytest
import torch

from plaudit_trainer.models import POLICY, Backbone
from plaudit_trainer.rollouts import draw_unpublished
from plaudit_trainer.sampling import Draw
from tests.support.tiny_models import tiny_gpt2, tiny_llama


def test_tokens_are_drawn_in_proportion_to_their_chances() -> None:
    logits_V = torch.tensor([0.0, 2.0, -1.0, 1.0, float("-inf"), 0.5])
    rows, draw = 200_000, Draw(temperature=2.0)
    torch.manual_seed(0)
    left_BV = draw(torch.empty(0), logits_V.expand(rows, -1))
    expected_V = torch.softmax(logits_V / 2.0, dim=-1)
    drawn_B = left_BV.argmax(-1)
    counts_V = torch.bincount(drawn_B, minlength=6)
    possible = expected_V > 0
    surprise = ((counts_V - rows * expected_V)[possible] ** 2 / (rows * expected_V[possible])).sum()
    assert counts_V[4] == 0
    assert surprise < 18.5  # chi-square, 4 degrees of freedom: 1 in 1,000
    torch.testing.assert_close(draw.logprobs[0], expected_V.log()[drawn_B])
    assert (left_BV.isfinite().sum(-1) == 1).all()


def test_the_first_and_the_last_token_can_be_drawn() -> None:
    draw = Draw(temperature=1.0)
    for token in (0, 999):
        logits_BV = torch.full((64, 1000), -1000.0)
        logits_BV[:, token] = 0.0
        assert (draw(torch.empty(0), logits_BV).argmax(-1) == token).all()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_answers_come_with_the_log_probabilities_they_were_drawn_with(make) -> None:
    backbone = Backbone(make(), 1)
    backbone.add_adapter(POLICY, 4)
    for name, weight in backbone.adapter(POLICY).items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
    prompts = [(5, 6, 7), (8, 9, 10, 11, 12), (13, 14)]
    drawn = draw_unpublished(backbone, prompts, max_new_tokens=9, temperature=1.3, seed=4)
    exchanges = [exchange for exchange, _ in drawn]
    with backbone.using(POLICY):
        expected = backbone.all_logprobs(backbone.encode(exchanges), [1.3] * 3)
    for (exchange, found), wanted in zip(drawn, expected, strict=True):
        assert len(found) == len(exchange.response_ids)
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-4, atol=1e-4)
