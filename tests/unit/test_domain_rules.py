from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.wire.versions import VersionState
from plaudit_server.domain import feedback as rules
from plaudit_server.domain.ids import choice_id, completion_of, minted_at_ms, new_completion_id, new_id
from plaudit_server.domain.moments import DAY_MS, now_ms, to_moment, to_ms
from plaudit_server.domain.records import Fate
from plaudit_server.domain.traffic import Route, Split, in_share, resolve
from plaudit_server.domain.versions import (
    check_servable,
    check_transition,
    fingerprint,
    version_name,
    version_number,
)
from plaudit_server.errors import Conflict, Gone, NotFound

T0 = 1_800_000_000_000


def _trainable(**changes: object) -> bool:
    values: dict[str, object] = {
        "value": 1.0,
        "has_correction": False,
        "retracted": False,
        "answered_at_ms": T0,
        "occurred_at_ms": T0,
        "received_at_ms": T0,
        "max_age_ms": 30 * DAY_MS,
    }
    return rules.is_trainable(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"value": None}, False),
        ({"value": None, "has_correction": True}, True),
        ({"value": 0.0}, True),
        ({"retracted": True}, False),
        ({"occurred_at_ms": T0 + 30 * DAY_MS, "received_at_ms": T0 + 30 * DAY_MS}, True),
        ({"occurred_at_ms": T0 + 30 * DAY_MS + 1, "received_at_ms": T0 + 30 * DAY_MS + 1}, False),
        # given in time, reached us late
        ({"occurred_at_ms": T0 + DAY_MS, "received_at_ms": T0 + 31 * DAY_MS}, True),
        ({"occurred_at_ms": T0 + DAY_MS, "received_at_ms": T0 + 31 * DAY_MS + 1}, False),
        # a clock that is wrong: before the answer, after the receipt
        ({"occurred_at_ms": T0 - DAY_MS}, True),
        ({"occurred_at_ms": T0 - 31 * DAY_MS}, False),
        ({"occurred_at_ms": T0 + 90 * DAY_MS, "received_at_ms": T0 + DAY_MS}, True),
        # the answer is not written yet, and its id tells nothing
        ({"answered_at_ms": None}, True),
    ],
)
def test_what_can_be_learnt_from(changes: dict[str, object], expected: bool) -> None:
    assert _trainable(**changes) is expected


@given(delay=st.integers(0, 10**11), late=st.integers(0, 10**11))
def test_what_comes_in_time_is_trainable_and_nothing_else(delay: int, late: int) -> None:
    occurred = T0 + delay
    in_time = delay <= 30 * DAY_MS and late <= 30 * DAY_MS
    assert _trainable(occurred_at_ms=occurred, received_at_ms=occurred + late) is in_time


def test_targets_of_votes() -> None:
    rules.check_target("r", "stored", in_flight=False)
    rules.check_target("r", "unknown", in_flight=True)
    with pytest.raises(NotFound):
        rules.check_target("r", "unknown", in_flight=False)
    with pytest.raises(Gone, match="erased"):
        rules.check_target("r", "erased", in_flight=True)
    with pytest.raises(Gone, match="store: false"):
        rules.check_target("r", "unstored", in_flight=False)


@pytest.mark.parametrize(
    ("put", "fate", "status"),
    [
        ("created", "stored", 201),
        ("replaced", "stored", 200),
        ("created", "unknown", 202),
        ("replaced", "unknown", 202),
    ],
)
def test_status_codes(put: rules.PutOutcome, fate: Fate, status: int) -> None:
    assert rules.status_code(rules.outcome(put, fate)) == status


def test_signs() -> None:
    assert [rules.sign(v) for v in (1.0, 0.1, 0.0, -0.1, -1.0)] == ["up", "up", "neutral", "down", "down"]


# ── versions ────────────────────────────────────────────────────────────────────────────────────────────────────────

STATES: list[VersionState] = ["loading", "ready", "rejected", "failed"]
ALLOWED = {("loading", "ready"), ("loading", "failed"), ("ready", "failed")}


@pytest.mark.parametrize("wanted", STATES)
@pytest.mark.parametrize("now", STATES)
def test_only_the_drawn_transitions_are_allowed(now: VersionState, wanted: VersionState) -> None:
    if now == wanted or (now, wanted) in ALLOWED:
        check_transition("v1", now, wanted)
    else:
        with pytest.raises(Conflict, match=f"is {now} and cannot become {wanted}"):
            check_transition("v1", now, wanted)


def test_only_ready_untainted_versions_serve() -> None:
    check_servable("v1", "ready", tainted=False)
    for state in ("loading", "rejected", "failed"):
        with pytest.raises(Conflict) as raised:
            check_servable("v1", state, tainted=False)  # type: ignore[arg-type]
        assert raised.value.code == "version_not_ready"
    with pytest.raises(Conflict) as raised:
        check_servable("v1", "ready", tainted=True)
    assert raised.value.code == "version_tainted"


@given(st.integers(0, 10**9 - 1))
def test_names_and_numbers(number: int) -> None:
    assert version_number(version_name(number)) == number


def test_fingerprints() -> None:
    assert fingerprint("v42", "0123456789abcdef") == "v42-01234567"
    assert fingerprint("base", None) == "base"


# ── traffic ─────────────────────────────────────────────────────────────────────────────────────────────────────────

VERSIONS: dict[str, VersionState] = {"base": "ready", "v1": "ready", "v2": "ready", "v3": "loading", "v4": "rejected"}


def _resolve(model: str, *, canary: str | None = "v2", subject: str | None = None, share: float = 0.0) -> Route:
    aliases = {"stable": "v1", "previous": "base"} | ({"canary": canary} if canary else {})
    split = Split("rollout_1", 7, canary, share, "v1") if canary and share else None
    return resolve(model, aliases=aliases, states=VERSIONS, subject=subject, split=split)


@pytest.mark.parametrize(
    ("model", "route"),
    [
        ("policy", Route("v1", "stable")),
        ("policy@base", Route("base", "pinned")),
        ("policy@v2", Route("v2", "pinned")),
        ("policy@stable", Route("v1", "pinned")),
        ("policy@canary", Route("v2", "pinned")),
        ("policy@previous", Route("base", "pinned")),
    ],
)
def test_names_resolve(model: str, route: Route) -> None:
    assert _resolve(model) == route


@pytest.mark.parametrize("model", ["gpt-4", "policy@", "policy@v9", "policy@v3", "policy@v4", "policy@nobody", ""])
def test_what_cannot_answer_is_not_found(model: str) -> None:
    with pytest.raises(NotFound):
        _resolve(model)


def test_no_canary_is_not_found_when_asked_for_and_ignored_otherwise() -> None:
    with pytest.raises(NotFound, match="No version is canary"):
        _resolve("policy@canary", canary=None)
    assert _resolve("policy", canary=None, subject="eu_1", share=1.0) == Route("v1", "stable")


def test_a_canary_that_is_not_ready_gets_no_users() -> None:
    assert _resolve("policy", canary="v3", subject="eu_1", share=1.0) == Route("v1", "stable")


def test_only_an_arm_that_was_drawn_is_a_sample() -> None:
    users = [_resolve("policy", subject=f"eu_{i}", share=0.5) for i in range(50)]
    assert {(r.version, r.arm, r.segment) for r in users} == {("v1", "stable", 7), ("v2", "canary", 7)}
    unready = [_resolve("policy", canary="v3", subject=f"eu_{i}", share=0.5) for i in range(50)]
    assert {(r.version, r.arm, r.segment) for r in unready} == {("v1", "stable", 7), ("v1", "stable", None)}
    assert _resolve("policy@canary", subject="eu_1", share=0.5).segment is None
    assert _resolve("policy", subject=None, share=0.5).segment is None


def test_a_rollout_that_compares_with_another_stable_version_divides_nobody() -> None:
    split = Split("rollout_1", 7, "v2", 0.95, "base")
    for i in range(50):
        found = resolve("policy", aliases={"stable": "v1"}, states=VERSIONS, subject=f"eu_{i}", split=split)
        assert found == Route("v1", "stable")


def test_users_stick_to_their_arm_and_the_share_is_kept() -> None:
    arms = {f"eu_{i}": _resolve("policy", subject=f"eu_{i}", share=0.2).arm for i in range(5000)}
    assert arms == {user: _resolve("policy", subject=user, share=0.2).arm for user in arms}
    assert 0.18 < sum(arm == "canary" for arm in arms.values()) / 5000 < 0.22
    assert _resolve("policy", subject=None, share=1.0).arm == "stable"


@given(st.text(), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_growing_share_only_adds_users(rollout: str, subject: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert not in_share(rollout, subject, low) or in_share(rollout, subject, high)
    assert in_share(rollout, subject, 1.0)
    assert not in_share(rollout, subject, 0.0)


# ── ids and times ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_ids_sort_by_the_time_they_were_made_and_tell_it() -> None:
    before = now_ms()
    ids = [new_id("fb_") for _ in range(1000)]
    assert len(set(ids)) == 1000
    made = minted_at_ms(new_completion_id())
    assert made is not None
    assert before <= made <= now_ms()


def test_choices() -> None:
    first = new_completion_id()
    assert choice_id(first, 0) == first
    assert choice_id(first, 2) == f"{first}.2"
    assert completion_of(f"{first}.2") == completion_of(first) == first
    assert minted_at_ms(f"{first}.2") == minted_at_ms(first)


@pytest.mark.parametrize("text", ["", "chatcmpl-x", "chatcmpl-00000000-0000-4000-8000-000000000000"])
def test_ids_of_others_tell_no_time(text: str) -> None:
    assert minted_at_ms(text) is None


@given(st.integers(0, 4 * 10**12))
def test_times_survive_the_way_there_and_back(ms: int) -> None:
    assert to_ms(to_moment(ms)) == ms


def test_finer_parts_are_cut_off_not_rounded() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=1999)
    assert to_moment(to_ms(moment)) == datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=1)
