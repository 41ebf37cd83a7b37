"""The figures of the learning benchmarks, against numbers counted by hand."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import judging, learning_curve, learning_report, staleness
from benchmarks.cells import Cells
from benchmarks.judging import Question, Seen
from benchmarks.learning_curve import Plan, Unit


def seen(liked: int, words: int = 10, kl: float = 0.0) -> Seen:
    return Seen(bool(liked), words, 2 * words, kl)


def question(base: list[int], new: list[int], name: str = "q") -> Question:
    return Question(name, [seen(x) for x in base], [seen(x, kl=2.0) for x in new])


def test_the_gain_weighs_questions_alike_however_many_answers_they_have() -> None:
    seeds = [[question([0, 0], [1, 1]), question([1], [1])]]
    mean, low, high = judging.gain_points(seeds)
    assert mean == 50
    assert low == 0 and high == 100  # two questions: anything may come of them


def test_equal_questions_leave_no_doubt() -> None:
    seeds = [[question([0, 1], [1, 1])] * 30] * 3
    assert judging.gain_points(seeds) == [50, 50, 50]


def test_the_interval_spans_seeds_that_disagree() -> None:
    """Questions within a seed agree wholly; only resampling seeds shows the doubt."""
    seeds = [[question([0], [1])] * 50, [question([0], [0])] * 50]
    mean, low, high = judging.gain_points(seeds)
    assert (mean, low, high) == (50, 0, 100)


def test_the_interval_narrows_with_questions() -> None:
    draw = random.Random(0)

    def width(count: int) -> float:
        questions = [question([draw.random() < 0.3], [draw.random() < 0.6]) for _ in range(count)]
        _, low, high = judging.gain_points([questions])
        return high - low

    assert width(800) < 0.6 * width(100)


def test_the_win_rate_is_that_of_all_pairs_with_ties_as_halves() -> None:
    base, new = [0, 1, 0], [1, 1, 0, 1]
    pairs = [0.5 * (n == b) + (n > b) for b in base for n in new]
    assert judging.win_rate([[question(base, new)]])[0] == pytest.approx(sum(pairs) / len(pairs), abs=1e-4)


def test_only_answers_of_like_length_are_matched() -> None:
    base = [seen(0, words=20), seen(1, words=40)]
    new = [seen(1, words=21), seen(1, words=40), seen(0, words=60)]
    seeds = [[Question("q", base, new)]]
    assert judging.length_matched_gain(seeds)[0] == 50  # 20→21 gains one, 40→40 gains none
    assert judging.matched_share(seeds) == pytest.approx(2 / 6)


def long_lovers(extra: int, better: int) -> list[Question]:
    """Answers are liked by their length (in words), and `better` of ten new ones are liked besides."""
    questions = []
    for i in range(40):
        words = [10 + (i + k) % 10 for k in range(10)]
        base = [seen(int(w >= 15), w) for w in words]
        new = [seen(int(w + extra >= 15 or k < better), w + extra) for k, w in enumerate(words)]
        questions.append(Question(str(i), base, new))
    return questions


def test_a_gain_that_is_all_length_is_found_out() -> None:
    seeds = [long_lovers(extra=3, better=0)]
    assert judging.gain_points(seeds)[0] == pytest.approx(30)
    assert abs(judging.length_adjusted_gain(seeds)[0]) < 8
    assert abs(judging.length_matched_gain(seeds)[0]) < 8


def test_a_gain_at_equal_length_stays() -> None:
    seeds = [long_lovers(extra=0, better=4)]
    raw = judging.gain_points(seeds)[0]
    assert raw > 15
    assert judging.length_adjusted_gain(seeds)[0] == pytest.approx(raw, abs=0.1)


def test_the_adjustment_is_the_coefficient_of_least_squares() -> None:
    draw = random.Random(3)
    questions = [
        Question(
            str(i),
            [seen(draw.random() < 0.3, draw.randrange(10, 50)) for _ in range(4)],
            [seen(draw.random() < 0.6, draw.randrange(20, 60)) for _ in range(3)],
        )
        for i in range(30)
    ]
    rows, liked = [], []
    for i, q in enumerate(questions):
        for new, side in enumerate((q.base, q.new)):
            for s in side:
                rows.append([float(new), float(s.words), *(float(i == j) for j in range(30))])
                liked.append(float(s.liked))
    expected = np.linalg.lstsq(np.array(rows), np.array(liked), rcond=None)[0][0]
    assert judging.length_adjusted_gain([questions])[0] == pytest.approx(100 * expected, abs=1e-3)


def test_answers_all_of_one_length_need_no_adjustment() -> None:
    seeds = [[question([0, 1], [1, 1]), question([0, 0], [1, 0])]]
    assert judging.length_adjusted_gain(seeds)[0] == judging.gain_points(seeds)[0] == 50


def test_the_share_that_is_kept_is_paired_by_question() -> None:
    draw = random.Random(1)
    whole = [[question([0] * 4, [draw.random() < 0.6 for _ in range(4)]) for _ in range(30)] for _ in range(3)]
    half = [[Question(q.text, q.base + q.base, q.new + q.base) for q in seed] for seed in whole]
    share, low, high = judging.kept_share(half, whole)
    assert share == pytest.approx(0.5) and low == pytest.approx(0.5) and high == pytest.approx(0.5)


def test_a_lead_is_the_mean_difference_of_gains_and_none_before_oneself() -> None:
    mine = [question([0, 0], [1, 1], "a"), question([0, 1], [1, 1], "b")]
    theirs = [question([0, 0], [1, 0], "a"), question([0, 1], [1, 1], "b")]
    assert judging.lead_points([[(mine, theirs)]])[0] == 25
    assert judging.lead_points([[(mine, mine)], [(theirs, theirs)]]) == [0, 0, 0]


def test_tastes_share_their_questions_so_more_of_them_are_no_more_questions() -> None:
    """The same difference seen by a second taste tells nothing new: the interval stays as wide."""
    mine = [question([0], [i % 2], str(i)) for i in range(20)]
    theirs = [question([0], [0], str(i)) for i in range(20)]
    assert judging.lead_points([[(mine, theirs)] * 2]) == judging.lead_points([[(mine, theirs)]])


def test_a_duel_over_different_questions_is_refused() -> None:
    with pytest.raises(ValueError, match="same questions"):
        judging.lead_points([[([question([0], [1], "a")], [question([0], [1], "b")])]])


def test_means_are_of_the_side_that_is_asked_for() -> None:
    seeds = [[question([0], [1, 1])], [question([1, 1], [1])]]
    assert judging.mean_of(seeds, "base", "liked") == 0.5
    assert judging.mean_of(seeds, "new", "kl") == 2.0


def test_a_question_survives_its_file() -> None:
    asked = question([0, 1], [1])
    assert Question.of(asked.row()) == asked


# The report of learning_curve


def cell(taste: str, learner: str, seed: int, votes: int, new: int) -> learning_report.Cell:
    """Base is liked in 2 of 10 answers, the new version in `new` of 10."""
    asked = [question([1, 1] + [0] * 8, [1] * new + [0] * (10 - new), str(number)) for number in range(20)]
    return {
        "taste": taste,
        "learner": learner,
        "seed": seed,
        "votes": votes,
        "version": "v1",
        "rounds": [{"verdict": "candidate", "seconds": 2.0}, {"verdict": "rejected", "seconds": 4.0}],
        "questions": [q.row() for q in asked],
        "settings": {"taste": taste, "crowd": {"seed": seed}, "config": {"seed": seed, "algorithm": learner, "lr": 1}},
        "commit": "abc",
        "machine": {"processor": "P", "precision": "float32"},
        "date": "2026-01-01",
    }


def test_figures_are_named_by_taste_learner_and_votes() -> None:
    cells = [cell("number", "ppo", s, 512, 5) for s in range(3)] + [cell("number", "kto", s, 512, 6) for s in range(3)]
    result = learning_report.report(cells, ["number.ppo.1024.s0"])
    assert result["gain_points"]["number"]["ppo"]["512"] == [30, 30, 30]
    assert result["base_rate"]["number"]["ppo"]["512"] == 0.2
    assert result["rounds_passed"]["number"]["kto"]["512"] == [1, 1, 1]
    assert result["seconds_a_round"]["number"]["kto"]["512"] == 3
    assert result["missing"] == ["number.ppo.1024.s0"]
    assert result["settings"] == {"same": {"config.lr": 1}, "differing": {}}
    assert result["computed"]["number"]["ppo"]["512"] == ["P, float32"]
    verdict = result["aims"]["number.512"]
    assert verdict == {
        "wanted": 30.0,
        "met": True,
        "first": "kto",
        "beside": ["kto"],
        "behind": ["kto"],
        "ppo_first_or_within": False,
    }


def test_the_lead_of_ppo_is_over_what_both_were_measured_on() -> None:
    cells = [cell("number", "ppo", s, 512, 5) for s in range(3)] + [cell("number", "kto", s, 512, 6) for s in range(2)]
    cells += [cell("you", "ppo", 0, 512, 5), cell("you", "kto", 0, 512, 2), cell("you", "dpo", 0, 128, 2)]
    result = learning_report.report(cells, [])
    lead = result["ppo_lead_points"]
    assert lead["kto"]["512"]["number"] == [-10, -10, -10]
    assert lead["kto"]["512"]["you"] == [30, 30, 30]
    assert lead["kto"]["512"]["all"][0] == pytest.approx((-10 - 10 + 30) / 3, abs=1e-3)
    assert lead.keys() == {"kto"}
    console = Console(record=True, width=160)
    learning_report.show(result, console)
    assert "ppo before kto after 512 votes" in console.export_text()


def test_an_aim_that_is_missed_is_said_to_be() -> None:
    cells = [cell("number", "ppo", 0, 512, 4)]
    assert learning_report.report(cells, [])["aims"]["number.512"]["met"] is False


def test_ppo_is_behind_who_is_certainly_ahead_not_who_is_furthest_ahead() -> None:
    """One seed's wide interval reaches 0 where the lead of three does not."""
    ppo = [cell("number", "ppo", s, 512, 5) for s in range(3)]
    kto = [cell("number", "kto", s, 512, 6) for s in range(3)]
    good, bad = (cell("number", "reinforce", 0, 512, new) for new in (10, 2))
    mixed = good | {"questions": good["questions"][:11] + bad["questions"][11:]}
    result = learning_report.report([*ppo, *kto, mixed], [])
    assert result["aims"]["number.512"] | {"first": "reinforce", "behind": ["kto"]} == result["aims"]["number.512"]
    console = Console(record=True, width=160)
    learning_report.show(result, console)
    assert "ppo behind kto, beside kto, reinforce" in console.export_text()


