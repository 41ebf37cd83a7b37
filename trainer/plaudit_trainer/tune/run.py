"""One tuning, readable from top to bottom: rows → figures before → training → what was written, read back → figures
after → adapter and probe, or a model.

What is measured afterwards is what lies in the folder: adapters are rounded to bfloat16 first, models are loaded again.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.wire.base import JsonObject
from plaudit.wire.fingerprint import base_fingerprint, file_sha256
from plaudit.wire.versions import GateCheck, GateReport, LoraShape
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.tune import data, result
from plaudit_trainer.tune.data import BadData, Loaded
from plaudit_trainer.tune.result import TuneReport
from plaudit_trainer.tune.scores import Comparison, Outcome, compare
from plaudit_trainer.tune.split import split
from plaudit_trainer.tune.text import Language, Row, encode_all

if TYPE_CHECKING:
    from plaudit_trainer.models import Backbone
    from plaudit_trainer.progress import Display
    from plaudit_trainer.tune.train import Lesson, Recipe

LEARNING_RATES = {("lora", False): 2e-4, ("lora", True): 1e-3, ("full", False): 2e-5, ("full", True): 3e-4}
"""By what is trained and whether it is an encoder–decoder: T5 was trained with larger steps than GPTs are."""
_SCRATCH = "scratch"
_PROBE_LENGTH = 1024
"""Longest probe text: well within what an engine takes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to tune, on what.

    Args:
        paths: files of JSON lines, or folders of them.
        base: a Hugging Face model folder.
        full: train every weight instead of LoRA matrices.
        lr: None for the default of this kind of training.
        rank: of the LoRA matrices; None: `PLAUDIT_TRAINER_LORA_RANK`.
        max_length: tokens of prompt and response; longer rows are left out.
        heldout_share: of the rows, by clusters of instructions.
        asked: held-out rows that the model answers for accuracy, BLEU and chrF; all are scored for perplexity.
        answer_tokens: longest of those answers.
    """

    paths: tuple[Path, ...]
    base: Path
    full: bool = False
    epochs: float = 3.0
    lr: float | None = None
    batch: int = 16
    rank: int | None = None
    max_length: int = 1024
    heldout_share: float = 0.2
    seed: int = 0
    asked: int = 200
    answer_tokens: int = 128
    skip_bad: bool = False
    checkpointing: bool = False

    def settings(self) -> JsonObject:
        """All of it that decides what comes out, as JSON."""
        facts = asdict(self)
        return {name: value for name, value in facts.items() if name not in ("paths", "base", "skip_bad")}


@dataclass(frozen=True, slots=True)
class Material:
    """Rows to train on and rows to judge by.

    Args:
        clusters: of `heldout`, in its order.
        counts: what became of every row that was read.
    """

    language: Language
    train: list[Row]
    heldout: list[Row]
    clusters: list[str]
    counts: dict[str, int]
    loaded: Loaded


def prepare(plan: Plan, language: Language) -> Material:
    """Read, check, deduplicate, split and encode the data.

    Raises:
        BadData: nothing can be tuned on it.
    """
    loaded = data.load(plan.paths, skip_bad=plan.skip_bad)
    parts = split(loaded.examples, plan.heldout_share, plan.seed)
    train, _ = encode_all(parts.train, language, plan.max_length)
    heldout, places = encode_all(parts.heldout, language, plan.max_length)
    too_long = len(parts.train) + len(parts.heldout) - len(train) - len(heldout)
    if not train or not heldout:
        side = "to train on" if not train else "to judge by"
        raise BadData(f"no example {side} fits into {plan.max_length} tokens; raise --max-length")
    counts = {"rows": loaded.rows, **{f"shape_{name}": n for name, n in sorted(loaded.shapes.items())}}
    counts |= {"bad": len(loaded.bad), "duplicates": loaded.duplicates, "contradictions": loaded.contradictions}
    counts |= {"examples": len(loaded.examples), "too_long": too_long, "train": len(train), "heldout": len(heldout)}
    counts["heldout_classification"] = sum(row.example.is_classification for row in heldout)
    counts["heldout_clusters"] = len({parts.clusters[place] for place in places})
    counts["train_tokens"] = sum(map(len, train))
    counts["train_response_tokens"] = sum(len(row.response_ids) for row in train)
    return Material(language, train, heldout, [parts.clusters[place] for place in places], counts, loaded)


def digest(plan: Plan) -> str:
    """Names a tuning: the same data, base model and settings always give the same one."""
    files = [file_sha256(path) for path in data.files(plan.paths)]
    facts = plan.settings() | {"data": list(files), "base": base_fingerprint(plan.base), "skip_bad": plan.skip_bad}
    return result.digest_of(facts)


def is_adapter(plan: Plan, language: Language) -> bool:
    """Whether the result is an adapter that can be swapped in; a whole model otherwise."""
    return not plan.full and not language.is_seq2seq


def tune(plan: Plan, out: Path, material: Material, config: TrainerConfig, display: "Display") -> TuneReport:
    """Tune into `out`, which appears whole or not at all; a repetition finds it there and returns its report.

    Raises:
        OutputInTheWay: `out` holds something else, or another tuning.
        Diverged: the loss became no number.
        UnsupportedModel: adapters of this model could not be served.
    """
    name = digest(plan)
    known = result.read_report(out)
    if known is not None:
        if known.digest != name:
            raise result.OutputInTheWay(
                f"{out} holds another tuning (other data, base or settings); give another --out"
            )
        return known
    with result.workspace(out) as folder:
        report = _tune(_Work(plan, folder, material, config, display), name)
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
        result.finish(folder, out, report)
    return report


def _tune(work: "_Work", name: str) -> TuneReport:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # ours tells how far it is
    torch.set_num_threads(work.config.threads)
    plan, material = work.plan, work.material
    as_adapter = is_adapter(plan, material.language)
    before, after, lora, probed = (_tune_adapter if as_adapter else _tune_model)(work)
    figures = compare(before, after, plan.seed)
    return TuneReport(
        kind="adapter" if as_adapter else "model",
        digest=name,
        base=plan.base.name,
        base_fingerprint=base_fingerprint(plan.base),
        settings=plan.settings(),
        counts=material.counts,
        figures=figures,
        gate=judge(figures),
        lora=lora,
        metrics=_metrics(figures, material.counts) | probed,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What every step needs."""

    plan: Plan
    folder: Path
    material: Material
    config: TrainerConfig
    display: "Display"

    @property
    def language(self) -> Language:
        return self.material.language

    def recipe(self) -> "Recipe":
        from plaudit_trainer.tune.train import Recipe

        plan, kind = self.plan, "full" if self.plan.full else "lora"
        return Recipe(
            kind="full" if plan.full else "lora",
            epochs=plan.epochs,
            lr=plan.lr or LEARNING_RATES[kind, self.language.is_seq2seq],
            batch=min(plan.batch, len(self.material.train)),
            rank=plan.rank or self.config.lora_rank,
            seed=plan.seed,
            checkpointing=plan.checkpointing,
            scratch=self.folder / _SCRATCH,
        )

    def evaluated(self, model: Any, stage: str) -> list[Outcome]:
        from plaudit_trainer.tune.evaluate import evaluate

        rows, plan = self.material.heldout, self.plan
        self.display.stage(stage, len(rows) + min(plan.asked, len(rows)))
        return evaluate(
            model,
            rows,
            self.material.clusters,
            self.language,
            asked=plan.asked,
            max_new_tokens=plan.answer_tokens,
            progress=lambda done: self.display.step(done, {}),
        )

    def lesson(self) -> "Lesson":
        from plaudit_trainer.tune.train import Lesson, steps

        rows, recipe = self.material.train, self.recipe()
        self.display.stage("train", steps(len(rows), recipe))
        return Lesson(self.plan.base, rows, self.language, recipe, self.config, self.display.step)


