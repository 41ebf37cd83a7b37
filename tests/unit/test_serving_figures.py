"""The arithmetic of the serving benchmarks: what counts as failed, frozen, mixed, and within a training run."""

import argparse
import json
import math
from pathlib import Path

import pytest

from benchmarks import rollback, soak, swap, train_beside
from benchmarks.decode import ratio
from benchmarks.load import Answer, _note, percentile, summary
from benchmarks.report import write_result
from benchmarks.swap import Swaps
from benchmarks.swap_in_place import in_place_figures


def answer(*gaps: float, began: float = 0.0, ttft: float = 0.1, version: str = "v1", **more: object) -> Answer:
    made = Answer(0, began, status=200, header_version=version, first_at=began + ttft, gaps=list(gaps))
    made.versions, made.tokens = {f"policy@{version}"}, 1 + len(gaps)
    made.ended = began + ttft + sum(gaps)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_percentiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1)) == (51, 100, 100)
    assert percentile([7], 0.99) == 7 and math.isnan(percentile([], 0.5))


def test_an_answer_of_two_versions_is_mixed_wherever_they_are_named() -> None:
    assert not answer().mixed
    assert answer(versions={"policy@v1", "policy@v2"}).mixed
    assert answer(header_version="v2").mixed


def test_a_stream_that_broke_off_has_failed() -> None:
    assert answer(error="the stream broke off").failed and answer(status=503).failed and not answer().failed


def test_frozen_is_a_second_beyond_the_usual_wait() -> None:
    still = [answer(0.05, 0.05) for _ in range(50)]
    assert swap.frozen([answer(0.05, 1.04)], still) == 0
    assert swap.frozen([answer(0.05, 1.06)], still) == 1
    assert swap.frozen([answer(0.05, ttft=1.09)], still) == 0
    assert swap.frozen([answer(0.05, ttft=1.11)], still) == 1
    assert swap.frozen([answer(9.0, status=503)], still) == 0, "counted as failed, not twice"


def test_figures_of_swaps() -> None:
    args = argparse.Namespace(step_seconds=30, clients=8, tokens=64, pause=2, engine="vllm")
    swaps = Swaps(["v1", "v2"], published=[0.0, 10.0], served=[1.0, 12.5], proofs=[0.5, 2.0])
    lanes = [answer(0.05, ttft=0.3), answer(0.05, status=503), answer(0.05, versions={"policy@v1", "policy@v2"})]
    found = swap.figures(args, still=[answer(0.05)], lanes=lanes, wait=[answer(status=503)], swaps=swaps, wrong=["v1"])
    assert (found["failed"], found["frozen"], found["mixed"]) == (1, 0, 2)
    assert found["added_p99_ttft_ms"] == 200 and found["publish_to_served_p95_s"] == 2.5
    assert found["wait"]["failed"] == 1


def test_only_whole_answers_of_one_version_are_asked_who_spoke() -> None:
    known = {"ids": [1, 2], "logprobs": [-0.1, -0.2]}
    assert swap._can_be_told(answer(**known))
    assert not swap._can_be_told(answer(**known | {"logprobs": [-0.1]}))
    assert not swap._can_be_told(answer(**known | {"header_version": "v2"}))


def test_figures_of_rollbacks() -> None:
    args = argparse.Namespace(gateways=2, engine="vllm")
    found = rollback.figures(args, [rollback.Rollback(0.02, n / 20, [0.0, n / 10], [answer()]) for n in range(10)])
    assert (found["seconds_p50"], found["seconds_p95"], found["seconds_max"]) == (0.5, 0.9, 0.9)


def test_what_was_not_measured_is_null_in_a_result_file(tmp_path: Path) -> None:
    written = write_result("x", {"p50": percentile([], 0.5), "by_load": [{"p50": 1.5}]}, tmp_path)
    figures = json.loads(written.read_text(), parse_constant=pytest.fail)["figures"]
    assert figures == {"p50": None, "by_load": [{"p50": 1.5}]}


def test_an_answer_counts_as_beside_training_only_as_a_whole() -> None:
    spans = [(10.0, 20.0), (20.0, 30.0), (50.0, 60.0)]
    inside, over, between = (answer(began=b, ended=e) for b, e in ((12.0, 28.0), (25.0, 40.0), (32.0, 45.0)))
    assert [train_beside._within(a, spans) for a in (inside, over, between)] == [True, False, False]


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([10, 5, 9], [20, 10, 10]) == 0.5


def test_pieces_are_read_as_they_come() -> None:
    one = Answer(0, 0.0)
    assert not _note(
        one, {"model": "policy@v1", "prompt_token_ids": [1], "choices": [{"delta": {"role": "assistant"}}]}
    )
    chunk = {
        "delta": {"content": "a b"},
        "token_ids": [7, 8],
        "logprobs": {"content": [{"logprob": -1}, {"logprob": -2}]},
    }
    assert _note(one, {"model": "policy@v1", "choices": [chunk]})
    assert not _note(one, {"error": {"message": "gone"}}) and one.failed
    assert (one.ids, one.logprobs, one.tokens, one.prompt_ids) == ([7, 8], [-1, -2], 2, [1])


def test_a_summary_leaves_what_failed_out_of_the_percentiles() -> None:
    found = summary([answer(0.1, 0.2), answer(5.0, status=503)])
    assert (found["answers"], found["failed"], found["longest_gap_ms"]) == (2, 1, 200.0)


def test_what_swaps_in_place_cost_is_counted_against_no_swaps() -> None:
    still = [answer(ttft=0.2) for _ in range(10)]
    swapped = [*(answer(ttft=0.2) for _ in range(9)), answer(ttft=7.2), answer(status=503)]
    found = in_place_figures(swapped, still, [6.0, 8.0])
    assert (found["failed"], found["swaps"], found["swap_p95_s"]) == (1, 2, 8.0)
    assert found["added_p99_ttft_ms"] == 7000 and found["longest_ttft_s"] == 7.2


def test_growth_is_told_of_long_lives_only() -> None:
    enough = soak.TELLING_LIFE
    assert soak.growth([100.0] * (enough - 1)) is None
    assert soak.growth([50.0] * (enough // 3) + [100.0] * (enough // 3) + [125.0] * (enough // 3)) == 0.25


@pytest.mark.parametrize(("grew", "words"), [(None, []), (0.05, []), (0.25, ["memory of the engine grew by 25%"])])
def test_a_soak_fails_of_growth_that_was_seen(grew: float | None, words: list[str]) -> None:
    found = {"acknowledged": 1, "lost": 0, "hung": [], "leaked": [], "errors_500": []}
    files, grown = {"before": 20, "after": 21}, {"server": 0.0, "engine": grew}
    assert soak.failures(found | {"files": files, "growth": grown}) == words