def test_nobody_is_first_alone() -> None:
    cells = [cell("number", "ppo", 0, 512, 6), cell("number", "kto", 0, 128, 5)]
    result = learning_report.report(cells, [])
    assert result["aims"]["number.512"]["ppo_first_or_within"] is None
    console = Console(record=True, width=160)
    learning_report.show(result, console)
    assert "no other learner to compare ppo with" in console.export_text()


def test_who_is_first_is_told_by_the_seeds_that_both_have() -> None:
    """A hard seed that only PPO was measured on does not put it behind."""
    cells = [cell("number", "ppo", 0, 512, 6), cell("number", "ppo", 1, 512, 3), cell("number", "kto", 0, 512, 5)]
    verdict = learning_report.report(cells, [])["aims"]["number.512"]
    assert verdict["first"] == "ppo" and verdict["ppo_first_or_within"] is True


def test_a_taste_that_base_already_meets_has_no_aim() -> None:
    easy = cell("number", "ppo", 0, 512, 9)
    easy["questions"] = [question([1] * 6 + [0] * 4, [1] * 9 + [0]).row()]
    assert learning_report.report([easy], [])["aims"] == {}


def test_cells_of_unlike_settings_are_told() -> None:
    odd = cell("number", "ppo", 1, 512, 5)
    odd["settings"]["config"]["lr"] = 2
    cells = [cell("number", "ppo", 0, 512, 5), odd]
    result = learning_report.report(cells, [])
    assert result["settings"]["differing"] == {"config.lr": {"1": ["ppo"], "2": ["ppo"]}}
    console = Console(record=True, width=160)
    learning_report.show(result, console)
    assert "not the same in all cells: config.lr 1 (ppo); 2 (ppo)" in console.export_text()


