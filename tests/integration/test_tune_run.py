"""A whole tuning on tiny models: LoRA, every weight, T5. Perplexity on rows never trained on falls."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plaudit.wire.versions import Probe
from plaudit_trainer import adapters
from plaudit_trainer.architecture import load_base
from plaudit_trainer.models import POLICY, Backbone
from plaudit_trainer.tune import result
from plaudit_trainer.tune.data import BadData
from plaudit_trainer.tune.evaluate import response_nats
from plaudit_trainer.tune.result import OutputInTheWay, TuneReport
from plaudit_trainer.tune.run import Plan, judge, prepare, tune
from plaudit_trainer.tune.scores import Comparison, Figure
from plaudit_trainer.tune.text import read_language
from plaudit_trainer.tune.train import Diverged, load_model
from tests.support.tiny_models import save_tiny_base, tiny_config, tiny_gpt2
from tests.support.tiny_seq2seq import save_tiny_t5, tiny_t5
from tests.support.tune_rows import write, zoo

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Screen:
    """A display that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.steps: list[tuple[str, int, dict[str, float]]] = []

    def say(self, line: str) -> None:
        pass

    def stage(self, name: str, total: int | None) -> None:
        self.stages.append((name, total))

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((self.stages[-1][0], step, dict(metrics)))

    def close(self) -> None:
        pass


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "zoo.jsonl", zoo())


def plan_for(rows: Path, base: Path, **changes: object) -> Plan:
    plan = Plan(paths=(rows,), base=base, epochs=8, lr=0.01, batch=8, rank=4, answer_tokens=8)
    return replace(plan, **changes)  # type: ignore[arg-type]


def run(plan: Plan, out: Path, screen: Screen | None = None) -> TuneReport:
    material = prepare(plan, read_language(plan.base))
    return tune(plan, out, material, tiny_config(), screen or Screen())


