"""One of several processes that train together, as a launcher starts it: `crew_child.py SCENARIO FOLDER`.

steps   PPO on fixed answers; each process writes its weights and the figures of its steps
run     whole runs, led by the first process; the first is given up after a step, the second goes through
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from plaudit_trainer import distributed
from plaudit_trainer.algorithms.critic import Critic
from plaudit_trainer.algorithms.ppo import train
from plaudit_trainer.distributed import ALONE, Crew
from plaudit_trainer.learner import Job, learn
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange
from plaudit_trainer.reward_model import RewardModel, answer_features
from plaudit_trainer.trajectories import PolicyData
from tests.support.tiny_models import END, stir, tiny_config, tiny_llama
from tests.support.tiny_votes import Quiet, TinyEngine, run, trajectory, votes_on

SETTINGS: dict[str, Any] = {"lr": 3e-3, "ppo_epochs": 2, "kl_ceiling": 1e6, "minibatch": 6, "token_budget": 64}
RUN: dict[str, Any] = {"reward_bar": 0.0, "gate_win_rate": 0.0, "gate_length_growth": 99, "gate_end_of_text_drop": 1}
RUN |= {"lr": 3e-3, "kl_ceiling": 1e6, "probe_precision": "bfloat16", "token_budget": 256}


def spread_backbone(crew: Crew, checkpointing: bool = False) -> Backbone:
    """A tiny backbone whose adapters differ from the base, sharded where the crew is."""
    backbone = Backbone(tiny_llama(), 2, SETTINGS["token_budget"], crew)
    for name in (POLICY, REFERENCE):
        backbone.add_adapter(name, 4)
        stir(backbone, name)
    if checkpointing:
        backbone.checkpoint_layers()
    distributed.shard(backbone)
    return backbone


def fixed_answers(backbone: Backbone, count: int = 20) -> PolicyData:
    """Answers of unlike lengths with made-up scores: the last minibatch is smaller than the crew."""
    draw = torch.Generator().manual_seed(3)
    exchanges = [
        Exchange((5 + i, 6), (*torch.randint(3, 60, (1 + i % 9,), generator=draw).tolist(), END))
        for i in range(count - 1)
    ]
    exchanges.append(Exchange((5,) * 30, (7, 8, END)))
    encoded = backbone.encode(exchanges)
    with backbone.using(REFERENCE):
        reference = backbone.all_logprobs(encoded, [1.0] * count)
    trajectories = [
        trajectory(tokens=(e.prompt_ids, e.response_ids), logprobs=tuple(logprobs.tolist()))
        for e, logprobs in zip(exchanges, reference, strict=True)
    ]
    score_B = torch.tensor([float(sum(e.response_ids) % 7) for e in exchanges])
    return PolicyData(trajectories, encoded, score_B, [r - 0.1 for r in reference], reference)


def steps(crew: Crew, checkpointing: bool = False) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """PPO: the figures of each step and the policy in the end."""
    backbone = spread_backbone(crew, checkpointing)
    data, config, log = fixed_answers(backbone), tiny_config(**SETTINGS), Quiet()
    judge = RewardModel.fresh(answer_features(data.encoded), config)
    critic = Critic(judge, torch.stack([e.context_D for e in data.encoded]))
    train(backbone, critic, data, log, config)
    return log.steps, {name: w.detach().clone() for name, w in backbone.adapter(POLICY).items()}


class GivesUp(Quiet):
    """Loses its lease at the first step of the policy."""

    def step(self, step: int, metrics: dict[str, float]) -> None:
        if any(name.startswith("ppo/") for name in metrics):
            raise LookupError("the lease is lost")


def whole_runs(crew: Crew, folder: Path) -> None:
    """Lead or follow two lessons."""
    if crew.rank > 0:
        distributed.follow(crew, learn)
        return
    engine, lead = TinyEngine(), distributed.leading(crew, learn)
    votes = votes_on(engine)
    (folder / "lost").mkdir()
    try:
        lead(Job(run(), votes, folder / "base", folder / "lost"), engine, GivesUp(), tiny_config(**RUN))
    except LookupError as error:
        (folder / "lost.txt").write_text(str(error))
    (folder / "v1").mkdir()
    outcome = lead(Job(run(), votes, folder / "base", folder / "v1"), engine, Quiet(), tiny_config(**RUN))
    (folder / "outcome.json").write_text(json.dumps({"verdict": outcome.verdict, "metrics": outcome.metrics}))
    distributed.dismiss(crew)


def main(arguments: Sequence[str]) -> None:
    scenario, folder = arguments[0], Path(arguments[1])
    torch.set_num_threads(1)
    crew = distributed.join()
    assert crew is not ALONE
    if scenario == "run":
        whole_runs(crew, folder)
        return
    figures, weights = steps(crew)
    layers = [p for name, p in spread_backbone(crew).layers().named_parameters() if ".lora_" not in name]
    held = sum(getattr(p, "_local_tensor", p).numel() for p in layers) / sum(p.numel() for p in layers)
    save_file(weights, folder / f"weights{crew.rank}.safetensors")
    (folder / f"steps{crew.rank}.json").write_text(json.dumps({"steps": figures, "held": held}))
    crew.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
