"""What a model makes of held-out rows: −log P of the reference responses, and its own greedy answers.

Shapes: B rows, T padded positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit_trainer.tune.scores import Outcome
from plaudit_trainer.tune.text import Language, Row

_SCORED_TOKENS = 1024
"""Positions whose logits over the whole vocabulary are in memory at once."""
_GENERATED_TOKENS = 8192
IGNORED = -100

Progress = Callable[[int], None]


@torch.no_grad()
def evaluate(
    model: Any,
    rows: Sequence[Row],
    clusters: Sequence[str],
    language: Language,
    *,
    asked: int,
    max_new_tokens: int,
    progress: Progress = lambda done: None,
) -> list[Outcome]:
    """One outcome a row, in the order of the rows.

    Args:
        model: a Hugging Face model, causal or encoder–decoder; dropout is switched off.
        clusters: of the rows.
        asked: the first so many rows are answered; the rest are scored only.
        max_new_tokens: longest answer.
        progress: told how many rows are done; each counts twice where it is answered too.
    """
    model.eval()
    nats = response_nats(model, rows, language, progress)
    answers = greedy_answers(model, rows[:asked], language, max_new_tokens, lambda done: progress(len(rows) + done))
    told: list[str | None] = [*answers, *([None] * (len(rows) - len(answers)))]
    return [
        Outcome(
            cluster=cluster,
            nats=nat,
            tokens=len(row.response_ids),
            reference=row.example.response,
            is_classification=row.example.is_classification,
            answer=answer,
        )
        for row, cluster, nat, answer in zip(rows, clusters, nats, told, strict=True)
    ]


@torch.no_grad()
def response_nats(
    model: Any, rows: Sequence[Row], language: Language, progress: Progress = lambda done: None
) -> list[float]:
    """−Σ log P of each row's response tokens, the end token included."""
    nats: dict[int, float] = {}
    for places in _buckets([len(row) for row in rows], _SCORED_TOKENS):
        part = [rows[place] for place in places]
        scored = (_seq2seq_nats if language.is_seq2seq else _causal_nats)(model, part, language)
        nats.update(zip(places, scored, strict=True))
        progress(len(nats))
    return [nats[place] for place in range(len(rows))]


@torch.no_grad()
def greedy_answers(
    model: Any, rows: Sequence[Row], language: Language, max_new_tokens: int, progress: Progress = lambda done: None
) -> list[str]:
    """The likeliest answer, token by token, to each row's prompt."""
    answers: dict[int, str] = {}
    for places in _buckets([len(row.prompt_ids) + max_new_tokens for row in rows], _GENERATED_TOKENS):
        prompts = [rows[place].prompt_ids for place in places]
        for place, tokens in zip(places, _generate(model, prompts, language, max_new_tokens), strict=True):
            answers[place] = language.tokenizer.decode(_until_end(tokens, language.ends), skip_special_tokens=True)
        progress(len(answers))
    return [answers[place].strip() for place in range(len(rows))]


def _causal_nats(model: Any, rows: Sequence[Row], language: Language) -> list[float]:
    ids = [row.prompt_ids + row.response_ids for row in rows]
    ids_BT, mask_BT = _padded(ids, language, model.device)
    labels_BT = ids_BT.masked_fill(mask_BT == 0, IGNORED)
    for place, row in enumerate(rows):
        labels_BT[place, : len(row.prompt_ids)] = IGNORED
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    return _nats(logits_BTV[:, :-1], labels_BT[:, 1:])


def _seq2seq_nats(model: Any, rows: Sequence[Row], language: Language) -> list[float]:
    ids_BT, mask_BT = _padded([row.prompt_ids for row in rows], language, model.device)
    response_BT, response_mask_BT = _padded([row.response_ids for row in rows], language, model.device)
    labels_BT = response_BT.masked_fill(response_mask_BT == 0, IGNORED)
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT, use_cache=False).logits
    return _nats(logits_BTV, labels_BT)


def _nats(logits_BTV: Tensor, labels_BT: Tensor) -> list[float]:
    nats = [
        torch.nn.functional.cross_entropy(logits_TV.float(), labels_T, ignore_index=IGNORED, reduction="sum").item()
        for logits_TV, labels_T in zip(logits_BTV, labels_BT, strict=True)
    ]
    return nats


def _generate(
    model: Any, prompts: Sequence[tuple[int, ...]], language: Language, max_new_tokens: int
) -> list[list[int]]:
    """Tokens drawn behind each prompt. Causal prompts are padded on the left, so that answers follow them at once."""
    ids_BT, mask_BT = _padded(prompts, language, model.device, left=not language.is_seq2seq)
    out_BT = model.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        max_length=None,
        eos_token_id=list(language.ends),
        pad_token_id=language.tokenizer.pad_token_id,
    )
    start = 1 if language.is_seq2seq else ids_BT.shape[1]  # a decoder begins with its start token
    tokens: list[list[int]] = out_BT[:, start:].tolist()
    return tokens


def _padded(
    rows: Sequence[tuple[int, ...]], language: Language, device: torch.device, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T). The mask is made from lengths, since the padding token may be the end token."""
    width, pad = max(map(len, rows)), language.tokenizer.pad_token_id
    blanks = [width - len(row) for row in rows]
    ids = [[pad] * n + list(row) if left else list(row) + [pad] * n for n, row in zip(blanks, rows, strict=True)]
    mask = [[0] * n + [1] * len(row) if left else [1] * len(row) + [0] * n for n, row in zip(blanks, rows, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _until_end(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    first = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:first])


def _buckets(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Places grouped by length, so that no group's padded size exceeds the budget (but for single rows)."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups
