"""Which replica answers: affinity, bounded by load."""

import math
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from plaudit_server.engine.choice import SLACK, choose, conversation_key, preference

NAMES = [f"engine-{n}" for n in range(5)]
LOADS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 200), min_size=1)


def said(*contents: Any, system: str | None = None) -> list[dict[str, Any]]:
    begin = [{"role": "system", "content": system}] if system else []
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return begin + turns


def test_all_turns_of_a_conversation_have_one_key() -> None:
    assert conversation_key(said("hi", "hello", "and?", system="s")) == conversation_key(said("hi", system="s"))


def test_users_of_one_application_have_keys_of_their_own() -> None:
    assert conversation_key(said("hi", system="s")) != conversation_key(said("ho", system="s"))


def test_what_is_no_conversation_has_no_key() -> None:
    for messages in (None, [], "x", [{"role": "system", "content": "s"}], ["x"]):
        assert conversation_key(messages) is None


def test_a_conversation_of_parts_has_a_key() -> None:
    assert conversation_key(said([{"type": "text", "text": "hi"}])) is not None


def test_without_load_a_conversation_goes_where_it_prefers() -> None:
    for key in map(str, range(50)):
        assert choose(dict.fromkeys(NAMES, 0), key) == preference(NAMES, key)[0]


def test_a_replica_that_leaves_takes_only_its_own_conversations_along() -> None:
    for key in map(str, range(200)):
        before, after = preference(NAMES, key)[0], preference(NAMES[1:], key)[0]
        assert before == after or before == NAMES[0]


def test_conversations_spread_evenly() -> None:
    shares = Counter(preference(NAMES, str(n))[0] for n in range(5000))
    assert all(880 < shares[name] < 1120 for name in NAMES)


def test_without_a_key_the_least_loaded_is_asked() -> None:
    assert choose({"a": 3, "b": 1, "c": 2}, None) == "b"


@given(LOADS, st.text())
def test_the_chosen_one_is_below_its_bound(loads: dict[str, int], key: str) -> None:
    if len(loads) > 1:
        assert loads[choose(loads, key)] < math.ceil(SLACK * (sum(loads.values()) + 1) / len(loads))


@given(LOADS, st.text())
def test_only_replicas_over_the_bound_are_passed_over(loads: dict[str, int], key: str) -> None:
    order = preference(sorted(loads), key)
    bound = math.ceil(SLACK * (sum(loads.values()) + 1) / len(loads))
    for passed_over in order[: order.index(choose(loads, key))]:
        assert loads[passed_over] >= bound


def test_one_long_conversation_fills_the_fleet_within_its_bound() -> None:
    loads = dict.fromkeys(NAMES, 0)
    for _ in range(100):
        loads[choose(loads, "all the same")] += 1
    assert max(loads.values()) <= 26
