"""Human preference pairs: dialogues chosen and rejected, what the base model makes of them, and fair folds."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plaudit_trainer.models import Exchange

ASKED = "Was that a good answer: harmless, honest and helpful? Answer yes or no."
"""Put to the model after each answer; what it thinks just before it replies is one of the features."""

LAYERS = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
"""Depths at which states are read, as shares of the layers: 0 the word embeddings, 1 the last layer."""

_LONGEST = 768
_CHUNK = 256
_WHERE = (
    "get preferences/hh_harmless.jsonl (the test split of harmless-base of Anthropic's hh-rlhf, one JSON object a "
    "line with `chosen` and `rejected`), put it below a folder, and name that folder with --data or PLAUDIT_BENCH_DATA"
)


class Missing(Exception):
    """What a benchmark needs is not there; the message says where it is to be had."""


@dataclass(frozen=True, slots=True)
class HumanPair:
    """The dialogue up to the answer, and the two answers."""

    messages: list[dict[str, str]]
    chosen: str
    rejected: str


def load_pairs(data: Path | None) -> list[HumanPair]:
    """All pairs whose dialogues part at the last answer.

    Raises:
        Missing: there is no such file.
    """
    folder = data or Path(os.environ.get("PLAUDIT_BENCH_DATA", "."))
    file = folder / "preferences" / "hh_harmless.jsonl"
    if not file.is_file():
        raise Missing(f"there is no {file}: {_WHERE}")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = []
    for row in rows:
        before, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
        _, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
        pairs.append(HumanPair(_messages(before), chosen.strip(), rejected.strip()))
    return pairs


def _messages(dialogue: str) -> list[dict[str, str]]:
    messages = []
    for turn in dialogue.split("\n\nHuman:")[1:]:
        asked, *answered = turn.split("\n\nAssistant:")
        messages.append({"role": "user", "content": asked.strip()})
        messages += [{"role": "assistant", "content": answer.strip()} for answer in answered]
    return messages


def folds(pairs: Sequence[HumanPair], count: int, seed: int = 0) -> np.ndarray:
    """A fold for each pair; dialogues that begin alike share one."""
    places = {pair.messages[0]["content"].casefold(): 0 for pair in pairs}
    order = np.random.default_rng(seed).permutation(len(places))
    places = {key: int(place) % count for key, place in zip(places, order, strict=True)}
    return np.array([places[pair.messages[0]["content"].casefold()] for pair in pairs])


@dataclass(frozen=True, slots=True)
class Read:
    """What the frozen base model makes of answers: B answers, L depths, D hidden.

    Args:
        mean_BLD: averages over the answer's tokens.
        last_BLD: states at the answer's last token.
        asked_BLD: states just before the reply to `ASKED`.
        numbers_BN: log-probability in all and a token, length, and log-odds of yes to `ASKED`.
    """

    mean_BLD: Tensor
    last_BLD: Tensor
    asked_BLD: Tensor
    numbers_BN: Tensor

    def rows(self, start: int, stop: int) -> "Read":
        """Only these."""
        return Read(*(getattr(self, name)[start:stop] for name in self.__slots__))


def read(pairs: Sequence[HumanPair], model_folder: Path, work: Path) -> tuple[Read, Read]:
    """(chosen, rejected), computed once and kept in `work`; goes on where it was interrupted."""
    items = [(p.messages, p.chosen) for p in pairs] + [(p.messages, p.rejected) for p in pairs]
    files = [work / f"read-{start:05d}-of-{len(items)}.safetensors" for start in range(0, len(items), _CHUNK)]
    if not all(file.is_file() for file in files):
        reader = _Reader(model_folder)
        for number, file in enumerate(track(files, "reading answers")):
            if not file.is_file():
                work.mkdir(parents=True, exist_ok=True)
                found = reader.read(items[number * _CHUNK : (number + 1) * _CHUNK])
                part = file.with_suffix(".part")
                save_file({name: getattr(found, name).contiguous() for name in Read.__slots__}, part)
                part.rename(file)
    parts = [load_file(file) for file in files]
    whole = Read(*(torch.cat([part[name].float() for part in parts]) for name in Read.__slots__))
    return whole.rows(0, len(pairs)), whole.rows(len(pairs), len(items))


def exchanges(pairs: Sequence[HumanPair], tokenizer: Any) -> tuple[list[Exchange], list[Exchange]]:
    """(chosen, rejected) as the trainer has answers: token ids of the dialogue, cut on the left, and of the answer."""

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def one(messages: list[dict[str, str]], answer: str) -> Exchange:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return Exchange(tokens(prompt)[-_LONGEST:], tokens(answer) or tokens(" "))

    return [one(p.messages, p.chosen) for p in pairs], [one(p.messages, p.rejected) for p in pairs]


class _Reader:
    """One pass over [dialogue, answer, question] gives every feature: what comes later changes nothing before it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        from plaudit_trainer.architecture import load_base
        from plaudit_trainer.config import TrainerConfig

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = load_base(folder, TrainerConfig()).eval()
        depth = self.model.config.num_hidden_layers
        self.layers = [round(share * depth) for share in LAYERS]
        yes_no = ["Yes", "yes", "No", "no"]
        self.yes_no = [self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in yes_no]

    def ids(self, messages: list[dict[str, str]], answer: str) -> tuple[list[int], int, int]:
        """(ids of all, where the answer begins, where it ends)."""
        template, tokens = self.tokenizer.apply_chat_template, self._tokens
        prompt = template(messages, add_generation_prompt=True, tokenize=False)
        said = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": ASKED}]
        whole = template(said, add_generation_prompt=True, tokenize=False)
        head, body, tail = tokens(prompt), tokens(answer), tokens(whole[len(prompt) + len(answer) :])
        head = head[-max(1, _LONGEST - len(body) - len(tail)) :]
        return head + body + tail, len(head), len(head) + max(1, len(body))

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def read(self, items: Sequence[tuple[list[dict[str, str]], str]]) -> Read:
        """Every feature of these answers, in batches of like length."""
        encoded = [self.ids(*item) for item in items]
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row][0]))
        found: dict[int, tuple[Tensor, ...]] = {}
        while order:
            rows = [order.pop() for _ in range(min(len(order), max(1, 4096 // len(encoded[order[-1]][0]))))]
            ids_BT = nn.utils.rnn.pad_sequence([torch.tensor(encoded[r][0]) for r in rows], batch_first=True)
            states = self.model.base_model(
                input_ids=ids_BT.to(self.model.device), use_cache=False, output_hidden_states=True
            ).hidden_states
            chosen_LBTD = torch.stack([states[layer] for layer in self.layers])
            found |= {row: self._one(encoded[row], chosen_LBTD[:, place]) for place, row in enumerate(rows)}
        return Read(*(torch.stack(column) for column in zip(*(found[r] for r in range(len(items))), strict=True)))

    def _one(self, encoded: tuple[list[int], int, int], states_LTD: Tensor) -> tuple[Tensor, ...]:
        ids, start, end = encoded
        head_VD = self.model.get_output_embeddings().weight
        logits_NV = (states_LTD[-1, start - 1 : end - 1] @ head_VD.T).float()
        drawn_N = logits_NV.log_softmax(-1)[torch.arange(end - start), torch.tensor(ids[start:end])]
        odds = (states_LTD[-1, len(ids) - 1] @ head_VD[self.yes_no].T).float()
        numbers = [drawn_N.sum(), drawn_N.mean(), end - start, odds[:2].logsumexp(0) - odds[2:].logsumexp(0)]
        states = states_LTD.float()
        mean_LD, last_LD, asked_LD = states[:, start:end].mean(1), states[:, end - 1], states[:, len(ids) - 1]
        return mean_LD.half(), last_LD.half(), asked_LD.half(), torch.tensor([float(n) for n in numbers])
