"""TRL's training loop, made to leave nothing behind: no files, no messages, no changed model but for POLICY's weights.

TRL's trainers are given the backbone's own model with POLICY active. It is a Hugging Face causal model like any other,
so what TRL trains is byte for byte what the gate measures and what is published; a second copy wrapped by PEFT would
cost the model's memory again and would have to be copied back. Two of TRL's steps are replaced, because they would be
wrong here: the tokenisation (an answer's token ids are what the engine drew; text does not always lead back to them)
and the reference (the parent version, REFERENCE, where TRL would take the base model or the policy as it began).
"""

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from plaudit_trainer.algorithms.base import Lesson, Trained
from plaudit_trainer.algorithms.ppo import answer_kl
from plaudit_trainer.batches import Tokens
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Reporter
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange
from plaudit_trainer.rollouts import end_tokens

_MEASURED_ANSWERS = 32
"""Answers on which the KL to the reference is measured after each step."""

_SET_BY_TRL = ("forward", "model_tags", "_is_accelerate_prepared")
"""Attributes of the model itself; `forward` is wrapped to return log-probabilities."""

Row = dict[str, Any]


class _AsPrepared:
    """Rows come ready: token ids, and the reference's log-probabilities. And nothing of a run is told to anyone."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        pass


class _Dpo(_AsPrepared, DPOTrainer):
    pass


class _Kto(_AsPrepared, KTOTrainer):
    pass


@dataclass(frozen=True, slots=True)
class Plan:
    """What TRL is to train on.

    Args:
        rows: with the columns that the trainer's collator reads, and the reference's log-probabilities.
        pass_rows: rows of one pass of the model.
        step_rows: rows of one optimiser step.
        texts: answers on which the KL is measured.
        settings: of the loss.
    """

    rows: list[Row]
    pass_rows: int
    step_rows: int
    texts: Sequence[Tokens]
    settings: dict[str, float]


def train_dpo(lesson: Lesson, plan: Plan, reporter: Reporter, config: TrainerConfig) -> Trained:
    """TRL's DPO: rows of `prompt_ids`, `chosen_ids`, `rejected_ids`, `ref_chosen_logps`, `ref_rejected_logps`."""
    watch = _Watch("dpo", lesson.backbone, plan.texts, reporter, config)
    return _train(_Dpo, DPOConfig, DataCollatorForPreference, lesson, plan, watch, config)


def train_kto(lesson: Lesson, plan: Plan, reporter: Reporter, config: TrainerConfig) -> Trained:
    """TRL's KTO: rows of `prompt_ids`, `completion_ids`, `KL_completion_ids`, `label`, `ref_logps`, `ref_KL_logps`."""
    watch = _Watch("kto", lesson.backbone, plan.texts, reporter, config)
    return _train(_Kto, KTOConfig, DataCollatorForUnpairedPreference, lesson, plan, watch, config)


