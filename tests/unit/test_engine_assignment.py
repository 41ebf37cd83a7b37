"""Which replica holds which whole model."""

import pytest

from plaudit_server.engine.assignment import goals, spare


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        (["base"], ["v1"], {0: "v1"}),
        (["base"], ["v1", "base"], {0: "v1"}),
        (["base", "base"], ["v1"], {0: "v1", 1: "v1"}),
        (["base", "v1"], ["base", "v1"], {0: "base", 1: "v1"}),
        (["v1", "base"], ["base", "v1"], {0: "v1", 1: "base"}),
        (["base", "base", "base"], ["base", "v1"], {0: "base", 1: "base", 2: "v1"}),
        (["base", "v9", "base"], ["base", "v1"], {0: "base", 1: "v1", 2: "base"}),
        (["base", None], ["v1", "base"], {0: "base", 1: "v1"}),
        (["v1", "v1"], ["v1", "v2", "v3"], {0: "v1", 1: "v2"}),
    ],
)
def test_who_shall_hold_what(held: list[str | None], wanted: list[str], expected: dict[int, str]) -> None:
    assert dict(goals(held, wanted)) == expected


def test_replicas_that_stay_come_first() -> None:
    assert [place for place, _ in goals(["base", "v1", "base"], ["v1"])] == [1, 0, 2]


@pytest.mark.parametrize(
    ("held", "loads", "wanted", "expected"),
    [
        (["base", "base"], [3, 1], ["base"], 1),  # the one with less to do
        (["base", "v9"], [0, 5], ["base"], 1),  # what nobody wants
        (["v1", "base", "v1"], [1, 0, 0], ["v1", "base"], 2),  # what another one holds too
        (["v1", "base"], [0, 5], ["v1", "base"], 1),  # what is needed less
        (["base"], [9], ["base"], 0),
    ],
)
def test_which_replica_can_best_be_spared(
    held: list[str | None], loads: list[int], wanted: list[str], expected: int
) -> None:
    assert spare(held, loads, wanted) == expected
