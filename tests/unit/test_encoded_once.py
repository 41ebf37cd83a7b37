"""Answers that reward model and policy both look at go through the lower layers once."""

import torch

from plaudit_trainer.models import EncodedOnce, Exchange
from tests.support.tiny_models import tiny_backbone


def test_no_exchange_is_encoded_twice_and_the_order_is_the_callers() -> None:
    backbone, asked = tiny_backbone(), []
    original = backbone.encode
    backbone.encode = lambda exchanges: asked.extend(exchanges) or original(exchanges)  # type: ignore[method-assign]
    a, b, c = (Exchange((5, 6, n), (7, 8)) for n in (1, 2, 3))
    encode = EncodedOnce(backbone)
    first, second = encode([a, b, a]), encode([c, b])
    assert asked == [a, b, c]
    assert [e.exchange for e in first + second] == [a, b, a, c, b]
    assert second[1] is first[1]
    expected = original([b])[0]
    torch.testing.assert_close(first[1].prefix_TF, expected.prefix_TF)
