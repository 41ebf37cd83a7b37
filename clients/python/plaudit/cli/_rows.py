"""Reading data sets: objects with the lines they stand on, out of JSON, JSON Lines and CSV."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a file. `problem` says why it is none."""

    number: int
    row: Row
    problem: str | None = None


def read_lines(path: Path) -> Iterator[Line]:
    """The rows of a file: CSV by its ending, else a JSON array or JSON Lines by its first character.

    Raises:
        OSError: it cannot be read.
        ValueError: a JSON array that is none, from where it breaks on; text that is not UTF-8.
    """
    with path.open(encoding="utf-8-sig", newline="" if path.suffix.lower() == ".csv" else None) as file:
        if path.suffix.lower() == ".csv":
            yield from _csv_rows(file)
        elif _begins_array(file):
            yield from _array_rows(file.read())
        else:
            yield from _json_lines(file)


def _csv_rows(file: TextIO) -> Iterator[Line]:
    reader = csv.DictReader(file, strict=True)
    number = 2
    try:
        for row in reader:
            ragged = None in row or None in row.values()
            yield Line(number, row, "it has not as many cells as the head line" if ragged else None)
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {number}: {error}") from None


def _begins_array(file: TextIO) -> bool:
    while (first := file.read(1)).isspace():
        pass
    file.seek(0)
    return first == "["


def _json_lines(file: TextIO) -> Iterator[Line]:
    for number, text in enumerate(file, start=1):
        if text.strip():
            try:
                yield _line(number, json.loads(text))
            except (ValueError, RecursionError) as error:
                yield Line(number, {}, f"no JSON: {error}")


def _array_rows(text: str) -> Iterator[Line]:
    decoder = json.JSONDecoder()
    at, number, counted = _past_space(text, text.index("[") + 1), 1, 0
    while at < len(text) and text[at] != "]":
        number, counted = number + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: no JSON from here on: {error}") from None
        yield _line(number, value)
        at = _past_space(text, at)
        if text[at : at + 1] == ",":
            at = _past_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise ValueError(f"line {number}: a comma or the end of the array is missing behind this row")
    if at >= len(text):
        raise ValueError("the array has no end: is the file whole?")


def _past_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _line(number: int, value: Any) -> Line:
    if isinstance(value, dict):
        return Line(number, value)
    return Line(number, {}, f"an object is wanted, not {type(value).__name__}")
