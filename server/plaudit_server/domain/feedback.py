"""Rules for votes: what may be voted on, what can be learnt from, which status the answer has."""

from typing import Literal

from plaudit_server.domain.ids import minted_at_ms
from plaudit_server.domain.records import Fate
from plaudit_server.errors import Gone, NotFound

PutOutcome = Literal["created", "replaced"]
Outcome = Literal["created", "replaced", "accepted"]

_STATUS: dict[Outcome, int] = {"created": 201, "replaced": 200, "accepted": 202}


def status_code(outcome: Outcome) -> int:
    """201 new · 200 replaced · 202 accepted before the answer's row is written."""
    return _STATUS[outcome]


def outcome(put: PutOutcome, fate: Fate) -> Outcome:
    """What the voter is told: `accepted` while the answer's row is not written, whatever became of the vote's."""
    return put if fate == "stored" else "accepted"


def check_target(response_id: str, fate: Fate, *, in_flight: bool) -> None:
    """Let feedback on an answer pass, or raise.

    Args:
        response_id: the answer.
        fate: what the store knows of it.
        in_flight: whether this server is answering it right now.

    Raises:
        NotFound: nobody knows it.
        Gone: it was erased, or its request said `store: false`.
    """
    if fate == "erased":
        raise Gone(f"{response_id} was erased.", code="erased", param="response_id")
    if fate == "unstored":
        raise Gone(
            f"{response_id} was made with `store: false` and cannot be rated.", code="not_stored", param="response_id"
        )
    if fate == "unknown" and not in_flight:
        lost = " It was never given, or a server ended too suddenly to write it." if minted_at_ms(response_id) else ""
        raise NotFound(f"There is no answer {response_id}.{lost}", code="response_not_found", param="response_id")


LONGEST_ANSWER_MS = 600_000


def may_be_on_its_way(response_id: str, *, now_ms: int) -> bool:
    """Whether the row of an answer that nobody knows may be about to be written by another gateway process.

    Ids are made when a chat begins, so one that was made longer ago than an answer takes is simply not there.
    """
    minted = minted_at_ms(response_id)
    return minted is not None and now_ms - minted < LONGEST_ANSWER_MS


def check_rater(response_id: str, rater: str, asker: str | None) -> None:
    """Let a user's vote on their own answer pass, or raise.

    Args:
        response_id: the answer.
        rater: keyed hash of whose vote it is.
        asker: of who asked for the answer; None where the chat named nobody.

    Raises:
        NotFound: it is somebody else's; said as of one that does not exist.
    """
    if asker is not None and asker != rater:
        check_target(response_id, "unknown", in_flight=False)


def is_trainable(
    *,
    value: float | None,
    has_correction: bool,
    retracted: bool,
    answered_at_ms: int | None,
    occurred_at_ms: int,
    received_at_ms: int,
    max_age_ms: int,
) -> bool:
    """Whether a piece of feedback may be learnt from.

    It must say something (a vote or a correction) and stand. It must have been given within `max_age_ms` of the answer,
    and have reached us within `max_age_ms` of being given. A clock that says it was given later than received counts
    as received.
    """
    if retracted or (value is None and not has_correction):
        return False
    given_at_ms = min(occurred_at_ms, received_at_ms)
    delay_ms = 0 if answered_at_ms is None else given_at_ms - answered_at_ms
    return delay_ms <= max_age_ms and received_at_ms - given_at_ms <= max_age_ms


def sign(value: float) -> Literal["up", "down", "neutral"]:
    """Which way a vote points."""
    return "up" if value > 0 else "down" if value < 0 else "neutral"
