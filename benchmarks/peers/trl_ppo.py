"""TRL's PPOTrainer, timed from inside. Run by benchmarks/ppo_speed.py in TRL's own environment, without Plaudit.

A step of the trainer is timed in two parts: its own generation, and all that follows (reference, value, reward,
advantages, epochs). Between them the drawn answers are exchanged, outside the clock, for those of the rollouts file
together with their logits, so that what is trained on is the same as on the other side, token for token.
"""

import argparse
import json
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

PAD = 0
"""Not the end-of-text token, which the model comes with: TRL finds padding by its id, and prompts hold end-of-text."""
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each step, by phase. Steps begin with the generation and end with the callback."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.phases: dict[str, float] = defaultdict(float)
        self.outside = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Close the step."""
        total = time.perf_counter() - self.began - self.outside
        generation = self.phases["generation"]
        self.steps.append({"step": total, "update": total - generation, **self.phases})
        print(f"trl step {len(self.steps)}: {total:.1f} s, of which update {total - generation:.1f} s", flush=True)
        self.phases, self.outside = defaultdict(float), 0.0

    def timed(self, phase: Callable[[], str], call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, with its time added to the phase."""

        def run(*args: Any, **kwargs: Any) -> Any:
            name, since = phase(), time.perf_counter()
            result = call(*args, **kwargs)
            self.settle()
            self.phases[name] += time.perf_counter() - since
            return result

        return run

    @staticmethod
    def settle() -> None:
        """A GPU works on after the call returned."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()


class FixedAnswers:
    """In the place of TRL's `batch_generation`: draws as it does, on the clock, then hands out the given answers."""

    def __init__(self, rollouts: list[dict[str, list[int]]], clock: Clock) -> None:
        self.answers = {tuple(r["prompt_ids"]): r["response_ids"] for r in rollouts}
        self.clock, self.draw = clock, ppo_trainer.batch_generation

    def __call__(
        self, model: Any, queries: torch.Tensor, rows_a_pass: int, pad: int, generation: GenerationConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(queries with responses, float32 logits of the responses at the sampling temperature)."""
        self.clock.began = time.perf_counter()
        self.clock.timed(lambda: "generation", self.draw)(model, queries, rows_a_pass, pad, generation)
        since = time.perf_counter()
        chosen = [self.answers[tuple(t for t in row if t != pad)] for row in queries.tolist()]
        longest = max(map(len, chosen))
        responses = torch.tensor([r + [pad] * (longest - len(r)) for r in chosen], device=queries.device)
        both = torch.cat([queries, responses], 1)
        shape = (len(chosen), longest, model.config.vocab_size)
        logits = torch.empty(shape, dtype=torch.float32, device=queries.device)
        for start in range(0, len(chosen), 4):  # few at a time: the peak memory is to be TRL's own
            part = slice(start, start + 4)
            logits[part] = ORIGINAL_FORWARD(model, both[part], pad).logits[:, queries.shape[1] - 1 : -1].float()
        self.clock.outside += time.perf_counter() - since
        return both, logits


ORIGINAL_FORWARD = ppo_trainer.forward


def trainer_of(args: argparse.Namespace, rollouts: list[dict[str, list[int]]], clock: Clock) -> PPOTrainer:
    """Policy with a LoRA adapter as ours, its reference the same without; value model with an adapter as well."""
    from datasets import Dataset
    from peft import LoraConfig, inject_adapter_in_model

    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[args.precision]
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.pad_token_id = PAD
    policy = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    policy.generation_config.pad_token_id = PAD
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1, dtype=dtype) for _ in range(2)
    )
    layers = list(range(args.cut, policy.config.num_hidden_layers))
    lora = LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=LINEAR, layers_to_transform=layers)
    inject_adapter_in_model(lora, value)
    value.score.requires_grad_(True)
    reward.requires_grad_(False)
    settings = PPOConfig(
        output_dir=str(args.out.parent / "trl"),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=args.device == "cpu",
        bf16=False,  # the weights are in the precision asked for: nothing is left to cast
        gradient_checkpointing=False,  # this trainer never turns it on, whatever is set
        per_device_train_batch_size=args.minibatch,
        gradient_accumulation_steps=len(rollouts) // args.minibatch,
        num_mini_batches=len(rollouts) // args.minibatch,
        num_ppo_epochs=args.epochs,
        total_episodes=len(rollouts) * args.steps,
        local_rollout_forward_batch_size=args.minibatch,
        response_length=args.tokens,
        stop_token="eos",
        temperature=1.0,
        missing_eos_penalty=1.0,
        num_sample_generations=0,
        learning_rate=7e-4,
    )
    prompts = Dataset.from_dict({"input_ids": [r["prompt_ids"] for r in rollouts]})
    trainer = PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=prompts,
        eval_dataset=prompts,
        peft_config=lora,
        callbacks=[clock],
    )
    for name, weight in trainer.model.named_parameters():
        if "lora_" in name:  # PEFT keeps them in float32 and casts activations to it, which is slower
            weight.data = weight.data.to(dtype)
    return trainer


def instrument(trainer: PPOTrainer, rollouts: list[dict[str, list[int]]], clock: Clock) -> None:
    """Time the phases of the trainer's loop."""

    def learning() -> str:
        return "epochs: forward" if torch.is_grad_enabled() else "reference"

    ppo_trainer.batch_generation = FixedAnswers(rollouts, clock)
    ppo_trainer.forward = clock.timed(learning, ppo_trainer.forward)
    ppo_trainer.get_reward = clock.timed(lambda: "value and reward", ppo_trainer.get_reward)
    trainer.accelerator.backward = clock.timed(lambda: "epochs: backward", trainer.accelerator.backward)
    trainer.optimizer.step = clock.timed(lambda: "epochs: optimiser", trainer.optimizer.step)


def peak_mib(device: str) -> float:
    """Largest resident size of this process, or what the GPU held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def arguments() -> argparse.Namespace:
    """What benchmarks/ppo_speed.py gives either side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rollouts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bfloat16")
    for name in ("minibatch", "epochs", "steps", "tokens", "cut", "rank", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--count", action="store_true", help="ignored here")
    return parser.parse_args()


def main() -> None:
    """Train, and write what was measured."""
    args, clock = arguments(), Clock()
    torch.set_num_threads(args.threads)
    rollouts = json.loads(args.rollouts.read_text(encoding="utf-8"))
    imported = peak_mib(args.device)
    trainer = trainer_of(args, rollouts, clock)
    loaded = peak_mib(args.device)
    instrument(trainer, rollouts, clock)
    trainer.train()
    memory = {"imported": imported, "loaded": loaded, "peak": peak_mib(args.device)}
    args.out.write_text(json.dumps({"steps": clock.steps, "memory_mib": memory}), encoding="utf-8")


if __name__ == "__main__":
    main()