# Cells on disk


def made(lr: float, new: int) -> learning_report.Cell:
    found = cell("number", "ppo", 0, 512, new)
    found["settings"]["config"]["lr"] = lr
    return found


def test_cells_kept_by_one_machine_are_found_on_the_next_and_its_own_come_first(tmp_path: Path) -> None:
    kept = tmp_path / "results" / "kept.jsonl"
    one, other = Cells(tmp_path / "one", 10, kept), Cells(tmp_path / "other", 10, kept)
    one.write("a", made(1, new=5))
    first = one.read("a", made(1, 0)["settings"])
    assert first == made(1, new=5)
    one.keep([("b", made(1, new=4)), ("a", first)])
    assert other.read("a", first["settings"]) == first
    other.write("a", made(1, new=9))
    assert other.read("a", first["settings"]) == made(1, new=9)
    other.keep([("a", made(1, new=9))])
    assert [json.loads(line)["name"] for line in kept.read_text().splitlines()] == ["a", "b"]
    assert Cells(tmp_path / "third", 10, kept).read("a", first["settings"]) == made(1, new=9)
    assert Cells(tmp_path / "third", 10).read("a", first["settings"]) is None  # not asked for


def test_cells_made_with_other_settings_do_not_count(tmp_path: Path) -> None:
    there = Cells(tmp_path, 10, tmp_path / "kept.jsonl")
    there.keep([("a", made(1, new=5))])
    there.write("a", made(2, new=5))
    assert there.read("a", made(1, 0)["settings"]) == made(1, new=5)  # the kept one
    assert there.read("a", made(2, 0)["settings"]) == made(2, new=5)
    assert there.read("a", made(3, 0)["settings"]) is None


