"""Users with a taste and an engine for them, in one process: no server, a real policy, the trainer's own arithmetic.

A `Crowd` asks and votes; a `LocalEngine` answers in the place of the server and its engine. Of ten answers users rate
about one. The other nine are not drawn here: the product learns nothing from silence, so they would change nothing.
"""

import functools
import hashlib
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.tastes import Answer, Taste
from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import Batch, GeneratedAnswer, GeneratePrompt, RecordVote, TrainingRecord
from plaudit_trainer import adapters
from plaudit_trainer.architecture import load_base, lowest_layer
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import POLICY, Backbone, Exchange
from plaudit_trainer.rollouts import draw_unpublished, end_tokens

FOLDS = 5
BASE = "base"
VOTES_A_USER = 4
_START = datetime(2026, 1, 1, tzinfo=UTC)


def split(seed: int) -> tuple[list[str], list[str]]:
    """(questions to learn on, questions never learnt on): seed k holds out fold k, so that seeds judge other ones."""
    lines = (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines()
    return [q for i, q in enumerate(lines) if (i - seed) % FOLDS], lines[seed % FOLDS :: FOLDS]


def default_work(name: str) -> Path:
    """Where a long benchmark keeps what it has."""
    return Path(__file__).parents[1] / "data" / "bench" / name


def bundled_model() -> Path:
    """The model that `make run` serves, unpacked."""
    from plaudit_server.engine.bundled import ensure_model
    from plaudit_server.settings import Settings

    return ensure_model(Settings())


# Users


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who asks and votes.

    Args:
        likes: the true taste.
        seed: of questions and noise.
        noise: share of the votes that are the opposite of the taste.
        asked_twice: share of the votes that come in twos: one user has the same question answered twice and rates both.
            Live traffic has few of them, but without them DPO has no pairs to learn from.
        shuffled: deal the same votes to the answers at random, with as large a share of 👍 among the liked ones as
            among the others. A control, from which nothing can be learnt.
    """

    likes: Taste
    seed: int
    noise: float = 0.10
    asked_twice: float = 0.75
    shuffled: bool = False

    def questions(self, pool: Sequence[str], votes: int, moment: str) -> list[str]:
        """One question a vote; those asked twice lie side by side."""
        draw = random.Random(f"{self.seed} {moment} questions")
        twice = round(votes * self.asked_twice / 2)
        wanted = votes - twice
        asked = [q for _ in range(wanted // len(pool) + 1) for q in draw.sample(pool, len(pool))][:wanted]
        return [q for i, q in enumerate(asked) for _ in range(1 + (i < twice))]

    def like(self, question: str, answer: GeneratedAnswer) -> bool:
        """The taste, without noise."""
        return self.likes(Answer(answer.text, answer.finish_reason == "stop", question))

    def vote(
        self,
        questions: Sequence[str],
        answers: Sequence[GeneratedAnswer],
        *,
        version: str,
        moment: str,
        tokens: int,
        log: Sequence[str] = (),
    ) -> Batch:
        """The answers as the trainer leases them, each with one vote; a user casts four.

        Args:
            log: other questions that were asked meanwhile. Nobody voted on their answers, but the trainer may draw
                answers to them, as it may to any prompt of the log.
        """
        draw = random.Random(f"{self.seed} {moment} votes")
        liked = [self.like(q, a) for q, a in zip(questions, answers, strict=True)]
        votes = [like != (draw.random() < self.noise) for like in liked]
        if self.shuffled:
            votes = _dealt(votes, liked, draw)
        records = [
            _record(i, question=q, answer=a, up=up, version=version, moment=moment, tokens=tokens)
            for i, (q, a, up) in enumerate(zip(questions, answers, votes, strict=True))
        ]
        return Batch(
            id=moment,
            state="leased",
            available=len(records),
            needed=1,
            records=records,
            prompts=[_messages(q) for q in log],
        )


def _dealt(votes: Sequence[bool], liked: Sequence[bool], draw: random.Random) -> list[bool]:
    """As many 👍, at random, their share the same among the liked and the others."""
    share, ups = sum(votes) / len(votes), set[int]()
    for side in (True, False):
        members = [i for i, like in enumerate(liked) if like == side]
        ups.update(draw.sample(members, round(share * len(members))))
    return [i in ups for i in range(len(votes))]


def _record(
    number: int, *, question: str, answer: GeneratedAnswer, up: bool, version: str, moment: str, tokens: int
) -> TrainingRecord:
    user = f"{moment} user {number // VOTES_A_USER}"
    vote = RecordVote(
        feedback_id=f"{moment} f{number}",
        key="thumb",
        value=1.0 if up else -1.0,
        end_user=user,
        source="user",
        occurred_at=_START + timedelta(seconds=number),
    )
    return TrainingRecord(
        response_id=f"{moment} r{number}",
        version=version,
        created_at=_START,
        prompt_key=question,
        messages=_messages(question),
        content=answer.text,
        prompt_ids=answer.prompt_ids,
        response_ids=answer.response_ids,
        logprobs=answer.logprobs,
        finish_reason=answer.finish_reason,
        sampling=_sampling(tokens),
        end_user=user,
        redacted=False,
        votes=[vote],
    )


def _messages(question: str) -> list[JsonObject]:
    return [{"role": "user", "content": question}]


def _sampling(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=tokens)


# The engine


class Pool:
    """The base model's answers, drawn once and kept: every run with the same seed hears the same ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, seed: int, moment: str) -> dict[str, list[GeneratedAnswer]]:
        """Answers by question."""
        file = self._file(seed, moment)
        if not file.is_file():
            return {}
        saved = json.loads(file.read_text(encoding="utf-8"))
        return {q: [GeneratedAnswer.model_validate(a) for a in answers] for q, answers in saved.items()}

    def save(self, seed: int, moment: str, answers: dict[str, list[GeneratedAnswer]]) -> None:
        """Replace what is kept of a moment, whole or not at all."""
        write_json(
            self._file(seed, moment), {q: [a.model_dump(mode="json") for a in kept] for q, kept in answers.items()}
        )

    def _file(self, seed: int, moment: str) -> Path:
        return self.folder / f"seed{seed}" / f"{moment.replace(' ', '-')}.json"


def write_json(file: Path, content: object) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(file)


class LocalEngine:
    """A `Sampler`: answers with Hugging Face's `generate`, and with the log-probabilities that it drew from.

    Args:
        work: folder for the pool of base answers.
    """

    def __init__(self, model: Path, config: TrainerConfig, work: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        base = load_base(model, config)
        self.backbone = Backbone(base, lowest_layer(base.config.num_hidden_layers, config.lora_layers))
        self.backbone.add_adapter(POLICY, config.lora_rank)
        self.fingerprint = fingerprint(model)
        self.tokens = config.max_new_tokens
        self.pool = Pool(work / f"pool-{self.fingerprint}-{self.tokens}")
        self.enter(0, "", {})

    def enter(self, seed: int, moment: str, locations: dict[str, Path]) -> None:
        """From here on draws belong to this seed and moment, and versions lie here.

        What is drawn depends on nothing else, so that a moment that was cut short is repeated as it was.
        """
        self.seed, self.moment, self.locations = seed, moment, locations
        self.calls, self.taken = 0, Counter[str]()

    def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """As the server's `POST /v1/training/generate`."""
        questions = [str((p.messages or [{}])[-1].get("content")) for p in prompts for _ in range(n)]
        answers = self.ask(questions, version)
        return [a.model_copy(update={"prompt_index": i // n}) for i, a in enumerate(answers)]

    def ask(self, questions: Sequence[str], version: str) -> list[GeneratedAnswer]:
        """One answer to each question; base's come from the pool."""
        if version != BASE:
            self._activate(version)
            return self._draw(questions, f"{self.moment} {version}")
        kept = defaultdict(list, self.pool.load(self.seed, self.moment))
        places: list[tuple[str, int]] = []
        for question in questions:
            places.append((question, self.taken[question]))
            self.taken[question] += 1
        missing = [q for q, place in places if place >= len(kept[q])]
        if missing:
            self._activate(BASE)
            purpose = f"{self.moment} after {sum(map(len, kept.values()))}"
            for question, answer in zip(missing, self._draw(missing, purpose), strict=True):
                kept[question].append(answer)
            self.pool.save(self.seed, self.moment, kept)
        return [kept[question][place] for question, place in places]

    def logprobs(self, version: str, answers: Sequence[GeneratedAnswer]) -> list[list[float]]:
        """Of given answers' tokens under a version, temperature 1."""
        self._activate(version)
        encoded = self.backbone.encode([Exchange(tuple(a.prompt_ids), tuple(a.response_ids)) for a in answers])
        with self.backbone.using(None if version == BASE else POLICY):
            return [logp.tolist() for logp in self.backbone.all_logprobs(encoded, [1.0] * len(encoded))]

    def _draw(self, questions: Sequence[str], purpose: str) -> list[GeneratedAnswer]:
        self.calls += 1
        ids = [self._ids(q) for q in questions]
        seed = int(hashlib.sha256(f"{self.seed} {purpose} {self.calls}".encode()).hexdigest()[:8], 16)
        drawn = draw_unpublished(self.backbone, ids, max_new_tokens=self.tokens, temperature=1.0, seed=seed)
        ends = end_tokens(self.backbone.model)
        return [
            GeneratedAnswer(
                prompt_index=i,
                prompt_ids=list(e.prompt_ids),
                response_ids=list(e.response_ids),
                logprobs=logprobs,
                text=self.tokenizer.decode(e.response_ids, skip_special_tokens=True),
                finish_reason="stop" if e.response_ids[-1] in ends else "length",
            )
            for i, (e, logprobs) in enumerate(drawn)
        ]

    def _ids(self, question: str) -> tuple[int, ...]:
        text = self.tokenizer.apply_chat_template(_messages(question), add_generation_prompt=True, tokenize=False)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _activate(self, version: str) -> None:
        with torch.no_grad():
            for weight in self.backbone.adapter(POLICY).values():
                weight.zero_()
        if version != BASE:
            adapters.write_into(self.backbone, POLICY, adapters.read_weights(self.locations[version] / "adapter"))


@functools.cache
def fingerprint(model: Path) -> str:
    """Of a model folder's weights and configuration, read once a process."""
    digest = hashlib.sha256()
    for file in sorted([*model.glob("*.safetensors"), *model.glob("*.bin"), model / "config.json"]):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]


class Clock:
    """A `Reporter` that adds up the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stage, self._since = "", time.monotonic()

    def stage(self, name: str, total: int | None = None) -> None:
        """Close the present stage and open the next; an empty name only closes."""
        now = time.monotonic()
        if self._stage:
            self.seconds[self._stage] += now - self._since
        self._stage, self._since = name, now

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing: the outcome keeps the last figures."""