_Tuned = tuple[list[Outcome], list[Outcome], LoraShape | None, dict[str, float]]
"""Outcomes before and after, the adapter's shape, the probe's figures."""


def _tune_adapter(work: _Work) -> _Tuned:
    """LoRA on a causal model: `adapter/` and `probe.json`."""
    from plaudit_trainer import adapters
    from plaudit_trainer.models import POLICY
    from plaudit_trainer.tune.train import train_lora

    backbone = _backbone(work)  # first of all: it says whether adapters of this model can be served
    with backbone.using(None):
        before = work.evaluated(backbone.model, "before")
    del backbone  # training loads the model for itself; two of a large one may be one too many
    weights = train_lora(work.lesson())
    backbone = _backbone(work)
    adapters.write_into(backbone, POLICY, weights)
    adapters.round_to_stored(backbone, POLICY)
    with backbone.using(POLICY):
        after = work.evaluated(backbone.model, "after")
    lora = adapters.save(backbone, POLICY, work.folder / "adapter", work.plan.base.name)
    work.display.stage("probe", None)
    probe, figures = adapters.make_probe(backbone, _exchanges(work.material), work.config)
    (work.folder / "probe.json").write_text(probe.model_dump_json(), encoding="utf-8")
    return before, after, lora, figures


def _backbone(work: _Work) -> "Backbone":
    """The base model with two adapters that change nothing yet."""
    from plaudit_trainer.architecture import load_base
    from plaudit_trainer.models import POLICY, REFERENCE, Backbone

    backbone = Backbone(load_base(work.plan.base, work.config), 0, work.config.token_budget)
    for name in (POLICY, REFERENCE):
        backbone.add_adapter(name, work.recipe().rank, seed=work.plan.seed)
    return backbone


