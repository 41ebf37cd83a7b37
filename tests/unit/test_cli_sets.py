"""What the rows of known data sets say, and which answer they are about."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from plaudit.cli._sets import (
    READERS,
    BadRow,
    Preference,
    Stored,
    Text,
    Vote,
    alpaca,
    idempotency_key,
    langfuse,
    trl_preference,
    trl_unpaired,
)
from plaudit.cli.exporting import cell
from plaudit.cli.importing import Kind
from tests.support.sdk_harness import ANSWER_ID

ASKED = [{"role": "user", "content": "Capital?"}]
SCORE = {"name": "helpful", "value": 0.5, "dataType": "NUMERIC", "metadata": {"response_id": ANSWER_ID}}


def stored() -> Stored:
    """Three answers, newest first: two to one question."""
    found = Stored()
    found.add("newest", ASKED, "Paris.")
    found.add("other", ASKED, "Lyon.")
    found.add("oldest", ASKED, "Paris.")
    return found


def answer_of(vote: Any) -> str | None:
    assert isinstance(vote, Vote)
    return stored().find(vote.answer)


def test_each_kind_has_a_reader() -> None:
    assert {kind.value for kind in Kind} == set(READERS)


def test_alpaca_is_the_correction_of_the_newest_answer() -> None:
    vote = alpaca({"instruction": "Capital?", "input": "", "output": "Paris, of course."})
    assert answer_of(vote) == "newest"
    assert isinstance(vote, Vote)
    assert vote.fields == {"correction": "Paris, of course.", "source": "annotator"}
    with_input = alpaca({"instruction": "Translate.", "input": "ja", "output": "yes"})
    assert isinstance(with_input, Vote)
    found = Stored()
    found.add("it", [{"role": "user", "content": "Translate.\n\nja"}], "no")
    assert found.find(with_input.answer) == "it"


@pytest.mark.parametrize("prompt", ["Capital?", ASKED])
def test_unpaired_rows_find_their_answer_by_prompt_and_text(prompt: Any) -> None:
    vote = trl_unpaired({"prompt": prompt, "completion": [{"role": "assistant", "content": "Lyon."}], "label": False})
    assert answer_of(vote) == "other"
    assert isinstance(vote, Vote)
    assert vote.fields == {"value": False, "source": "annotator"}
    assert answer_of(trl_unpaired({"prompt": prompt, "completion": "Rome.", "label": False})) is None
    assert answer_of(trl_unpaired({"response_id": ANSWER_ID, "label": True})) == ANSWER_ID


def test_a_preference_may_keep_its_prompt_in_both_sides() -> None:
    said = [{"role": "assistant", "content": "Paris."}], [{"role": "assistant", "content": "Lyon."}]
    whole = trl_preference({"chosen": ASKED + said[0], "rejected": ASKED + said[1]})
    plain = trl_preference({"prompt": "Capital?", "chosen": "Paris.", "rejected": "Lyon.", "end_user": "ada"})
    for each in (whole, plain):
        assert isinstance(each, Preference)
        assert (stored().find(each.chosen), stored().find(each.rejected)) == ("newest", "other")
    assert isinstance(plain, Preference)
    assert plain.end_user == "ada"
    named = trl_preference({"prompt": "?", "chosen": "x", "rejected": "y", "rejected_id": ANSWER_ID})
    assert isinstance(named, Preference)
    assert named.rejected == ANSWER_ID
    assert isinstance(named.chosen, Text)


TRACE = ANSWER_ID.removeprefix("chatcmpl-")
V7 = "01890a5d-ac96-774b-8cce-b302099a8057"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"metadata": {"response_id": ANSWER_ID}}, ANSWER_ID),
        ({"metadata": f'{{"response_id": "{ANSWER_ID}"}}'}, ANSWER_ID),
        ({"traceId": ANSWER_ID}, ANSWER_ID),
        ({"observationId": V7, "traceId": "x"}, f"chatcmpl-{V7}"),
        ({"traceId": V7.replace("-", "")}, f"chatcmpl-{V7}"),
    ],
)
def test_a_score_names_its_answer(names: dict[str, Any], expected: str) -> None:
    vote = langfuse({"name": "helpful", "value": 1} | names)
    assert isinstance(vote, Vote)
    assert vote.answer == expected


def test_a_score_keeps_name_time_comment_and_origin() -> None:
    vote = langfuse(SCORE | {"comment": "hm", "timestamp": "2026-01-02T03:04:05.000Z", "source": "EVAL"})
    assert isinstance(vote, Vote)
    expected = {"value": 0.5, "key": "helpful", "source": "system", "comment": "hm"}
    assert vote.fields == expected | {"occurred_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, "BOOLEAN", 1.0),
        (0, "BOOLEAN", -1.0),
        ("True", "BOOLEAN", 1.0),
        ("0.25", "NUMERIC", 0.25),
        (0, "NUMERIC", 0.0),
    ],
)
def test_scores_become_votes(value: Any, kind: str, expected: float) -> None:
    vote = langfuse(SCORE | {"value": value, "dataType": kind})
    assert isinstance(vote, Vote)
    assert vote.fields["value"] == expected


@pytest.mark.parametrize(
    ("kind", "row", "why"),
    [
        ("alpaca", {"instruction": " ", "output": "x"}, "instruction"),
        ("alpaca", {"instruction": "x", "output": ""}, "output"),
        ("alpaca", {"instruction": "x", "input": 3, "output": "x"}, "input"),
        ("trl-unpaired", {"prompt": "x", "completion": "y", "label": 1}, "label"),
        ("trl-unpaired", {"prompt": "x", "completion": None, "label": True}, "completion"),
        ("trl-unpaired", {"prompt": [], "completion": "y", "label": True}, "prompt"),
        ("trl-preference", {"prompt": "x", "chosen": "y"}, "rejected"),
        ("trl-preference", {"chosen": "y", "rejected": "z"}, "prompt"),
        ("langfuse", SCORE | {"value": 5}, "outside"),
        ("langfuse", SCORE | {"value": "nan"}, "outside"),
        ("langfuse", SCORE | {"value": None}, "number"),
        ("langfuse", SCORE | {"dataType": "CATEGORICAL", "value": "good"}, "categorical"),
        ("langfuse", SCORE | {"timestamp": "yesterday"}, "timestamp"),
        ("langfuse", {"value": 1, "traceId": ANSWER_ID}, "name"),
        ("langfuse", {"name": "a", "value": 1, "traceId": uuid.uuid4().hex}, "no answer is named"),
    ],
)
def test_a_row_that_says_nothing_usable_says_why(kind: str, row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        READERS[kind](row)


def test_an_idempotency_key_is_of_what_is_said() -> None:
    said = {"response_id": ANSWER_ID, "value": 1, "occurred_at": datetime(2026, 1, 2, tzinfo=UTC)}
    assert idempotency_key("a", said) == idempotency_key("a", dict(reversed(said.items())))
    assert idempotency_key("a", said) != idempotency_key("a", said | {"value": -1})


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1", "  =1", "\n=1", "\u202e=1"])
def test_a_formula_is_inert(text: str) -> None:
    assert cell(text).startswith("'")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Paris", "Paris"),
        (-1.0, "-1.0"),
        (None, ""),
        (True, "true"),
        (["=1"], '["=1"]'),
        ("a\u202eb\x1b[31mc", "ab[31mc"),
        ("👩‍👧", "👩‍👧"),
        ("1 = 1", "1 = 1"),
    ],
)
def test_other_cells_stay_what_they_are(value: Any, expected: str) -> None:
    assert cell(value) == expected
