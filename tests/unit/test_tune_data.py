"""Demonstrations from JSON lines: three shapes, every bad line named, duplicates left out."""

from pathlib import Path

import pytest

from plaudit_trainer.tune.data import SHOWN, BadData, Example, load, normalised
from tests.support.tune_rows import alpaca, chat, task, write


def only(tmp_path: Path, *rows: dict | str) -> list[Example]:
    return load([write(tmp_path / "d.jsonl", rows)]).examples


def refused(tmp_path: Path, *rows: dict | str) -> str:
    with pytest.raises(BadData) as error:
        only(tmp_path, *rows)
    return str(error.value)


def test_alpaca_puts_the_input_below_the_instruction(tmp_path: Path) -> None:
    first, second = only(tmp_path, alpaca("add", "2 3", "5"), alpaca("say hi", "", " hi "))
    assert first == Example((("user", "add\n\n2 3"),), "5", "add", False, "d.jsonl:1")
    assert (second.messages, second.response) == ((("user", "say hi"),), "hi")


def test_alpaca_input_may_be_missing_or_null(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "input": None, "output": "d"}]
    assert [e.messages[0][1] for e in only(tmp_path, *rows)] == ["a", "c"]


def test_a_task_gives_an_example_an_instance(tmp_path: Path) -> None:
    examples = only(tmp_path, task("big or small?", ("ant", "small"), ("elk", "big"), label=True))
    assert [e.messages[0][1] for e in examples] == ["big or small?\n\nant", "big or small?\n\nelk"]
    assert {e.instruction for e in examples} == {"big or small?"}
    assert all(e.is_classification and e.origin == "d.jsonl:1" for e in examples)


def test_a_task_without_the_flag_is_no_classification(tmp_path: Path) -> None:
    assert not only(tmp_path, task("a", ("b", "c")))[0].is_classification


def test_a_chat_gives_an_example_for_each_answer_with_all_before_it(tmp_path: Path) -> None:
    first, second = only(tmp_path, chat("a", "b", "c", "d", system="be kind"))
    assert first.messages == (("system", "be kind"), ("user", "a"))
    assert first.response == "b"
    assert second.messages == (("system", "be kind"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert second.response == "d"
    assert first.instruction == second.instruction == "a"


def test_shapes_may_be_mixed_and_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [alpaca(), chat("a", "b"), "", task("t", ("x", "y"), ("z", "y"))])
    loaded = load([path])
    assert loaded.shapes == {"alpaca": 1, "messages": 1, "instances": 1}
    assert (loaded.rows, len(loaded.examples)) == (3, 4)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{'a': 1}", "not JSON"),
        ("[1]", "a JSON array; one object a line is wanted (jq"),
        ("3", "a JSON int, not an object"),
        ({"prompt": "a", "completion": "b"}, "unknown shape with the keys completion, prompt; known are {instruction"),
        ("{}", "unknown shape with the keys none"),
        (alpaca(""), "instruction is empty"),
        (alpaca(output="  "), "output is empty"),
        ({"instruction": 3, "output": "b"}, "instruction is a int, not a text"),
        (alpaca(given=["x"]), "input is a list, not a text"),
        (alpaca(is_classification="yes"), "is_classification is 'yes', not true or false"),
        ({"instruction": "a", "instances": []}, "instances is not a list with at least one"),
        ({"instruction": "a", "instances": ["b"]}, "instances[0] is not an object"),
        (task("a", ("b", "c"), ("d", "")), "instances[1].output is empty"),
        ({"instances": [{"input": "", "output": "b"}]}, "instruction is missing"),
        ({"messages": []}, "messages is not a list with at least one turn"),
        ({"messages": ["a"]}, "messages[0] is not an object"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0] has the role 'tool'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content is missing"),
        (chat("a"), "does not end with the assistant's answer"),
        (chat("a", "b", "c"), "does not end with the assistant's answer"),
        ({"messages": [{"role": "system", "content": "a"}]}, "does not end with the assistant's answer"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages[0] is the assistant's"),
        ({"messages": [*chat("a", system="s")["messages"]] * 2}, "messages[2] is the system's"),
        ('{"instruction": "\\ud800", "output": "b"}', "instruction has a lone surrogate"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: dict | str, complaint: str) -> None:
    message = refused(tmp_path, alpaca(), row)
    assert message.startswith("1 line is bad")
    assert "d.jsonl:2: " in message
    assert complaint in message


def test_json_over_several_lines_is_recognised(tmp_path: Path) -> None:
    assert "one object a line is wanted" in refused(tmp_path, "[", '  {"instruction": "a", "output": "b"}', "]")


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"instruction": "\xff", "output": "b"}\n')
    with pytest.raises(BadData, match=r"d\.jsonl:1: not UTF-8 \(byte 17\)"):
        load([tmp_path / "d.jsonl"])


def test_all_bad_lines_are_listed_up_to_a_cap(tmp_path: Path) -> None:
    message = refused(tmp_path, *["x"] * (SHOWN + 5))
    assert f"{SHOWN + 5} lines are bad" in message
    assert f"d.jsonl:{SHOWN}: " in message
    assert f"d.jsonl:{SHOWN + 1}: " not in message
    assert message.endswith("… and 5 more")


def test_bad_lines_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    loaded = load([write(tmp_path / "d.jsonl", ["x", alpaca(), {"a": 1}])], skip_bad=True)
    assert [origin for origin, _ in loaded.bad] == ["d.jsonl:1", "d.jsonl:3"]
    assert (loaded.rows, len(loaded.examples)) == (3, 1)


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"no usable row in .*d\.jsonl \(1 bad ones\)"):
        load([write(tmp_path / "d.jsonl", ["x"])], skip_bad=True)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8-sig")
    assert load([tmp_path / "d.jsonl"]).examples[0].instruction == "a"


def test_a_folder_stands_for_its_json_lines(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [alpaca("b")])
    write(tmp_path / "a.jsonl", [alpaca("a")])
    write(tmp_path / "notes.txt", ["not data"])
    assert [e.origin for e in load([tmp_path]).examples] == ["a.jsonl:1", "b.jsonl:1"]


def test_missing_and_empty_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no such file"):
        load([tmp_path / "no.jsonl"])
    with pytest.raises(BadData, match=r"holds no \*\.jsonl"):
        load([tmp_path])


def test_duplicates_are_left_out_whatever_their_shape_and_spelling(tmp_path: Path) -> None:
    rows = [
        alpaca("Add!", "2 3", "5"),
        task("add!", ("2  3.", "5")),
        chat("ADD!\n\n2 3", "six"),
        alpaca("add", "2 4", "6"),
    ]
    loaded = load([write(tmp_path / "d.jsonl", rows)])
    assert [e.origin for e in loaded.examples] == ["d.jsonl:1", "d.jsonl:4"]
    assert (loaded.duplicates, loaded.contradictions) == (2, 1)


def test_what_is_not_the_same_is_kept(tmp_path: Path) -> None:
    rows = [alpaca("a", "x"), alpaca("a", "y"), chat("a\n\nx", "b", system="s")]
    assert len(only(tmp_path, *rows)) == 3


@pytest.mark.parametrize(("a", "b"), [("  Ｙｅｓ. ", "yes"), ("a\n b", "A B"), ("straße", "STRASSE")])
def test_normalised_texts_are_equal(a: str, b: str) -> None:
    assert normalised(a) == normalised(b)


def test_inner_punctuation_counts() -> None:
    assert normalised("2+2") != normalised("2-2")
