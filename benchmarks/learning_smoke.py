"""Does the learner learn? Simulated users with a taste, a real model, no server: votes → `learn` → next version.

    python -m benchmarks.learning_smoke MODEL_FOLDER --taste number --batches 5 --votes 64

Prints the 👍-rate of base and of the newest version on prompts never trained on, with 95 % intervals, and the seconds
of every stage. Settings of the trainer are taken from `PLAUDIT_TRAINER_*`.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.tastes import TASTES, Answer, Taste
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import Batch, GeneratedAnswer, GeneratePrompt, RecordVote, Run, TrainingRecord
from plaudit_trainer import adapters
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job, Outcome, learn
from plaudit_trainer.models import POLICY, Backbone, load_base
from plaudit_trainer.rollouts import end_tokens, generate_unpublished

HERE = Path(__file__).parent


def prompts() -> tuple[list[str], list[str]]:
    """(prompts to train on, prompts never trained on): every fifth is held out."""
    lines = (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()
    return [p for i, p in enumerate(lines) if i % 5], lines[::5]


class LocalEngine:
    """A `Sampler` on Hugging Face's `generate`, in the place of the server and its engine."""

    def __init__(self, folder: Path, config: TrainerConfig) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.backbone = Backbone(load_base(folder, config), 0)
        self.backbone.add_adapter(POLICY, config.lora_rank)
        self.locations: dict[str, Path] = {}
        self.seed = 0

    def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """As the server's `POST /v1/training/generate`."""
        self._activate(version)
        ids = [self._ids(p) for p in prompts for _ in range(n)]
        self.seed += 1
        exchanges = generate_unpublished(
            self.backbone, ids, max_new_tokens=sampling.max_tokens or 64, temperature=1.0, seed=self.seed
        )
        with self.backbone.using(POLICY):
            logprobs = self.backbone.all_logprobs(self.backbone.encode(exchanges), [1.0] * len(exchanges))
        ends = end_tokens(self.backbone.model)
        return [
            GeneratedAnswer(
                prompt_index=i // n,
                prompt_ids=list(e.prompt_ids),
                response_ids=list(e.response_ids),
                logprobs=logp.tolist(),
                text=self.tokenizer.decode(e.response_ids, skip_special_tokens=True),
                finish_reason="stop" if e.response_ids[-1] in ends else "length",
            )
            for i, (e, logp) in enumerate(zip(exchanges, logprobs, strict=True))
        ]

    def _ids(self, prompt: GeneratePrompt) -> tuple[int, ...]:
        text = self.tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _activate(self, version: str) -> None:
        with torch.no_grad():
            for weight in self.backbone.adapter(POLICY).values():
                weight.zero_()
        if version != "base":
            adapters.write_into(self.backbone, POLICY, adapters.read_weights(self.locations[version] / "adapter"))


class Clock:
    """A `Reporter` that adds up the seconds of each stage and prints steps where asked."""

    def __init__(self, verbose: bool) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.verbose = verbose
        self._stage, self._since = "", time.monotonic()

    def stage(self, name: str, total: int | None = None) -> None:
        """Close the present stage and open the next."""
        now = time.monotonic()
        if self._stage:
            self.seconds[self._stage] += now - self._since
        if self._stage and self.verbose:
            print(f"    {self._stage}: {now - self._since:.1f} s", flush=True)
        self._stage, self._since = name, now

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Print a step."""
        if self.verbose and self._stage == "policy":
            print("   ", step, {k.removeprefix("ppo/"): round(v, 3) for k, v in metrics.items()}, flush=True)


def ask(engine: LocalEngine, version: str, questions: Sequence[str]) -> list[GeneratedAnswer]:
    """One answer to each question."""
    sampling = SamplingParams(temperature=1.0, max_tokens=64)
    return engine.generate(
        [GeneratePrompt(messages=[{"role": "user", "content": q}]) for q in questions],
        version=version,
        n=1,
        sampling=sampling,
    )


def likes(taste: Taste, answer: GeneratedAnswer) -> bool:
    """The true taste, without noise."""
    return taste(Answer(answer.text, answer.finish_reason == "stop"))


def vote_on(
    answers: Sequence[GeneratedAnswer], questions: Sequence[str], version: str, taste: Taste, draw: random.Random
) -> Batch:
    """Users' votes by taste, one in ten at random, four to a user."""
    start, records = datetime(2026, 1, 1, tzinfo=UTC), []
    for i, (answer, question) in enumerate(zip(answers, questions, strict=True)):
        up = draw.random() < 0.5 if draw.random() < 0.1 else likes(taste, answer)
        vote = RecordVote(
            feedback_id=f"f{i}",
            key="thumb",
            value=1.0 if up else -1.0,
            end_user=f"user{i // 4}",
            source="user",
            occurred_at=start + timedelta(seconds=i),
        )
        records.append(
            TrainingRecord(
                response_id=f"r{i}",
                version=version,
                created_at=start,
                prompt_key=question,
                messages=[{"role": "user", "content": question}],
                content=answer.text,
                prompt_ids=answer.prompt_ids,
                response_ids=answer.response_ids,
                logprobs=answer.logprobs,
                finish_reason=answer.finish_reason,
                sampling=SamplingParams(temperature=1.0, max_tokens=64),
                end_user=vote.end_user,
                redacted=False,
                votes=[vote],
            )
        )
    return Batch(id="b", state="leased", available=len(records), needed=1, records=records)


