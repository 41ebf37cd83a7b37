"""Dashboard and alerts ask only for what `/metrics` has, in PromQL that parses, in files that can be imported."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.support.metrics import exported, labels_of_samples

FOLDER = Path(__file__).parents[2] / "docs" / "dashboards"
BOARD: dict[str, Any] = json.loads((FOLDER / "plaudit.json").read_text(encoding="utf-8"))
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
ANNOTATIONS = [one["expr"] for one in BOARD["annotations"]["list"] if "expr" in one]
QUERIES = [target["expr"] for _, target in TARGETS] + ANNOTATIONS + [rule["expr"] for rule in RULES]
OF_THE_SCRAPE = {"job", "instance"}
KNOWN = labels_of_samples()


def parsed(expression: str) -> Any:
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def parts(node: Any) -> Iterator[Any]:
    """An expression and all that it is made of."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (child := getattr(node, name, None)) is not None:
            yield from parts(child)
    for child in getattr(node, "args", []):
        yield from parts(child)


def selectors(expression: str) -> list[Any]:
    return [part for part in parts(parsed(expression)) if isinstance(part, promql_parser.VectorSelector)]


@pytest.mark.parametrize("expression", QUERIES)
def test_a_query_names_metrics_and_labels_that_exist(expression: str) -> None:
    asked = selectors(expression)
    assert asked
    for selector in asked:
        assert selector.name in KNOWN, f"{selector.name} is not exported"
        given = {matcher.name for matcher in selector.matchers.matchers}
        assert given <= KNOWN[selector.name] | OF_THE_SCRAPE


@pytest.mark.parametrize("expression", QUERIES)
def test_a_query_groups_by_labels_that_its_metrics_have(expression: str) -> None:
    for part in parts(parsed(expression)):
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
            inside = [p for p in parts(part.expr) if isinstance(p, promql_parser.VectorSelector)]
            for selector in inside:
                assert set(part.modifier.labels) <= KNOWN[selector.name] | OF_THE_SCRAPE, (selector.name, expression)


def test_the_walk_finds_what_is_nested() -> None:
    found = selectors("histogram_quantile(0.9, sum by (le) (rate(a[5m]))) > 2 * -(max_over_time(b[1h:1m])) unless c")
    assert {selector.name for selector in found} == {"a", "b", "c"}


@pytest.mark.parametrize(("title", "target"), TARGETS)
def test_a_legend_shows_labels_that_the_query_keeps(title: str, target: dict[str, Any]) -> None:
    shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    top = parsed(target["expr"])
    kept = [p for p in parts(top) if isinstance(p, promql_parser.AggregateExpr)]
    for aggregate in kept:
        labels = set(aggregate.modifier.labels) if aggregate.modifier is not None else set()
        assert shown <= labels, title
    if not kept:
        assert shown <= set.union(*(KNOWN[s.name] for s in selectors(target["expr"]))) | OF_THE_SCRAPE


def test_the_board_can_be_imported() -> None:
    assert BOARD["id"] is None, "an id of one Grafana means another board in the next"
    assert (BOARD["uid"], BOARD["title"]) == ("plaudit", "Plaudit")
    assert BOARD["schemaVersion"] >= 36
    assert {variable["name"] for variable in BOARD["templating"]["list"]} == {"datasource", "job"}
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert {"id", "type", "title", "gridPos", "fieldConfig", "options", "targets", "datasource"} <= set(panel)
        assert panel["type"] in {"timeseries", "stat"}
        assert panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_panels_lie_within_the_grid_and_not_on_each_other() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in BOARD["panels"]]
    for title, at in places:
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24, title
    for (one, a), (other, b) in combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart = apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart, (one, other)


def test_every_query_of_the_board_heeds_the_chosen_job() -> None:
    for title, target in TARGETS:
        assert all("job" in {m.name for m in s.matchers.matchers} for s in selectors(target["expr"])), title


def test_what_an_operator_watches_is_on_the_board() -> None:
    shown = {selector.name for expression in QUERIES for selector in selectors(expression)}
    unseen = {metric.name for metric in exported() if metric.name.startswith("plaudit") and not metric.samples & shown}
    assert unseen == {"plaudit_scrape_seconds"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["alert"].startswith("Plaudit")
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
    howto = (FOLDER.parent / "howto" / "read-the-metrics.md").read_text(encoding="utf-8")
    assert f"`{rule['alert']}`" in howto


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_speaks_of_labels_that_it_has(rule: dict[str, Any]) -> None:
    said = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    grouped = [p.modifier for p in parts(parsed(rule["expr"])) if isinstance(p, promql_parser.AggregateExpr)]
    assert all(said <= set(modifier.labels) for modifier in grouped)
    assert not said or grouped


def test_the_alerts_that_were_promised_are_there() -> None:
    promised = {"EngineDown", "StableUnproven", "AnswersUnrecorded", "TrainerSilent", "SwapFailed", "VotesDriedUp"}
    assert {f"Plaudit{name}" for name in promised} <= {rule["alert"] for rule in RULES}
