"""Series of versions stay bounded; log lines carry no words of exceptions."""

import json
import logging
import sys

import pytest

from plaudit_server import telemetry as module
from plaudit_server.telemetry import JsonLines, Telemetry
from tests.support.metrics import value


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def versions_of(telemetry: Telemetry) -> set[str]:
    """Versions that any series names."""
    return {
        sample.labels["version"]
        for family in telemetry.registry.collect()
        for sample in family.samples
        if "version" in sample.labels
    }


def speak(telemetry: Telemetry, version: str) -> None:
    telemetry.chats.labels(version, "complete").inc()
    telemetry.tokens.labels(version, "completion").inc(5)
    telemetry.ttft_seconds.labels(version).observe(0.1)
    telemetry.spoke(version, 5, 0.1)
    telemetry.voted(version, "up", current={version})


def test_a_retired_version_keeps_its_series_for_a_while_and_then_loses_them(clock: list[float]) -> None:
    telemetry = Telemetry()
    for version in ("v1", "v2"):
        speak(telemetry, version)
    telemetry.forget_retired({"base", "v1", "v2"})
    clock[0] += module.RETIRED_KEEP_S / 2
    telemetry.forget_retired({"base", "v2"})
    assert versions_of(telemetry) == {"v1", "v2"}
    clock[0] += module.RETIRED_KEEP_S / 2 + 1
    telemetry.forget_retired({"base", "v2"})
    assert versions_of(telemetry) == {"v2"}


def test_a_thousand_versions_leave_no_series(clock: list[float]) -> None:
    telemetry = Telemetry()
    for number in range(1000):
        speak(telemetry, f"v{number}")
        clock[0] += module.RETIRED_KEEP_S / 4
        telemetry.forget_retired({f"v{number}"})
    assert len(versions_of(telemetry)) <= 6


def test_a_late_vote_is_counted_without_a_series_of_its_own(clock: list[float]) -> None:
    telemetry = Telemetry()
    telemetry.voted("v1", "down", current={"base", "v7"})
    telemetry.voted(None, "up", current={"base"})
    page = telemetry.render().decode()
    assert value(page, "plaudit_votes_total", version="retired", value="down") == 1
    assert value(page, "plaudit_votes_total", version="unknown", value="up") == 1
    clock[0] += 10 * module.RETIRED_KEEP_S
    telemetry.forget_retired({"base"})
    clock[0] += 10 * module.RETIRED_KEEP_S
    telemetry.forget_retired({"base"})
    assert versions_of(telemetry) == {"retired", "unknown"}


def test_speed_needs_two_tokens_and_time() -> None:
    telemetry = Telemetry()
    telemetry.spoke("v1", 1, 1.0)
    telemetry.spoke("v1", 5, 0.0)
    assert versions_of(telemetry) == set()
    telemetry.spoke("v1", 21, 2.0)
    assert value(telemetry.render().decode(), "plaudit_chat_tokens_per_second_sum", version="v1") == 10


def test_the_first_failed_swap_is_an_increase() -> None:
    page = Telemetry().render().decode()
    assert value(page, "plaudit_swaps_total", result="failed") == 0


def test_off_means_one_shared_span_that_does_nothing() -> None:
    telemetry = Telemetry()
    assert telemetry.span("a") is telemetry.span("b", x=1)


def line_of(name: str, message: str, *, with_error: bool = False) -> dict[str, object]:
    record = logging.LogRecord(name, logging.ERROR, __file__, 1, message, None, sys.exc_info() if with_error else None)
    line: dict[str, object] = json.loads(JsonLines().format(record))
    return line


def test_a_traceback_tells_types_and_places_but_no_words() -> None:
    try:
        try:
            {}["marker one"]
        except KeyError as cause:
            raise ValueError("marker two") from cause
    except ValueError:
        line = line_of("plaudit_server.app", "request.failed", with_error=True)
    text = json.dumps(line)
    assert "marker" not in text
    assert "builtins.ValueError" in text
    assert "builtins.KeyError" in text
    assert "test_telemetry.py" in text


def test_of_another_library_only_the_first_line_is_kept() -> None:
    line = line_of("asyncio", "Task exception was never retrieved\nfuture: <Task exception=ValueError('marker')>")
    assert line["event"] == "Task exception was never retrieved"
