"""Plaudit's PPO, timed from inside, as `benchmarks/peers/trl_ppo.py` times TRL's; also draws the answers for both.

`update` is everything from answers to a changed adapter: the trunk, scores, reference log-probabilities, critic,
epochs, and the last pass for the probe. `generation` is drawing by the trainer's own model plus their
log-probabilities; in the service the engine does both.
"""

import argparse
import json
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from plaudit_trainer import trajectories
from plaudit_trainer.algorithms import ppo
from plaudit_trainer.algorithms.critic import Critic
from plaudit_trainer.architecture import load_base
from plaudit_trainer.batches import Trajectory
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange
from plaudit_trainer.reward_model import RewardModel, answer_features
from plaudit_trainer.rollouts import draw_unpublished, end_tokens, generate_unpublished
from plaudit_trainer.trajectories import PolicyData, prepare


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block."""
        since = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.phases[name] += time.perf_counter() - since

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, with its time added to the phase."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return call(*args, **kwargs)

        return run


class Quiet:
    """A `Reporter` that says nothing."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Nothing."""

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""


def settings(args: argparse.Namespace) -> TrainerConfig:
    """The trainer's defaults, but for what both sides are given; no ceiling, so that no step is saved."""
    return TrainerConfig(
        precision=args.precision,
        device=args.device,
        threads=args.threads,
        minibatch=args.minibatch,
        ppo_epochs=args.epochs,
        max_new_tokens=args.tokens,
        lora_rank=args.rank,
        kl_ceiling=1e9,
    )


def backbone_of(args: argparse.Namespace) -> Backbone:
    """The model with the adapters that a run has."""
    backbone = Backbone(load_base(args.model, settings(args)), args.cut)
    for name in (POLICY, REFERENCE):
        backbone.add_adapter(name, args.rank)
    return backbone


def draw(backbone: Backbone, args: argparse.Namespace) -> None:
    """Write the rollouts that both sides train on: prompts, and answers of the base model to them."""
    prompts = [tuple(p) for p in json.loads(args.prompts.read_text(encoding="utf-8"))]
    answers = generate_unpublished(backbone, prompts, max_new_tokens=args.tokens, temperature=1.0, seed=0)
    rows = [{"prompt_ids": list(a.prompt_ids), "response_ids": list(a.response_ids)} for a in answers]
    args.out.write_text(json.dumps(rows), encoding="utf-8")


def logged(backbone: Backbone, rollouts: list[dict[str, list[int]]]) -> list[Trajectory]:
    """The rollouts as the engine's log has them, with their log-probabilities."""
    exchanges = [Exchange(tuple(r["prompt_ids"]), tuple(r["response_ids"])) for r in rollouts]
    with backbone.using(POLICY):
        logprobs = backbone.all_logprobs(backbone.encode(exchanges), [1.0] * len(exchanges))
    ends = end_tokens(backbone.model)
    return [
        Trajectory(
            tokens=(e.prompt_ids, e.response_ids),
            logprobs=tuple(logprob_R.tolist()),
            temperature=1.0,
            finish_reason="stop" if e.response_ids[-1] in ends else "length",
            has_stops=False,
            version="base",
            vote=None,
            cluster=str(row),
        )
        for row, (e, logprob_R) in enumerate(zip(exchanges, logprobs, strict=True))
    ]


def update(backbone: Backbone, answers: list[Trajectory], judge: RewardModel, config: TrainerConfig) -> None:
    """Answers to a changed adapter, as `plaudit_trainer.run` does."""
    data: PolicyData = prepare(answers, backbone, judge, config)
    critic = Critic(judge, torch.stack([e.context_D for e in data.encoded]).cpu())
    ppo.train(backbone, critic, data, Quiet(), config)


def measured_steps(
    backbone: Backbone, rollouts: list[dict[str, list[int]]], args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of each step by phase, and the peak memory; the first step warms up."""
    config, clock, steps = settings(args), Clock(), []
    answers = logged(backbone, rollouts)
    judge = RewardModel.fresh(answer_features(backbone.encode([Exchange(*t.tokens) for t in answers])).cpu(), config)
    backbone.encode = clock.timed("trunk", backbone.encode)  # type: ignore[method-assign]
    backbone.all_logprobs = clock.timed("log-probabilities", backbone.all_logprobs)  # type: ignore[method-assign]
    ppo.accumulate_gradient = clock.timed("epochs: forward and backward", ppo.accumulate_gradient)
    ppo.fit_critic = clock.timed("critic", ppo.fit_critic)
    trajectories.score_parts = clock.timed("scores", trajectories.score_parts)
    for number in range(args.steps):
        clock.phases.clear()
        backbone.copy_adapter(REFERENCE, POLICY)
        since = time.perf_counter()
        prompts = [t.tokens[0] for t in answers]
        draw_unpublished(backbone, prompts, max_new_tokens=args.tokens, temperature=1.0, seed=number)
        generation = time.perf_counter() - since
        clock.phases.clear()
        since = time.perf_counter()
        with clock.phase("update"):
            update(backbone, answers, judge, config)
        steps.append({"step": generation + clock.phases["update"], "generation": generation, **clock.phases})
        print(
            f"plaudit step {number + 1}: {steps[-1]['step']:.1f} s, of which update {steps[-1]['update']:.1f} s",
            flush=True,
        )
    figures: dict[str, Any] = {"steps": steps, "memory_mib": {"peak": peak_mib(args.device)}}
    if args.count:
        backbone.copy_adapter(REFERENCE, POLICY)
        figures["flops"] = flops(lambda: update(backbone, answers, judge, config))
        figures["matrix_rate"] = matrix_rate(backbone.device, backbone.unembedding_VD.dtype)
    return figures


def flops(work: Callable[[], None]) -> int:
    """Floating-point operations of all matrix products and attention in the work."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def matrix_rate(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Floating-point operations a second of matrix products, by size: the machine's own ceiling."""
    rates = {}
    for rows, inner, columns in ((512, 576, 1536), (2048, 2048, 2048), (4096, 4096, 4096), (128, 576, 49152)):
        a, b = torch.randn(rows, inner, device=device).to(dtype), torch.randn(columns, inner, device=device).to(dtype)
        times = []
        for _ in range(8):
            since = time.perf_counter()
            torch.nn.functional.linear(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - since)
        rates[f"{rows}x{inner}x{columns}"] = 2 * rows * inner * columns / sorted(times)[len(times) // 2]
    return rates


def peak_mib(device: str) -> float:
    """Largest resident size of this process, or what the GPU held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def arguments() -> argparse.Namespace:
    """What benchmarks/ppo_speed.py gives either side, and what it asks for before."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rollouts", type=Path)
    parser.add_argument("--prompts", type=Path, help="only draw answers to these, and write them as rollouts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bfloat16")
    for name in ("minibatch", "epochs", "steps", "tokens", "cut", "rank", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--count", action="store_true", help="also count operations and measure the matrix rate")
    return parser.parse_args()


def main() -> None:
    """Draw or measure, and write what came of it."""
    args = arguments()
    torch.set_num_threads(args.threads)
    from transformers import AutoModelForCausalLM  # noqa: F401  (what follows is the model alone)

    imported = peak_mib(args.device)
    backbone = backbone_of(args)
    loaded = peak_mib(args.device)
    if args.prompts is not None:
        draw(backbone, args)
        return
    figures = measured_steps(backbone, json.loads(args.rollouts.read_text(encoding="utf-8")), args)
    figures["memory_mib"] |= {"imported": imported, "loaded": loaded}
    args.out.write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
