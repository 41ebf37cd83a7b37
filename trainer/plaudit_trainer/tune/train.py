"""The training itself: TRL's SFTTrainer for causal models, transformers' Seq2SeqTrainer for encoder–decoder ones.

Shapes: B rows, T padded positions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.precision import pick_device, pick_dtype
from plaudit_trainer.tune.text import Language, Row

_PREFIX = "base_model.model."

Report = Callable[[int, dict[str, float]], None]
Kind = Literal["lora", "full"]


class Diverged(Exception):
    """The loss is no longer a number."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    Args:
        kind: train LoRA matrices on all linear layers, or every weight.
        lr: peak of the learning rate, after a short warm-up and before a cosine decay.
        batch: rows an optimiser step, made up of as many passes as memory wants.
        rank: of the LoRA matrices; alpha is the same.
        checkpointing: compute activations twice instead of keeping them.
        scratch: a folder that the trainers may write in.
    """

    kind: Kind
    epochs: float
    lr: float
    batch: int
    rank: int
    seed: int
    checkpointing: bool
    scratch: Path


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is trained on what, and who hears of each step."""

    base: Path
    rows: Sequence[Row]
    language: Language
    recipe: Recipe
    config: TrainerConfig
    report: Report


def load_model(folder: Path, language: Language, config: TrainerConfig, dtype: torch.dtype) -> Any:
    """The model in a folder, on its device."""
    loader = AutoModelForSeq2SeqLM if language.is_seq2seq else AutoModelForCausalLM
    return loader.from_pretrained(folder, dtype=dtype).to(pick_device(config))


def train_lora(lesson: Lesson) -> dict[str, Tensor]:
    """LoRA matrices (float32) on all linear layers of a causal model, by PEFT's names less `base_model.model.`."""
    config = lesson.config
    model = load_model(lesson.base, lesson.language, config, pick_dtype(config, pick_device(config)))
    model = _with_lora(model, lesson.recipe, "CAUSAL_LM")
    sft_trainer(model, lesson).train()
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name.removeprefix(_PREFIX): weight.detach().float().cpu() for name, weight in state.items()}


def train_model(lesson: Lesson, folder: Path) -> None:
    """A whole model, written to `folder` as Hugging Face does, in the precision that its base is stored in.

    With LoRA (encoder–decoder models) the matrices are merged into the weights.
    """
    language, recipe = lesson.language, lesson.recipe
    model = load_model(lesson.base, language, lesson.config, torch.float32)
    if recipe.kind == "lora":
        model = _with_lora(model, recipe, "SEQ_2_SEQ_LM")
    make = seq2seq_trainer if language.is_seq2seq else sft_trainer
    make(model, lesson).train()
    if recipe.kind == "lora":
        model = model.merge_and_unload()
    model.to(_stored_dtype(lesson.base)).save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)


def sft_trainer(model: Any, lesson: Lesson) -> SFTTrainer:
    """TRL's trainer on rows whose prompt carries no loss."""
    examples = [
        {
            "input_ids": [*row.prompt_ids, *row.response_ids],
            "completion_mask": [0] * len(row.prompt_ids) + [1] * len(row.response_ids),
        }
        for row in lesson.rows
    ]
    arguments = SFTConfig(
        **_arguments(lesson),
        completion_only_loss=True,
        max_length=None,  # rows that are too long were left out: a cut one would lose its end token
        packing=False,
    )
    with _quiet_datasets():
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(examples),
            processing_class=lesson.language.tokenizer,
            callbacks=[_Callback(lesson.report)],
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def seq2seq_trainer(model: Any, lesson: Lesson) -> Seq2SeqTrainer:
    """transformers' trainer: the encoder reads the prompt, the loss is on all that the decoder writes."""
    examples = [{"input_ids": list(row.prompt_ids), "labels": list(row.response_ids)} for row in lesson.rows]
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**_arguments(lesson)),
        train_dataset=Dataset.from_list(examples),
        data_collator=_Seq2SeqCollator(lesson.language.tokenizer.pad_token_id),
        processing_class=lesson.language.tokenizer,
        callbacks=[_Callback(lesson.report)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def steps(rows: int, recipe: Recipe) -> int:
    """Optimiser steps of a whole training."""
    return math.ceil(math.ceil(rows / recipe.batch) * recipe.epochs)


@dataclass(frozen=True, slots=True)
class _Seq2SeqCollator:
    """Pads on the right. The mask is made from lengths: not every tokenizer makes one, and padding may look like text.

    Args:
        pad: the padding token.
    """

    pad: int

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Ids, mask and labels (B, T); the model shifts the labels into the decoder's input itself."""
        ids = [torch.tensor(example["input_ids"]) for example in examples]
        labels = [torch.tensor(example["labels"]) for example in examples]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }


class _Callback(TrainerCallback):
    """Passes the loss on, and stops where it is no number."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Once a step, and at the end without a loss."""
        if logs is None or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {state.global_step}; give a smaller --lr")
        shown = ("loss", "grad_norm", "learning_rate")
        self._report(state.global_step, {name: float(value) for name, value in logs.items() if name in shown})


def _arguments(lesson: Lesson) -> dict[str, Any]:
    """What both trainers are told."""
    recipe, config = lesson.recipe, lesson.config
    device = pick_device(config)
    at_once = _rows_at_once(lesson.rows, recipe.batch, config.token_budget)
    return {
        "output_dir": str(recipe.scratch),
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": recipe.batch // at_once,
        "num_train_epochs": recipe.epochs,
        "learning_rate": recipe.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "max_grad_norm": config.max_gradient_norm,
        # LoRA's frozen weights are in this precision already; a whole model is kept in float32 and cast as it computes.
        "bf16": recipe.kind == "full" and pick_dtype(config, device) == torch.bfloat16,
        "use_cpu": device.type == "cpu",
        "gradient_checkpointing": recipe.checkpointing,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": device.type != "cpu",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _rows_at_once(rows: Sequence[Row], batch: int, token_budget: int) -> int:
    """The largest divisor of the batch whose padded size fits into memory."""
    fitting = max(1, token_budget // max(map(len, rows)))
    return max(size for size in range(1, batch + 1) if batch % size == 0 and size <= fitting)


def _with_lora(model: Any, recipe: Recipe, task: str) -> Any:
    """The model with new LoRA matrices (float32) on all its linear layers but the output head."""
    config = LoraConfig(
        task_type=task,
        r=recipe.rank,
        lora_alpha=recipe.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    set_seed(recipe.seed)  # the matrices are drawn here, before any trainer sets it
    return get_peft_model(model, config)


def _stored_dtype(base: Path) -> torch.dtype:
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(base).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


class _quiet_datasets:  # noqa: N801 (used as a statement)
    """No progress bars of `datasets` between ours."""

    def __enter__(self) -> None:
        self._was_on = is_progress_bar_enabled()
        disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            enable_progress_bar()
