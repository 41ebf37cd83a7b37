"""The whole run, votes to workspace, on a tiny real model."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import Batch, GeneratedAnswer, GeneratePrompt, RecordVote, Run, TrainingRecord
from plaudit.wire.versions import Probe
from plaudit_trainer import adapters
from plaudit_trainer.learner import Job, learn
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange
from plaudit_trainer.rollouts import generate_unpublished
from tests.support.tiny_models import END, save_tiny_base, tiny_backbone, tiny_config, tiny_llama

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIKED = frozenset(range(3, 30))


class TinyEngine:
    """Answers with a tiny model under its base weights; log-probabilities are its own."""

    def __init__(self) -> None:
        self.backbone: Backbone = tiny_backbone()
        self.calls: list[tuple[str, int]] = []

    def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        self.calls.append((version, len(prompts)))
        ids = [self.ids(str((p.messages or [{}])[0].get("content"))) for p in prompts for _ in range(n)]
        exchanges = generate_unpublished(
            self.backbone, ids, max_new_tokens=sampling.max_tokens or 12, temperature=1.0, seed=len(self.calls)
        )
        with self.backbone.using(POLICY):
            logprobs = self.backbone.all_logprobs(self.backbone.encode(exchanges), [1.0] * len(exchanges))
        return [
            GeneratedAnswer(
                prompt_index=i // n,
                prompt_ids=list(e.prompt_ids),
                response_ids=list(e.response_ids),
                logprobs=logp.tolist(),
                text=" ".join(map(str, e.response_ids)),
                finish_reason="stop" if e.response_ids[-1] == END else "length",
            )
            for i, (e, logp) in enumerate(zip(exchanges, logprobs, strict=True))
        ]

    @staticmethod
    def ids(text: str) -> tuple[int, ...]:
        return tuple(3 + ord(c) % 60 for c in text)


class Quiet:
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[dict[str, float]] = []

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append(name)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append(metrics)


def share_liked(ids: Sequence[int]) -> float:
    return sum(i in LIKED for i in ids) / len(ids)


def votes_on(engine: TinyEngine, count: int = 48, *, value: float | None = None) -> Batch:
    """Users like answers made mostly of low tokens; `value` overrides every vote."""
    questions = [f"q{i % 24} what{'?' * (i % 3)}" for i in range(count)]
    prompts = [GeneratePrompt(messages=[{"role": "user", "content": q}]) for q in questions]
    answers = engine.generate(prompts, version="base", n=1, sampling=SamplingParams(max_tokens=12))
    median = sorted(share_liked(a.response_ids) for a in answers)[count // 2]
    records = []
    for i, (a, q) in enumerate(zip(answers, questions, strict=True)):
        up = share_liked(a.response_ids) >= median
        vote = RecordVote(
            feedback_id=f"f{i}",
            key="thumb",
            value=value if value is not None else (1.0 if up else -1.0),
            end_user=f"u{i % 24}",
            source="user",
            occurred_at=NOW + timedelta(seconds=i),
        )
        records.append(
            TrainingRecord(
                response_id=f"r{i}",
                version="base",
                created_at=NOW,
                prompt_key=q,
                messages=[{"role": "user", "content": q}],
                content=a.text,
                prompt_ids=a.prompt_ids,
                response_ids=a.response_ids,
                logprobs=a.logprobs,
                finish_reason=a.finish_reason,
                sampling=SamplingParams(max_tokens=12),
                end_user=vote.end_user,
                redacted=False,
                votes=[vote],
            )
        )
    return Batch(id="b", state="leased", available=count, needed=1, records=records)


def run(parent_location: Path | None = None, warm_start: Path | None = None) -> Run:
    return Run(
        id="r",
        batch_id="b",
        version="v2" if parent_location else "v1",
        parent="v1" if parent_location else "base",
        parent_location=str(parent_location) if parent_location else None,
        warm_start_location=str(warm_start) if warm_start else None,
        state="running",
        created_at=NOW,
        updated_at=NOW,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def job(base: Path, folder: Path, batch: Batch, **kwargs: Path) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(run(**kwargs), batch, base, folder)


LENIENT = {"reward_bar": 0.0, "gate_win_rate": 0.0, "gate_length_growth": 99, "gate_end_of_text_drop": 1, "lr": 3e-3}


def test_a_run_makes_a_complete_version_that_the_next_run_goes_on_from(base: Path, tmp_path: Path) -> None:
    engine, reporter, config = TinyEngine(), Quiet(), tiny_config(**LENIENT, kl_ceiling=1e6)
    first = tmp_path / "v1"
    outcome = learn(job(base, first, votes_on(engine)), engine, reporter, config)
    assert outcome.verdict == "candidate", outcome.reason
    assert {p.name for p in first.iterdir()} == {"adapter", "probe.json", "reward", "critic", "report.json"}
    assert json.loads((first / "report.json").read_text())["verdict"] == "candidate"
    assert outcome.lora.rank == outcome.lora.alpha == 4
    assert reporter.stages == ["load", "reward", "rollouts", "policy", "gate", "probe"]
    assert outcome.metrics["ppo/mean_change"] > 0

    second = tmp_path / "v2"
    outcome = learn(
        job(base, second, votes_on(engine), parent_location=first, warm_start=first), engine, reporter, config
    )
    assert outcome.verdict == "candidate", outcome.reason
    assert "reward/prequential_auroc" in outcome.metrics


def test_the_probe_is_what_the_published_bytes_give(base: Path, tmp_path: Path) -> None:
    engine = TinyEngine()
    folder = tmp_path / "v1"
    learn(job(base, folder, votes_on(engine)), engine, Quiet(), tiny_config(**LENIENT, kl_ceiling=1e6))
    backbone = tiny_backbone(tiny_llama(), cut=0)
    adapters.write_into(backbone, POLICY, adapters.read_weights(folder / "adapter"))
    probe = Probe.model_validate_json((folder / "probe.json").read_text())
    assert sum(len(s.response_ids) for s in probe.sequences) >= 64
    for sequence in probe.sequences[:8]:
        encoded = backbone.encode([Exchange(tuple(sequence.prompt_ids), tuple(sequence.response_ids))])
        with backbone.using(POLICY):
            new = backbone.all_logprobs(encoded, [1.0])[0]
        with backbone.using(REFERENCE):
            parent = backbone.all_logprobs(encoded, [1.0])[0]
        torch.testing.assert_close(new, torch.tensor(sequence.new_logprobs), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(parent, torch.tensor(sequence.parent_logprobs), atol=1e-4, rtol=1e-4)
        assert not torch.equal(new, parent)


def test_a_reward_model_below_its_bar_stops_the_run_but_is_kept(base: Path, tmp_path: Path) -> None:
    engine, folder = TinyEngine(), tmp_path / "v1"
    outcome = learn(job(base, folder, votes_on(engine)), engine, Quiet(), tiny_config(reward_bar=1.0))
    assert outcome.verdict == "rejected"
    assert outcome.reason is not None and "AUROC" in outcome.reason
    assert (folder / "reward" / "heads.safetensors").is_file()
    weights = adapters.read_weights(folder / "adapter")
    assert all(w.abs().max() == 0 for name, w in weights.items() if "lora_B" in name)
    assert engine.calls[1:] == []  # nothing was drawn for a policy that may not be trained


def test_one_class_is_insufficient_and_says_why(base: Path, tmp_path: Path) -> None:
    engine = TinyEngine()
    outcome = learn(job(base, tmp_path / "v1", votes_on(engine, value=1.0)), engine, Quiet(), tiny_config())
    assert outcome.verdict == "insufficient"
    assert outcome.reason is not None and "one class" in outcome.reason
    assert {p.name for p in (tmp_path / "v1").iterdir()} == {"report.json"}


def test_the_kl_ceiling_stops_a_run_early(base: Path, tmp_path: Path) -> None:
    engine = TinyEngine()
    votes, kl, steps = votes_on(engine), [], []
    for name, ceiling in (("bounded", 0.05), ("free", 1e6)):
        config = tiny_config(**(LENIENT | {"lr": 0.03}), kl_ceiling=ceiling, ppo_epochs=3)
        outcome = learn(job(base, tmp_path / name, votes), engine, Quiet(), config)
        assert outcome.metrics["ppo/stopped_by_ceiling"] == (name == "bounded")
        kl.append(outcome.metrics["ppo/kl"])
        steps.append(outcome.metrics["ppo/steps"])
    assert steps[0] < steps[1] and kl[0] < 0.2 * kl[1]