def test_cells_of_fewer_answers_to_a_question_do_not_count(tmp_path: Path) -> None:
    settings = made(1, 0)["settings"]
    Cells(tmp_path, 10).write("a", made(1, new=5))
    assert Cells(tmp_path, 10).read("a", settings) is not None
    assert Cells(tmp_path, 20).read("a", settings) is None


def test_a_setting_that_came_later_is_not_compared_and_one_that_went_is(tmp_path: Path) -> None:
    there, now = Cells(tmp_path, 10), made(1, 0)["settings"]
    there.write("a", made(1, new=5))
    assert there.read("a", now | {"config": now["config"] | {"later": 7}}) == made(1, new=5)
    assert there.read("a", now | {"config": {"algorithm": "ppo", "seed": 0}}) is None


# What is to be run


def plan(**changes: object) -> Plan:
    start: dict[str, object] = {"tastes": ["you"], "learners": ["ppo", "kto"], "seeds": [0, 1], "votes": [512, 128]}
    return Plan(**(start | changes))  # type: ignore[arg-type]


def test_a_run_passes_through_all_its_cells() -> None:
    unit = Unit("you", "kto", 1)
    assert [u.name for u in plan().runs()] == ["you.ppo.s0", "you.kto.s0", "you.ppo.s1", "you.kto.s1"]
    piece = plan().piece(unit, Path("model"))
    assert piece.cells == {1: "you.kto.128.s1", 4: "you.kto.512.s1"}
    assert (piece.rules.config.algorithm, piece.rules.config.seed, piece.rules.config.max_new_tokens) == ("kto", 1, 64)


def test_cells_are_chosen_by_parts_of_their_names() -> None:
    chosen = plan(parts=["ppo.512", "kto.128.s1"])
    assert {u.name: chosen.votes_of(u) for u in chosen.runs()} == {
        "you.ppo.s0": [512],
        "you.ppo.s1": [512],
        "you.kto.s1": [128],
    }


def test_a_learner_may_have_its_own_learning_rate() -> None:
    mine, default = plan(lr={"kto": 1e-4}), plan()
    assert mine.settings(Unit("you", "kto", 0)).lr == 1e-4
    assert mine.settings(Unit("you", "ppo", 0)).lr == default.settings(Unit("you", "ppo", 0)).lr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--tastes", "blue"], "blue"),
        (["--learners", "magic"], "magic"),
        (["--votes", "100"], "multiples"),
        (["--lr", "magic=1"], "magic"),
    ],
)
def test_what_does_not_exist_is_refused(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert learning_curve.main([*given, "--report"]) == 2
    assert words in capsys.readouterr().err


# The report of staleness


def gains(new: int) -> dict[int, list[Question]]:
    return {seed: [question([0] * 10, [1] * new + [0] * (10 - new))] * 20 for seed in range(3)}


def test_the_gain_kept_is_that_of_the_decoupled_arm_at_lag_4() -> None:
    judged: staleness.Judged = {
        0: {"decoupled": gains(5)},
        4: {"decoupled": gains(4), "naive": gains(1)},
    }
    result = staleness.report(judged, ["x"], staleness.Plan("number", [0, 4], [0, 1, 2]))
    assert result["gain_kept_at_lag_4"] == [0.8, 0.8, 0.8]
    assert result["gain_kept"]["naive"]["4"][0] == pytest.approx(0.2)
    assert result["gain_points"]["naive"]["4"][0] == 10
    assert result["decoupled_lead_points"] == {"naive": {"4": [30, 30, 30]}}
    assert result["missing"] == ["x"]


def test_no_share_is_given_of_a_gain_that_is_none() -> None:
    judged: staleness.Judged = {0: {"decoupled": gains(0)}, 4: {"decoupled": gains(1)}}
    result = staleness.report(judged, [], staleness.Plan("number", [0, 4], [0, 1, 2]))
    assert "gain_kept_at_lag_4" not in result and result["gain_kept"] == {}


def test_the_arms_part_where_answers_are_old() -> None:
    names = [u.name for u in staleness.Plan("number", [0, 4], [0], ["decoupled", "recomputed"]).units()]
    assert names == ["number.lag0.decoupled.s0", "number.lag4.decoupled.s0", "number.lag4.recomputed.s0"]
