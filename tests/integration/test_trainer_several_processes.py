"""Two processes on the CPU, started by `accelerate launch`, learn what one learns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plaudit_trainer import adapters
from plaudit_trainer.distributed import ALONE
from plaudit_trainer.learner import Job, learn
from tests.support import crew_child
from tests.support.fake_learner import fake_base
from tests.support.fake_server import KEY, FakeServer
from tests.support.tiny_models import save_tiny_base, tiny_config
from tests.support.tiny_votes import Quiet, TinyEngine, run, votes_on

ROOT = Path(__file__).parents[2]
LAUNCH = ["--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
LAUNCH += ["--main_process_port=0"]
FSDP = ["--use_fsdp", "--fsdp_version=2"]


def launch(scenario: str, folder: Path, *options: str) -> None:
    """Run `crew_child.py` in two processes; fails with their output."""
    done = started(*options, str(ROOT / "tests/support/crew_child.py"), scenario, str(folder))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes of a command, on the CPU."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT")}
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, *arguments],
        cwd=ROOT,
        env=clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "held"),
    [(["--multi_gpu"], 1.0), (FSDP, 0.5), ([*FSDP, "--fsdp_activation_checkpointing=true"], 0.5)],
    ids=["copies", "sharded", "sharded and checkpointed"],
)
def test_two_processes_take_the_same_steps_as_one(options: list[str], held: float, tmp_path: Path) -> None:
    launch("steps", tmp_path, *options)
    figures, weights = crew_child.steps(ALONE)
    for rank in (0, 1):
        said = json.loads((tmp_path / f"steps{rank}.json").read_text())
        assert said["held"] == pytest.approx(held, abs=0.01)
        assert len(said["steps"]) == len(figures) == 8
        for ours, theirs in zip(figures, said["steps"], strict=True):
            assert theirs == pytest.approx(ours, abs=1e-5, rel=1e-5)
        for name, weight in load_file(tmp_path / f"weights{rank}.safetensors").items():
            torch.testing.assert_close(weight, weights[name], atol=1e-5, rtol=1e-5)


def test_a_whole_run_is_led_by_one_process_and_survives_a_lost_lease(tmp_path: Path) -> None:
    """Sharded: answers are drawn, judged and probed together; the follower leaves a lesson that the leader gives up."""
    base = save_tiny_base(tmp_path / "base")
    launch("run", tmp_path, *FSDP)
    assert (tmp_path / "lost.txt").read_text() == "the lease is lost"
    outcome = json.loads((tmp_path / "outcome.json").read_text())

    alone = tmp_path / "alone"
    alone.mkdir()
    engine = TinyEngine()
    votes = votes_on(engine)
    engine.calls *= 3  # the lesson given up drew twice before: the seed of a draw is the number of draws so far
    expected = learn(Job(run(), votes, base, alone), engine, Quiet(), tiny_config(**crew_child.RUN))
    assert outcome["verdict"] == expected.verdict
    assert {p.name for p in (tmp_path / "v1").iterdir()} == {p.name for p in alone.iterdir()}
    assert outcome["metrics"] == pytest.approx(expected.metrics, abs=1e-3, rel=1e-3)
    theirs, ours = (adapters.read_weights(folder / "adapter") for folder in (tmp_path / "v1", alone))
    for name, weight in ours.items():  # rounded to bfloat16 on publishing
        torch.testing.assert_close(theirs[name], weight, atol=1e-4, rtol=1e-2)


def test_the_trainer_itself_is_launched_so_and_all_processes_end_with_the_leader(tmp_path: Path) -> None:
    base = fake_base(tmp_path / "model")
    (tmp_path / "trainer.key").write_text(KEY)
    with FakeServer(records=2).serve() as url:
        options = ["--once", f"--data={tmp_path}", f"--model={base}", f"--url={url}"]
        done = started("--multi_gpu", "-m", "plaudit_trainer", *options)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("waiting for feedback: 2 of 32 records") == 1  # one process alone speaks to the server