def run_of(number: int, parent: str, locations: dict[str, Path], newest: str | None) -> Run:
    """The run as the server would open it."""
    now = datetime.now(UTC)
    return Run(
        id=f"run{number}",
        batch_id="b",
        version=f"v{number}",
        parent=parent,
        parent_location=str(locations[parent]) if parent != "base" else None,
        warm_start_location=str(locations[newest]) if newest else None,
        state="running",
        created_at=now,
        updated_at=now,
    )


def rate(engine: LocalEngine, version: str, taste: Taste, questions: Sequence[str]) -> tuple[float, float, int]:
    """(👍-rate, half-width of its 95 % interval, n)."""
    answers = ask(engine, version, questions)
    value, n = sum(likes(taste, a) for a in answers) / len(answers), len(answers)
    return value, 1.96 * (value * (1 - value) / n) ** 0.5, n


def show(number: int, outcome: Outcome, up: float, clock: Clock, wall: float) -> None:
    """One line a batch."""
    m = outcome.metrics
    keys = ["reward/heldout_auroc", "reward/prequential_auroc", "ppo/kl", "ppo/explained_variance", "gate/win_rate",
            "gate/kl", "gate/length_growth", "probe/mean_change", "probe/slope_half_width"]  # fmt: skip
    figures = " ".join(f"{k.replace('reward/', 'rm_')}={m[k]:.2f}" for k in keys if k in m)
    print(f"v{number} votes up {up:.2f} → {outcome.verdict} {figures} | {wall:.0f} s", flush=True)
    if outcome.reason:
        print("   ", outcome.reason[:300], flush=True)


@dataclass(slots=True)
class Story:
    """What happened so far: the versions on disk, who serves, and the newest."""

    locations: dict[str, Path] = field(default_factory=dict)
    stable: str = "base"
    newest: str | None = None

    @classmethod
    def of(cls, folder: Path) -> "Story":
        """Go on from the versions in a folder that an earlier call was given."""
        story = cls()
        for number in range(1, 1000):
            report = folder / f"v{number}" / "report.json"
            if not report.is_file():
                break
            story.add(f"v{number}", report.parent, json.loads(report.read_text(encoding="utf-8"))["verdict"])
        return story

    def add(self, version: str, folder: Path, verdict: str) -> None:
        """A run ended."""
        self.locations[version] = folder
        self.newest = version if verdict != "insufficient" else self.newest
        self.stable = version if verdict == "candidate" else self.stable


def one_batch(number: int, story: Story, engine: LocalEngine, clock: Clock, args: argparse.Namespace) -> None:
    """Traffic, votes, learning, promotion."""
    since, taste, draw = time.monotonic(), TASTES[args.taste], random.Random(f"{args.seed} {number}")
    questions = draw.sample(prompts()[0], args.votes)
    clock.stage("traffic")
    batch = vote_on(ask(engine, story.stable, questions), questions, story.stable, taste, draw)
    up = sum(r.votes[0].value > 0 for r in batch.records) / len(batch.records)
    folder = args.folder / f"v{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = run_of(number, story.stable, story.locations, story.newest)
    outcome = learn(Job(run, batch, args.model, folder), engine, clock, TrainerConfig())
    clock.stage("evaluation")
    show(number, outcome, up, clock, time.monotonic() - since)
    story.add(f"v{number}", folder, outcome.verdict)
    if args.evaluate_each and outcome.verdict == "candidate":
        print("    held-out", rate(engine, story.stable, taste, prompts()[1] * 2), flush=True)


def main() -> None:
    """Run one taste."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--taste", choices=TASTES, default="number")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--votes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep versions here, and go on from those that are there")
    parser.add_argument("--quick", action="store_true", help="two batches of 24 votes, to see that it runs")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--evaluate-each", action="store_true", help="the curve: every version on held-out prompts")
    parser.add_argument("--skip-base", action="store_true", help="do not measure the base model")
    args = parser.parse_args()
    if args.quick:
        args.batches, args.votes = 2, 24
    if args.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            args.folder = Path(folder)
            play(args)
    else:
        play(args)


def play(args: argparse.Namespace) -> None:
    """All batches, between a measurement of the base model and one of the version that serves in the end."""
    config, taste = TrainerConfig(), TASTES[args.taste]
    torch.set_num_threads(config.threads)
    story, heldout = Story.of(args.folder), prompts()[1]
    engine, clock = LocalEngine(args.model, config), Clock(args.verbose)
    engine.locations = story.locations
    engine.seed = 1000 * (args.seed + 1) + 100 * len(story.locations)
    began, first = time.monotonic(), len(story.locations) + 1
    if not args.skip_base:
        print("base", rate(engine, "base", taste, heldout * 2), flush=True)
    for number in range(first, first + args.batches):
        one_batch(number, story, engine, clock, args)
    clock.stage("final evaluation")
    print(story.stable, rate(engine, story.stable, taste, heldout * 2), f"{time.monotonic() - began:.0f} s", flush=True)
    clock.stage("")
    print(json.dumps({name: round(s / args.batches, 1) for name, s in clock.seconds.items()}), "s a batch")


if __name__ == "__main__":
    main()
