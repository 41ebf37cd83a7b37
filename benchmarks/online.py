"""The product's loop without its server: traffic → votes → `learn` → gate → the version that serves next.

One run is one taste, one learner and one seed. It lies in a folder, a version a round, and goes on where it stopped.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch

from benchmarks.judging import Question, Seen
from benchmarks.report import commit, machine
from benchmarks.simulation import BASE, Clock, Crowd, LocalEngine, split, write_json
from plaudit.wire.training import Batch, GeneratedAnswer, Run
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job, Outcome, learn

_MACHINE = {"threads", "data", "url", "key", "key_file", "model", "worker", "token_budget", "niceness"}
_LOOP = {"min_records", "max_records", "poll_s", "lease_s", "retry_s", "max_attempts", "patience_s"}
_METRICS = (
    "reward/heldout_auroc",
    "reward/prequential_auroc",
    "batch/pairs",
    "batch/trajectories",
    "probe/mean_change",
)


OldAnswers = Literal[
    "decoupled",  # the product's: ratio to the parent, each token weighted by parent / version that answered, truncated
    "naive",  # textbook PPO: ratio to the version that answered, which the clip is about as well; no weight
    "recomputed",  # taken for the parent's own: its log-probabilities stand for the sampling-time ones; no weight
]


class ChangedSettings(Exception):
    """The run was begun with other settings."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What one run does.

    Args:
        taste: name of what the crowd likes.
        votes: a round.
        lag: versions between the one that answered and the one that is trained: users vote late.
        old_answers: what PPO makes of them (`benchmarks.staleness` compares).
    """

    model: Path
    taste: str
    crowd: Crowd
    config: TrainerConfig
    votes: int = 128
    lag: int = 0
    old_answers: OldAnswers = "decoupled"

    def described(self, fingerprint: str) -> dict[str, Any]:
        """All that a resumed run must share with its beginning."""
        crowd = {k: v for k, v in asdict(self.crowd).items() if k != "likes"}
        learning = self.config.model_dump(mode="json", exclude=_MACHINE | _LOOP)
        rules = {"model": fingerprint, "taste": self.taste, "votes": self.votes, "lag": self.lag}
        return {**rules, "old_answers": self.old_answers, "crowd": crowd, "config": learning}


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one round. `liked` is the share by the true taste, before noise."""

    number: int
    parent: str
    spoke: str
    verdict: str
    reason: str | None
    up: float
    liked: float
    seconds: float
    stages: dict[str, float]
    metrics: dict[str, float]

    def words(self) -> str:
        """One line."""
        shown = ("reward/heldout_auroc", "gate/win_rate", "gate/kl", "gate/length_growth")
        figures = " ".join(
            f"{name.rpartition('/')[2]} {self.metrics[name]:.2f}" for name in shown if name in self.metrics
        )
        refused = f" ({self.reason[:120]})" if self.reason else ""
        return f"up {self.up:.2f} → {self.verdict} {figures} {self.seconds:.0f} s{refused}"