def fell(report: TuneReport) -> bool:
    perplexity = report.figures["perplexity"]
    return perplexity.after.value < 0.7 * perplexity.before.value


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_learns_and_leaves_an_adapter_with_its_probe(tmp_path: Path, rows: Path, architecture: str) -> None:
    base = save_tiny_base(tmp_path / "base", tiny_gpt2() if architecture == "gpt2" else None)
    plan, out, screen = plan_for(rows, base), tmp_path / "out", Screen()
    report = run(plan, out, screen)
    assert fell(report), report.figures
    assert report.kind == "adapter"
    assert report.counts["train"] + report.counts["heldout"] == report.counts["examples"] == 32
    assert sorted(p.name for p in out.iterdir()) == ["adapter", "probe.json", "tune.json"]
    assert report.figures["accuracy"].after.n == report.counts["heldout_classification"] == 4
    assert [name for name, _ in screen.stages] == ["before", "train", "after", "probe"]
    assert sum(stage == "train" and "loss" in figures for stage, _, figures in screen.steps) == screen.stages[1][1]
    assert not list(tmp_path.glob(".tmp-*"))

    config = json.loads((out / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == config["lora_alpha"] == 4
    assert report.lora is not None
    assert report.lora.target_modules == config["target_modules"]
    weights = adapters.read_weights(out / "adapter")
    assert all(torch.equal(w, w.bfloat16().float()) for w in weights.values())
    assert len({name.partition("lora_")[0] for name in weights}) == len(weights) / 2

    # What was written is what was measured: perplexity of the folder's bytes, and the probe's log-probabilities.
    backbone = Backbone(load_base(base, tiny_config()), 0)
    assert len(weights) == 2 * len(backbone.linears)  # all linear layers
    backbone.add_adapter(POLICY, 4)
    adapters.write_into(backbone, POLICY, weights)
    material = prepare(plan, read_language(base))
    with backbone.using(POLICY):
        nats = response_nats(backbone.model, material.heldout, material.language)
    tokens = sum(len(row.response_ids) for row in material.heldout)
    expected = torch.tensor(sum(nats) / tokens).exp().item()
    assert report.figures["perplexity"].after.value == pytest.approx(expected, rel=1e-4)
    probe = Probe.model_validate_json((out / "probe.json").read_bytes())
    assert len(probe.sequences) >= 8
    assert sum(abs(n - p) for s in probe.sequences for n, p in zip(s.new_logprobs, s.parent_logprobs, strict=True)) > 1


def test_every_weight_can_be_trained_and_gives_a_model_to_serve(tmp_path: Path, rows: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    plan, out = plan_for(rows, base, full=True, lr=0.005), tmp_path / "out"
    report = run(plan, out)
    assert fell(report), report.figures
    assert (report.kind, report.lora) == ("model", None)
    assert sorted(p.name for p in out.iterdir()) == ["model", "probe.json", "tune.json"]
    language = read_language(out / "model")  # it stands alone: tokenizer and chat template are there
    assert language.has_own_template
    rows_ = prepare(plan, language).heldout
    nats = response_nats(load_model(out / "model", language, tiny_config(), torch.float32), rows_, language)
    expected = torch.tensor(sum(nats) / sum(len(row.response_ids) for row in rows_)).exp().item()
    assert report.figures["perplexity"].after.value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("full", [False, True])
def test_an_encoder_decoder_model_is_tuned_by_the_same_call(tmp_path: Path, rows: Path, full: bool) -> None:
    base = save_tiny_t5(tmp_path / "base", tiny_t5(encoder=2, decoder=2))
    out = tmp_path / "out"
    report = run(plan_for(rows, base, full=full, lr=0.01), out)
    assert fell(report), report.figures
    assert report.kind == "model"
    model = load_model(out / "model", read_language(out / "model"), tiny_config(), torch.float32)
    assert not any("lora" in name for name, _ in model.named_parameters())  # merged
    before = load_model(base, read_language(base), tiny_config(), torch.float32)
    assert not torch.equal(
        model.encoder.block[0].layer[0].SelfAttention.q.weight, before.encoder.block[0].layer[0].SelfAttention.q.weight
    )


def test_the_same_tuning_gives_the_same_adapter_and_another_seed_another(tmp_path: Path, rows: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    plan = plan_for(rows, base, epochs=1)
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(replace(plan, seed=seed), tmp_path / out)
    a, b, c = ((tmp_path / out / "adapter" / "adapter_model.safetensors").read_bytes() for out in "abc")
    assert a == b != c


def test_a_repetition_trains_nothing(tmp_path: Path, rows: Path) -> None:
    base, out, screen = save_tiny_base(tmp_path / "base"), tmp_path / "out", Screen()
    first = run(plan_for(rows, base, epochs=1), out)
    assert run(plan_for(rows, base, epochs=1), out, screen) == first
    assert screen.stages == []


def test_another_tuning_never_overwrites(tmp_path: Path, rows: Path) -> None:
    base, out = save_tiny_base(tmp_path / "base"), tmp_path / "out"
    run(plan_for(rows, base, epochs=1), out)
    kept = (out / "tune.json").read_bytes()
    with pytest.raises(OutputInTheWay, match="another tuning"):
        run(plan_for(rows, base, epochs=2), out)
    write(rows, zoo()[:-1])
    with pytest.raises(OutputInTheWay, match="another tuning"):
        run(plan_for(rows, base, epochs=1), out)
    assert (out / "tune.json").read_bytes() == kept


def test_a_folder_of_something_else_is_refused(tmp_path: Path, rows: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputInTheWay, match="something else"):
        run(plan_for(rows, base), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_an_interrupted_tuning_leaves_nothing_and_its_remains_are_swept(tmp_path: Path, rows: Path) -> None:
    class Impatient(Screen):
        def step(self, step: int, metrics: Mapping[str, float]) -> None:
            if self.stages[-1][0] == "train":
                raise KeyboardInterrupt

    base = save_tiny_base(tmp_path / "base")
    with pytest.raises(KeyboardInterrupt):
        run(plan_for(rows, base), tmp_path / "out", Impatient())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock-out", "base", "zoo.jsonl"]
    (tmp_path / ".tmp-out-killed" / "adapter").mkdir(parents=True)
    run(plan_for(rows, base, epochs=1), tmp_path / "out")
    assert not list(tmp_path.glob(".tmp-*"))


def test_two_at_once_into_one_folder_are_refused(tmp_path: Path) -> None:
    with result.workspace(tmp_path / "out"):
        with pytest.raises(OutputInTheWay, match="another process"), result.workspace(tmp_path / "out"):
            pass
        with result.workspace(tmp_path / "other"):
            pass


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path, rows: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    model = load_base(base, tiny_config())
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    save_tiny_base(tmp_path / "broken", model)
    with pytest.raises((Diverged, ValueError)):
        run(plan_for(rows, tmp_path / "broken"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_that_are_all_too_long_are_an_error(tmp_path: Path, rows: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    with pytest.raises(BadData, match="no example to train on fits into 5 tokens; raise --max-length"):
        prepare(plan_for(rows, base, max_length=5), read_language(base))


def test_counts_tell_what_became_of_every_row(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    path = write(tmp_path / "d.jsonl", ["x", *zoo(), zoo()[0], {**zoo()[1], "output": "other"}])
    counts = prepare(plan_for(path, base, skip_bad=True, max_length=27), read_language(base)).counts
    assert (counts["rows"], counts["bad"], counts["duplicates"], counts["contradictions"]) == (24, 1, 2, 1)
    assert counts["examples"] == 32 == counts["train"] + counts["heldout"] + counts["too_long"]
    assert counts["too_long"] > 0


def figure(value: float, low: float, high: float) -> Figure:
    return Figure(value=value, low=low, high=high, n=9)


@pytest.mark.parametrize(
    ("name", "change", "passed"),
    [
        ("perplexity", figure(0.8, 0.7, 0.9), True),
        ("perplexity", figure(0.9, 0.7, 1.1), False),
        ("bleu", figure(-1, -3, 1), True),
        ("bleu", figure(-2, -3, -1), False),
        ("accuracy", figure(0, 0, 0), True),
    ],
)
def test_the_gate_wants_likelier_responses_and_nothing_provably_worse(name: str, change: Figure, passed: bool) -> None:
    any_figure = figure(1, 1, 1)
    gate = judge({name: Comparison(before=any_figure, after=any_figure, change=change)})
    assert gate.passed is passed
    assert [check.name for check in gate.checks] == [f"tune_{name}"]
