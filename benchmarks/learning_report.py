"""The figures and the table of `learning_curve`, from its cells."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import judging
from benchmarks.cells import Cell
from benchmarks.judging import Question

AIMS = {"512": 30.0, "1024": 40.0}
Leads = dict[str, dict[str, dict[str, list[float]]]]
"""Points that PPO gained more, with interval: by other learner, votes, and taste or `all`."""


def figures_of(cells: Sequence[Cell]) -> dict[str, Any]:
    """The figures of one taste, learner and number of votes, over its seeds."""
    seeds = [[Question.of(row) for row in cell["questions"]] for cell in cells]
    rounds = [r for cell in cells for r in cell["rounds"]]
    return {
        "seeds": len(cells),
        "questions": sum(map(len, seeds)),
        "base_rate": round(judging.mean_of(seeds, "base", "liked"), 4),
        "new_rate": round(judging.mean_of(seeds, "new", "liked"), 4),
        "gain_points": judging.gain_points(seeds),
        "win_rate": judging.win_rate(seeds),
        "length_adjusted_gain_points": judging.length_adjusted_gain(seeds),
        "length_matched_gain_points": judging.length_matched_gain(seeds),
        "length_matched_share": round(judging.matched_share(seeds), 3),
        "mean_words": [round(judging.mean_of(seeds, side, "words"), 1) for side in ("base", "new")],
        "mean_tokens": [round(judging.mean_of(seeds, side, "tokens"), 1) for side in ("base", "new")],
        "kl_to_base": round(judging.mean_of(seeds, "new", "kl"), 2),
        "rounds_passed": [sum(r["verdict"] == "candidate" for r in c["rounds"]) for c in cells],
        "seconds_a_round": round(sum(r["seconds"] for r in rounds) / max(len(rounds), 1), 1),
        "commits": sorted({c["commit"] for c in cells}),
        "computed": sorted({f"{c['machine']['processor']}, {c['machine']['precision']}" for c in cells}),
    }


def report(cells: Sequence[Cell], missing: list[str]) -> dict[str, Any]:
    """All figures: each as `<figure>.<taste>.<learner>.<votes>`; and which cells are missing."""
    seeds: dict[tuple[str, str, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        seeds[cell["taste"], cell["learner"], cell["votes"]].append(cell)
    by_cell = {key: figures_of(found) for key, found in sorted(seeds.items())}
    names = list(next(iter(by_cell.values()), {}))
    nested: dict[str, Any] = {name: {} for name in names}
    for (taste, learner, votes), figures in by_cell.items():
        for name in names:
            nested[name].setdefault(taste, {}).setdefault(learner, {})[str(votes)] = figures[name]
    ahead = leads(cells)
    further = {
        "aims": aims(nested, ahead),
        "ppo_lead_points": ahead,
        "missing": missing,
        "settings": settings_of(cells),
    }
    return nested | further


def leads(cells: Sequence[Cell]) -> Leads:
    """PPO's leads, each on the seeds that both have."""
    asked = {
        (c["learner"], str(c["votes"]), c["taste"], c["seed"]): [Question.of(row) for row in c["questions"]]
        for c in cells
    }
    duels: dict[tuple[str, str, str], dict[int, list[judging.Duel]]] = defaultdict(lambda: defaultdict(list))
    for (learner, votes, taste, seed), theirs in sorted(asked.items()):
        mine = asked.get(("ppo", votes, taste, seed))
        if learner != "ppo" and mine:
            for name in (taste, "all"):
                duels[learner, votes, name][seed].append((mine, theirs))
    found: Leads = {}
    for (learner, votes, name), by_seed in duels.items():
        lead = judging.lead_points(list(by_seed.values()))
        found.setdefault(learner, {}).setdefault(votes, {})[name] = lead
    return found