class OnlineRun:
    """A run in a folder.

    Raises:
        ChangedSettings: the folder was begun with other settings.
    """

    def __init__(self, folder: Path, rules: Rules, engine: LocalEngine) -> None:
        self.folder, self.rules, self.engine = folder, rules, engine
        self._keep_settings()
        self.rounds: list[Round] = []
        while (file := self._version(len(self.rounds) + 1) / "round.json").is_file():
            self.rounds.append(Round(**json.loads(file.read_text(encoding="utf-8"))))

    def _keep_settings(self) -> None:
        file, now = self.folder / "settings.json", self.rules.described(self.engine.fingerprint)
        if not file.is_file():
            write_json(file, now)
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = sorted({k for k in before.keys() | now.keys() if before.get(k) != now.get(k)})
        if changed:
            hint = "give another --work, or delete the folder to begin again"
            raise ChangedSettings(f"{self.folder} was begun with another {', '.join(changed)}: {hint}")

    def _version(self, number: int) -> Path:
        return self.folder / f"v{number}"

    def passed(self, rounds: int | None = None) -> list[str]:
        """Base and the versions that passed the gate within so many rounds: the last one serves."""
        return [BASE, *(f"v{r.number}" for r in self.rounds[:rounds] if r.verdict == "candidate")]

    def _locations(self) -> dict[str, Path]:
        return {f"v{r.number}": self._version(r.number) for r in self.rounds}

    def advance(self) -> Round:
        """Play the next round."""
        began, number, clock = time.monotonic(), len(self.rounds) + 1, Clock()
        clock.stage("traffic")
        self.engine.enter(self.rules.crowd.seed, f"round {number}", self._locations())
        parent = self.passed()[-1]
        batch, spoke, liked = self._traffic(f"round {number}", parent)
        workspace = self._version(number)
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir(parents=True)
        torch.set_num_threads(self.rules.config.threads)
        job = Job(self._run(number, parent), batch, self.rules.model, workspace)
        with ratio_to_behaviour() if self.rules.old_answers == "naive" else nullcontext():
            outcome = learn(job, self.engine, clock, self.rules.config)
        clock.stage("")
        played = Round(
            number=number,
            parent=parent,
            spoke=spoke,
            verdict=outcome.verdict,
            reason=outcome.reason,
            up=sum((r.votes[0].value or 0) > 0 for r in batch.records) / len(batch.records),
            liked=liked,
            seconds=round(time.monotonic() - began, 1),
            stages={name: round(s, 1) for name, s in clock.seconds.items()},
            metrics=_kept_metrics(outcome),
        )
        write_json(workspace / "round.json", asdict(played))
        self.rounds.append(played)
        return played

    def _traffic(self, moment: str, parent: str) -> tuple[Batch, str, float]:
        """The round's votes, the version that was voted on, and the share of its answers that are truly liked."""
        rules, passed = self.rules, self.passed()
        spoke = passed[max(0, len(passed) - 1 - rules.lag)]
        pool = split(rules.crowd.seed)[0]
        questions = rules.crowd.questions(pool, rules.votes, moment)
        answers = self.engine.ask(questions, spoke)
        liked = [rules.crowd.like(q, a) for q, a in zip(questions, answers, strict=True)]
        said = spoke
        if rules.old_answers == "recomputed" and spoke != parent:
            answers, said = _taken_for(self.engine, parent, answers), parent
        voted = set(questions)
        batch = rules.crowd.vote(
            questions,
            answers,
            version=said,
            moment=moment,
            tokens=rules.config.max_new_tokens,
            log=[q for q in pool if q not in voted][: rules.config.log_prompts],
        )
        return batch, spoke, sum(liked) / len(liked)

    def _run(self, number: int, parent: str) -> Run:
        """As the server would open it: from the version that serves, warm from the newest that was registered."""
        registered = [r.number for r in self.rounds if r.verdict != "insufficient"]
        now = datetime.now(UTC)
        return Run(
            id=f"run{number}",
            batch_id=f"round {number}",
            version=f"v{number}",
            parent=parent,
            parent_location=str(self.folder / parent) if parent != BASE else None,
            warm_start_location=str(self._version(registered[-1])) if registered else None,
            state="running",
            created_at=now,
            updated_at=now,
        )

    def heldout(self, rounds: int, samples: int) -> list[Question]:
        """Base and the version that serves after so many rounds on held-out questions; measured once a version."""
        version = self.passed(rounds)[-1]
        file = self.folder / f"heldout-{version}-{samples}.json"
        if file.is_file():
            return [Question.of(row) for row in json.loads(file.read_text(encoding="utf-8"))]
        questions = judge(self.engine, self.rules.crowd, self._locations(), version, samples)
        write_json(file, [q.row() for q in questions])
        return questions

    def cell(self, rounds: int, samples: int) -> dict[str, Any]:
        """All that a report needs of this run after so many rounds."""
        settings = self.rules.described(self.engine.fingerprint)
        return {
            "taste": self.rules.taste,
            "learner": self.rules.config.algorithm,
            "seed": self.rules.crowd.seed,
            "votes": rounds * self.rules.votes,
            "version": self.passed(rounds)[-1],
            "rounds": [asdict(r) for r in self.rounds[:rounds]],
            "questions": [q.row() for q in self.heldout(rounds, samples)],
            "settings": settings,
            "commit": commit(),
            "machine": {
                "processor": machine()["processor"],
                "cores": self.rules.config.threads,
                "precision": str(self.engine.backbone.model.dtype).removeprefix("torch."),
            },
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }


@contextmanager
def ratio_to_behaviour() -> Iterator[None]:
    """Within the block the product's PPO takes its ratio, and its clip, to the version that answered."""
    from plaudit_trainer.algorithms import ppo

    original = ppo.improve

    def improve(update: Any, backbone: Any, data: Any, order: Any, *, proximal: Any, **rest: Any) -> None:
        original(update, backbone, data, order, proximal=data.behaviour, **rest)

    with mock.patch.object(ppo, "improve", improve):
        yield


def _kept_metrics(outcome: Outcome) -> dict[str, float]:
    wanted = {k: v for k, v in outcome.metrics.items() if k in _METRICS or k.startswith(("gate/", "batch/dropped"))}
    return {k: round(v, 4) for k, v in wanted.items()}


def _taken_for(engine: LocalEngine, parent: str, answers: Sequence[GeneratedAnswer]) -> list[GeneratedAnswer]:
    recomputed = engine.logprobs(parent, answers)
    return [a.model_copy(update={"logprobs": p}) for a, p in zip(answers, recomputed, strict=True)]


def judge(engine: LocalEngine, crowd: Crowd, locations: dict[str, Path], version: str, samples: int) -> list[Question]:
    """Both sides' answers to every held-out question, by the true taste."""
    heldout = split(crowd.seed)[1]
    asked = [q for q in heldout for _ in range(samples)]
    engine.enter(crowd.seed, "heldout", locations)
    base = engine.ask(asked, BASE)
    new = base if version == BASE else engine.ask(asked, version)
    before = engine.logprobs(BASE, new) if version != BASE else [a.logprobs for a in new]
    kls = [sum(a.logprobs) - sum(b) for a, b in zip(new, before, strict=True)]

    def side(answers: Sequence[GeneratedAnswer], kl: Sequence[float]) -> list[Seen]:
        return [
            Seen(crowd.like(q, a), len(a.text.split()), len(a.response_ids), k)
            for q, a, k in zip(asked, answers, kl, strict=True)
        ]

    old_side, new_side = side(base, [0.0] * len(base)), side(new, kls)
    parts = [slice(i * samples, (i + 1) * samples) for i in range(len(heldout))]
    return [Question(q, old_side[p], new_side[p]) for q, p in zip(heldout, parts, strict=True)]
