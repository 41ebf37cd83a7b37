"""Progress: what a person sees and what the server is told."""

import io
import math
import threading
import time

import pytest
from rich.console import Console

from plaudit.errors import ConflictError
from plaudit.wire.training import RunUpdate
from plaudit_trainer.lease import LeaseLost
from plaudit_trainer.progress import MAX_METRICS, Bars, Courier, Lines, RunReporter, display_for


class Ticks:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def nothing() -> None:
    """A check that never raises."""


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def posted() -> list[RunUpdate]:
    return []


@pytest.fixture
def reporter(ticks: Ticks, posted: list[RunUpdate]) -> RunReporter:
    return RunReporter(Lines(lambda line: None, ticks), posted.append, nothing, ticks)


def test_fast_steps_are_thinned_to_one_a_second_and_the_last_of_a_stage_arrives(
    reporter: RunReporter, ticks: Ticks, posted: list[RunUpdate]
) -> None:
    reporter.stage("ppo", 100)
    for step in range(1, 101):
        ticks.at += 0.1
        reporter.step(step, {"kl": step / 10})
    reporter.stage("gate")
    steps = [update.step for update in posted if update.step is not None]
    assert steps[0] == 1
    assert steps[-1] == 100
    assert len(steps) == pytest.approx(11, abs=1)
    assert [update.stage for update in posted if update.step is None] == ["ppo", "gate"]
    assert posted[-2].progress == 1.0


def test_slow_steps_are_all_posted_at_once(reporter: RunReporter, ticks: Ticks, posted: list[RunUpdate]) -> None:
    reporter.stage("fit", 3)
    for step in (1, 2, 3):
        ticks.at += 2
        reporter.step(step, {"loss": 1.0})
        assert posted[-1].step == step


def test_figures_that_are_no_numbers_are_left_out_and_the_wire_limit_is_kept(
    reporter: RunReporter, posted: list[RunUpdate]
) -> None:
    reporter.stage("fit")
    many = {f"m{index}": 1.0 for index in range(MAX_METRICS + 50)}
    reporter.step(1, {"loss": math.nan, "kl": math.inf, "good": 2.0} | many)
    metrics = posted[-1].metrics
    assert metrics["good"] == 2.0
    assert "loss" not in metrics
    assert "kl" not in metrics
    assert len(metrics) == MAX_METRICS
    assert posted[-1].progress is None


@pytest.mark.parametrize("call", ["stage", "step"])
def test_a_lost_lease_is_raised_from_either_call(call: str, ticks: Ticks) -> None:
    def lost() -> None:
        raise LeaseLost("gone")

    reporter = RunReporter(Lines(lambda line: None, ticks), lambda update: None, lost, ticks)
    with pytest.raises(LeaseLost):
        reporter.stage("x") if call == "stage" else reporter.step(1, {})


def test_lines_tell_stages_durations_and_only_now_and_then_a_step(ticks: Ticks) -> None:
    written: list[str] = []
    lines = Lines(written.append, ticks)
    lines.stage("fit", 30)
    for step in range(1, 31):
        ticks.at += 1
        lines.step(step, {"loss": 0.25})
    lines.close()
    words = [line.split(" ", 1)[1] for line in written]
    assert words == ["fit …", "fit 10/30 loss=0.25", "fit 20/30 loss=0.25", "fit 30/30 loss=0.25", "fit took 30.0 s"]


def test_bars_show_stage_steps_and_figures_in_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    bars = display_for(console)
    assert isinstance(bars, Bars)
    bars.say("hello [bold]")
    bars.stage("reward model", 4)
    bars.step(3, {"auroc": 0.75})
    bars.stage("rollouts", None)
    bars.close()
    text = out.getvalue()
    assert "hello [bold]" in text
    assert "reward model" in text
    assert "3/4" in text
    assert "auroc=0.75" in text
    assert "rollouts" in text


def test_a_pipe_gets_plain_lines() -> None:
    out = io.StringIO()
    display = display_for(Console(file=out))
    assert isinstance(display, Lines)
    display.say("x" * 300)
    assert out.getvalue().count("\n") == 1


def test_the_courier_delivers_in_order_and_survives_refusals() -> None:
    got: list[int | None] = []
    said: list[str] = []

    def post(update: RunUpdate) -> None:
        got.append(update.step)
        if update.step in (1, 2):
            raise ConflictError("run is over", status=409)

    courier = Courier()
    courier.start(post, said.append)
    for step in range(5):
        courier.put(RunUpdate(step=step))
    courier.close()
    assert got == [0, 1, 2, 3, 4]
    assert said == ["the server does not take this run's metrics: run is over"]


def test_a_courier_without_a_server_never_blocks_and_gives_up_when_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit_trainer.progress._FLUSH_S", 0.05)
    courier = Courier()
    ended = threading.Event()

    def away(update: RunUpdate) -> None:
        try:
            while True:
                courier.check()
                time.sleep(0.005)
        finally:
            ended.set()

    courier.start(away, lambda line: None)
    began = time.monotonic()
    for step in range(2000):
        courier.put(RunUpdate(step=step))
    courier.close()
    assert time.monotonic() - began < 2
    assert ended.wait(2)
