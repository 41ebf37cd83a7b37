"""How far an answer stays on what was asked, in a few numbers that any base model's word embeddings give.

Averages over an answer's tokens say which words it has, not what it answers: the same text gets the same features after
every question. These features compare it with its prompt, word by word, at its beginning and towards its end.

Shapes: A answer tokens, P prompt tokens, V vocabulary, D hidden, E features.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (as all of PyTorch calls it)

from plaudit.wire.prompts import prompt_text
from plaudit_trainer.losses import STD_GUARD
from plaudit_trainer.models import Exchange

STRENGTH = 0.5
"""Length of a standardised row, where the backbone's features have about 1. At 1 tastes of single words lose more
(docs/explanation/experiments.md)."""

_OF_A_PART = 3
_PARTS = 3  # first half, second half, the lesser of both
_LONGEST_PROMPT = 512


class RelevanceReader:
    """Nine numbers an answer: for its first half, its second, and the lesser of the two,

    - the mean over the prompt's tokens of the best match in that part, rare tokens counting more;
    - the best match of any rare token;
    - the mean over that part's tokens of their best match in the prompt, likewise.

    A match is the cosine of two word embeddings, standardised over the vocabulary, so that forms of one word match too.
    How rare a token is, is read off its id: vocabularies of BPE and unigram tokenizers are ordered by frequency, and by
    Zipf's law −log p grows with the log of the rank. Tokens of the bare chat template weigh nothing.

    Args:
        embedding_VD: the base model's word embeddings.
        tokenizer: the policy's, asked what a prompt without content looks like.
        has_encoder: whether the model reads prompts with an encoder.
    """

    name = "relevance"
    width = _OF_A_PART * _PARTS

    def __init__(self, embedding_VD: Tensor, tokenizer: Any, *, has_encoder: bool) -> None:
        self._embedding_VD = embedding_VD
        self._mean_D = embedding_VD.float().mean(0)
        self._std_D = embedding_VD.float().std(0, correction=0).clamp(min=STD_GUARD)
        rare_V = torch.arange(1, embedding_VD.shape[0] + 1).log()
        empty, special = prompt_text([{"role": "user", "content": ""}], tokenizer, has_encoder=has_encoder)
        template = [*tokenizer(empty, add_special_tokens=special)["input_ids"], *tokenizer.all_special_ids]
        rare_V[torch.tensor([t for t in template if t < len(rare_V)], dtype=torch.long)] = 0.0
        self._rare_V = (rare_V / rare_V.max()).to(embedding_VD.device)
        self.weight_E = torch.full((self.width,), STRENGTH / self.width**0.5)

    def read(self, exchanges: Sequence[Exchange]) -> Tensor:
        """(B, E), on the CPU. An answer or a prompt without a word of its own reads as zeros."""
        return torch.stack([self._one(e) for e in exchanges]).cpu() if exchanges else torch.zeros(0, self.width)

    def _one(self, exchange: Exchange) -> Tensor:
        asked, said = self._words(exchange.prompt_ids)[-_LONGEST_PROMPT:], self._words(exchange.response_ids)
        if not len(asked) or not len(said):
            return torch.zeros(self.width, device=self._rare_V.device)
        match_AP = self._directions(said) @ self._directions(asked).T
        rare_P = self._rare_V[asked]
        middle = (len(said) + 1) // 2
        first_3 = _matches(match_AP[:middle], rare_P)
        second_3 = _matches(match_AP[middle:], rare_P) if middle < len(said) else first_3
        return torch.cat([first_3, second_3, torch.minimum(first_3, second_3)])

    def _words(self, ids: Sequence[int]) -> Tensor:
        """The ids that stand neither in the bare template nor for nothing at all."""
        ids_T = torch.tensor(ids, device=self._rare_V.device)
        return ids_T[self._rare_V[ids_T] > 0]

    def _directions(self, ids_T: Tensor) -> Tensor:
        return F.normalize((self._embedding_VD[ids_T].float() - self._mean_D) / self._std_D, dim=1)


def _matches(match_AP: Tensor, rare_P: Tensor) -> Tensor:
    """(3,): of the answer's part whose matches these are."""
    best_P = match_AP.amax(0)
    covered = (best_P * rare_P).sum() / rare_P.sum()
    return torch.stack([covered, (best_P * rare_P).max(), (match_AP * rare_P).amax(1).mean()])