def _tune_model(work: _Work) -> _Tuned:
    """Every weight, or an encoder–decoder model: `model/`, and of a causal one `probe.json`."""
    from plaudit_trainer.adapters import precision_on
    from plaudit_trainer.precision import pick_device, pick_dtype
    from plaudit_trainer.tune.train import load_model, train_model

    config, language, folder = work.config, work.language, work.folder / "model"
    dtype = pick_dtype(config, pick_device(config))
    before = work.evaluated(load_model(work.plan.base, language, config, dtype), "before")
    train_model(work.lesson(), folder)
    after = work.evaluated(load_model(folder, language, config, dtype), "after")
    if language.is_seq2seq:
        return before, after, None, {}
    from plaudit_trainer.tune.whole_probe import make_whole_probe

    work.display.stage("probe", None)
    probe, figures = make_whole_probe(
        lambda dtype: load_model(work.plan.base, language, config, dtype),
        lambda dtype: load_model(folder, language, config, dtype),
        _exchanges(work.material),
        config,
        precision_on(pick_device(config).type, config),
    )
    (work.folder / "probe.json").write_text(probe.model_dump_json(), encoding="utf-8")
    return before, after, None, figures


def judge(figures: dict[str, Comparison]) -> GateReport:
    """The gate of a tuning, on rows never trained on: responses became likelier, and nothing provably worse."""
    checks = []
    for name, comparison in figures.items():
        change = comparison.change
        if name == "perplexity":
            passed, bound = change.high < 1, "after / before below 1 (upper bound)"
        else:
            passed, bound = change.high >= 0, "not provably worse: upper bound of the change ≥ 0"
        checks.append(
            GateCheck(
                name=f"tune_{name}",
                passed=passed,
                value=change.value,
                low=change.low,
                high=change.high,
                n=change.n,
                bound=bound,
                detail=f"{comparison.before.value:.4g} before, {comparison.after.value:.4g} after",
            )
        )
    return GateReport(passed=all(check.passed for check in checks), checks=checks)


def _exchanges(material: Material) -> Sequence[Any]:
    """What the probe may take, held-out rows first: on them the change is what users will see."""
    from plaudit_trainer.models import Exchange

    rows = [row for row in (*material.heldout, *material.train) if len(row) <= _PROBE_LENGTH]
    return [Exchange(row.prompt_ids, row.response_ids) for row in rows]


def _metrics(figures: dict[str, Comparison], counts: dict[str, int]) -> dict[str, float]:
    metrics = {f"tune/{name}": float(n) for name, n in counts.items()}
    for name, comparison in figures.items():
        for when in ("before", "after", "change"):
            figure = getattr(comparison, when)
            metrics |= {f"tune/{name}_{when}": figure.value, f"tune/{name}_{when}_low": figure.low}
            metrics |= {f"tune/{name}_{when}_high": figure.high}
        metrics[f"tune/{name}_n"] = float(comparison.before.n)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