def aims(nested: dict[str, Any], found: Leads) -> dict[str, Any]:
    """For tastes that base meets less than half of the time: is PPO's gain as wanted, is it first or near the first?

    Near is who is not certainly behind: whose paired interval, on the seeds that both have, reaches 0. It is None where
    nobody else was measured on as many votes.
    """
    verdicts: dict[str, Any] = {}
    for taste, learners in nested.get("gain_points", {}).items():
        for votes, wanted in AIMS.items():
            gain = learners.get("ppo", {}).get(votes)
            if gain is None or nested["base_rate"][taste]["ppo"][votes] >= 0.5:
                continue
            ahead = {other: lead[votes][taste] for other, lead in found.items() if taste in lead.get(votes, {})}
            behind = sorted(other for other, (_, _, high) in ahead.items() if high < 0)
            closest = min(ahead, key=lambda other: ahead[other][0], default=None)
            verdicts[f"{taste}.{votes}"] = {
                "wanted": wanted,
                "met": gain[0] >= wanted,
                "first": "ppo" if closest is None or ahead[closest][0] >= 0 else closest,
                "beside": sorted(ahead),
                "behind": behind,
                "ppo_first_or_within": not behind if ahead else None,
            }
    return verdicts


def settings_of(cells: Sequence[Cell]) -> dict[str, Any]:
    """What all cells were made with, but for taste, learner and seed; and what not all: the learners of each value."""
    learners: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for cell in cells:
        for name, value in _flat(cell["settings"]):
            learners[name][json.dumps(value)].add(cell["learner"])
    for own in _OWN_SETTINGS:
        learners.pop(own, None)
    same = {name: json.loads(next(iter(values))) for name, values in learners.items() if len(values) == 1}
    differing = {
        name: {value: sorted(who) for value, who in sorted(values.items())}
        for name, values in learners.items()
        if len(values) > 1
    }
    return {"same": same, "differing": differing}


def _flat(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in sorted(settings.items()):
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def show(result: dict[str, Any], console: Console) -> None:
    """The table."""
    table = Table(title="Gain of the 👍-rate on questions never learnt on, points [95 %], after so many votes")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("taste", "learner") else "right")
    for taste, learners in result.get("gain_points", {}).items():
        for learner, by_votes in learners.items():
            for votes in by_votes:
                cell = {name: result[name][taste][learner][votes] for name in result if name not in _NOT_BY_CELL}
                table.add_row(taste, f"{cell['base_rate']:.2f}", learner, votes, *_row(cell))
    console.print(table)
    for name, verdict in result["aims"].items():
        met = "met" if verdict["met"] else "not met"
        console.print(f"{name}: aim +{verdict['wanted']:.0f} {met}; {_place(verdict)}", highlight=False)
    for learner, by_votes in result["ppo_lead_points"].items():
        for votes, tastes in by_votes.items():
            apart = ", ".join(f"{name} {points[0]:+.1f}" for name, points in tastes.items() if name != "all")
            lead = f"{_points(tastes['all'])} ({apart})"
            console.print(f"ppo before {learner} after {votes} votes: {lead}", highlight=False)
    if result["missing"]:
        console.print(f"missing {len(result['missing'])}: {', '.join(result['missing'])}", highlight=False)
    for name, values in result["settings"]["differing"].items():
        differing = "; ".join(f"{value} ({', '.join(who)})" for value, who in values.items())
        console.print(f"not the same in all cells: {name} {differing}", highlight=False)


def _place(verdict: dict[str, Any]) -> str:
    if verdict["ppo_first_or_within"] is None:
        return "no other learner to compare ppo with"
    behind = ", ".join(verdict["behind"])
    where = f"behind {behind}" if behind else "first or within its interval"
    return f"ppo {where}, beside {', '.join(verdict['beside'])}"


_COLUMNS = [
    "taste",
    "base",
    "learner",
    "votes",
    "seeds",
    "gain",
    "at equal length",
    "win rate",
    "words",
    "KL",
    "passed",
]
_OWN_SETTINGS = ("taste", "crowd.seed", "config.seed", "config.algorithm")
"""Those that make a cell what it is."""
_NOT_BY_CELL = ("aims", "ppo_lead_points", "missing", "settings")


def _row(cell: dict[str, Any]) -> list[str]:
    return [
        str(cell["seeds"]),
        _points(cell["gain_points"]),
        _points(cell["length_adjusted_gain_points"]),
        f"{cell['win_rate'][0]:.2f}",
        f"{cell['mean_words'][0]:.0f} → {cell['mean_words'][1]:.0f}",
        f"{cell['kl_to_base']:.1f}",
        "/".join(map(str, cell["rounds_passed"])),
    ]


def _points(interval: Sequence[float]) -> str:
    mean, low, high = interval
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