def _train(  # noqa: PLR0917 (a private function with two callers)
    trainer_class: Callable[..., Any],
    config_class: Callable[..., Any],
    collator_class: Callable[..., Any],
    lesson: Lesson,
    plan: Plan,
    watch: "_Watch",
    config: TrainerConfig,
) -> Trained:
    backbone = lesson.backbone
    accumulate = math.ceil(plan.step_rows / plan.pass_rows)
    steps = math.ceil(math.ceil(len(plan.rows) / plan.pass_rows) / accumulate) * config.preference_epochs
    watch.reporter.stage("policy", total=steps)
    with TemporaryDirectory(dir=lesson.job.workspace) as folder, lent_to_trl(backbone):
        settings = config_class(
            output_dir=folder,
            per_device_train_batch_size=plan.pass_rows,
            gradient_accumulation_steps=accumulate,
            use_cpu=backbone.device.type == "cpu",
            **_settings(config),
            **plan.settings,
        )
        settings._n_gpu = min(settings.n_gpu, 1)  # the backbone lies on one device, however many there are
        trainer = trainer_class(
            model=backbone.model,
            args=settings,
            data_collator=collator_class(pad_token_id=end_tokens(backbone.model)[0]),
            train_dataset=Dataset.from_list(plan.rows),
            processing_class=AutoTokenizer.from_pretrained(lesson.job.base),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return watch.trained()


def _settings(config: TrainerConfig) -> dict[str, Any]:
    """TRL's settings that stand for ours, with all of its side effects turned off."""
    return {
        "beta": config.preference_beta,
        "precompute_ref_log_probs": True,
        "max_length": None,
        "num_train_epochs": config.preference_epochs,
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": config.max_gradient_norm,
        "seed": config.seed,
        "bf16": False,  # the model is in its precision already; adapters stay float32
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


@contextmanager
def lent_to_trl(backbone: Backbone) -> Iterator[None]:
    """POLICY active and alone trainable; what TRL changes of the model besides is undone afterwards."""
    model = backbone.model
    generation = copy.deepcopy(model.generation_config)
    # Not a copy of the configuration: the two halves of a cut model share it, and must go on sharing it.
    settings = dict(model.config.__dict__)
    attributes = {name: model.__dict__[name] for name in _SET_BY_TRL if name in model.__dict__}
    before = backbone.switch.active
    weights = list(backbone.adapter(REFERENCE).values())
    for weight in weights:
        weight.requires_grad_(False)
    for module in model.modules():
        if getattr(module, "attention_dropout", 0.0):  # TRL turns off dropout modules, and trains in training mode
            module.attention_dropout = 0.0
    random_state = random.getstate()
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    backbone.switch.active = POLICY
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(random_state)
        backbone.switch.active = before
        for weight in weights:
            weight.requires_grad_(True)
        for name in _SET_BY_TRL:
            model.__dict__.pop(name, None)
        model.__dict__.update(attributes)
        model.config.__dict__.clear()
        model.config.__dict__.update(settings)
        model.generation_config = generation
        model.zero_grad(set_to_none=True)
        model.eval()


class _Watch(TrainerCallback):
    """Tells the reporter, measures the KL after each step, and stops at the ceiling with the last good adapter."""

    def __init__(
        self, name: str, backbone: Backbone, texts: Sequence[Tokens], reporter: Reporter, config: TrainerConfig
    ) -> None:
        self.name, self.backbone, self.reporter, self.config = name, backbone, reporter, config
        few = random.Random(config.seed).sample(list(texts), min(len(texts), _MEASURED_ANSWERS))  # noqa: S311
        self.encoded = backbone.encode([Exchange(*t) for t in few])
        self.weights = list(backbone.adapter(POLICY).values())
        self.reference = self._logprobs(REFERENCE)
        self.before = self.good = self._copy()
        self.kl, self.steps, self.stopped = 0.0, 0, False
        self.figures: dict[str, float] = {}

    def _copy(self) -> list[Tensor]:
        return [w.detach().clone() for w in self.weights]

    def _logprobs(self, name: str) -> list[Tensor]:
        with self.backbone.using(name):
            return self.backbone.all_logprobs(self.encoded, [1.0] * len(self.encoded))

    def _kl(self, logprobs: list[Tensor]) -> float:
        """To the parent, nats an answer; the answers are taken for the parent's."""
        return answer_kl(logprobs, self.reference, self.reference, self.config)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The present adapter lies within the ceiling."""
        self.good = self._copy()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimiser step was taken."""
        self.kl = self._kl(self._logprobs(POLICY))
        if self.kl > self.config.kl_ceiling:
            self.stopped = control.should_training_stop = True
            with torch.no_grad():
                for weight, good in zip(self.weights, self.good, strict=True):
                    weight.copy_(good)
        else:
            self.steps = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """TRL's figures of the step, and the KL."""
        if logs is None or "loss" not in logs or self.stopped:
            return  # the summary at the end, or a step that was taken back
        figures = {k.replace("/", "_"): float(v) for k, v in logs.items() if k not in ("epoch", "kl", "num_tokens")}
        if "kl" in logs:
            figures["kl_estimate"] = float(logs["kl"])  # KTO's own z
        self.figures = {f"{self.name}/{k}": v for k, v in (figures | {"kl": self.kl}).items()}
        self.reporter.step(self.steps, self.figures)

    def trained(self) -> Trained:
        """What came of it. No trajectories were used, so there is no change of theirs to report."""
        final = self._logprobs(POLICY)
        change = torch.stack([(n - r).abs().mean() for n, r in zip(final, self.reference, strict=True)])
        unchanged = all(torch.equal(a, b) for a, b in zip(self.before, self.weights, strict=True))
        figures = {
            "kl": self._kl(final),
            "steps": float(self.steps),
            "stopped_by_ceiling": float(self.stopped),
            "mean_change": change.mean().item(),
        }
        alarms = ["the adapter is unchanged after training"] * unchanged
        return Trained(self.figures | {f"{self.name}/{k}": v for k, v in figures.items()}, alarms, torch.zeros(0))
