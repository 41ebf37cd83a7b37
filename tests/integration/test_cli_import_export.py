"""`plaudit import` and `plaudit export` against the real app on a real socket."""

import asyncio
import csv
import errno
import io
import itertools
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from plaudit.cli import app as command
from plaudit.cli._rows import read_lines
from plaudit.cli.exporting import WRITERS, Format
from plaudit_server.errors import StorageFull
from tests.support.server import Harness, listening, serving

pytestmark = pytest.mark.sqlite  # nothing here is the database's affair

HOSTILE = '=HYPERLINK("http://evil","x")\u202e<script>'


class Shell:
    """`plaudit` pointed at a server."""

    def __init__(self, server: Harness, url: str) -> None:
        self.arguments = ["--url", url, "--key", server.admin.headers["authorization"].removeprefix("Bearer ")]

    async def __call__(self, *args: Any) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, command, [*self.arguments, *map(str, args)])


async def votes(server: Harness) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await server.admin.get("/v1/feedback")).json()["data"]
    return found


def fill_the_disk(rows: Any, file: Any) -> int:
    """Writes one row; there is no room for the next."""
    file.write(json.dumps(next(iter(rows))))
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def files(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir() if each.is_file()}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


async def test_a_set_is_exported_relabelled_and_imported_twice(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        plaudit = Shell(server, url)
        first, second = await server.rated(2)
        exported = await plaudit("export", "trl-unpaired")
        rows = [json.loads(line) for line in exported.stdout.splitlines()]
        assert {row["response_id"]: row["label"] for row in rows} == {first: True, second: False}
        # Without ids, as a tool that knows nothing of them would hand them back.
        bare = [{"prompt": row["prompt"], "completion": row["completion"], "label": not row["label"]} for row in rows]
        foreign = {"prompt": "Never asked?", "completion": "Never said.", "label": True}
        path = write(tmp_path / "set.jsonl", [*bare, foreign, [], {"label": "yes"}])
        path.write_text(path.read_text() + "{broken\n", encoding="utf-8")
        for _ in range(2):
            told = await plaudit("import", "trl-unpaired", path, "--json")
            assert told.exit_code == 1
            counts = json.loads(told.stdout)
            assert (counts["read"], counts["imported"]) == (6, 2)
            assert [each["line"] for each in counts["refused"]] == [4, 5, 6, 3]
            assert counts["reasons"]["the server gave no such answer"] == 1
        kept = [row for row in await votes(server) if row["source"] == "annotator"]
        assert {row["response_id"]: (row["value"], row["revision"]) for row in kept} == {first: (-1, 1), second: (1, 1)}


async def test_corrections_comparisons_and_scores(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        plaudit = Shell(server, url)
        answer = await server.chat("What is 2+2?")
        said = answer["choices"][0]["message"]["content"]
        alpaca = tmp_path / "alpaca.json"
        alpaca.write_text(json.dumps([{"instruction": "What is 2+2?", "input": "", "output": "4"}], indent=1))
        assert (await plaudit("import", "alpaca", alpaca)).exit_code == 0
        pairs = [{"prompt": "What is 2+2?", "chosen": "Four.", "rejected": said}]
        pairs.append({"prompt": "What is 2+2?", "chosen": "Four.", "rejected": "Five."})
        told = await plaudit("import", "trl-preference", write(tmp_path / "p.jsonl", pairs))
        assert told.exit_code == 1
        assert "line 2: the server gave neither" in told.stderr
        scores = tmp_path / "scores.csv"
        scores.write_text(f"name,value,dataType,traceId,comment\nliked,1,BOOLEAN,{answer['id']},fine\n")
        assert (await plaudit("import", "langfuse", scores, "--thumb", "liked")).exit_code == 0
        assert (await plaudit("import", "alpaca", alpaca, "--thumb", "liked")).exit_code == 2
        (kept,) = await votes(server)
        assert (kept["key"], kept["value"], kept["comment"], kept["revision"]) == ("thumb", 1, "fine", 2)


async def test_a_refused_answer_is_a_refused_row(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        plaudit = Shell(server, url)
        row = {"response_id": "chatcmpl-01890a5d-ac96-774b-bcce-b302099a8057", "label": True}
        told = await plaudit("import", "trl-unpaired", write(tmp_path / "a.jsonl", [row, row | {"response_id": "x"}]))
        assert told.exit_code == 1
        assert "line 1: response_not_found" in told.stderr
        assert "line 2: response_id" in told.stderr
        plaudit.arguments[-1] = "plk_wrong"
        assert (await plaudit("import", "trl-unpaired", tmp_path / "a.jsonl")).stderr.count("\n") == 1


async def test_an_import_stops_where_the_server_fails_and_goes_on_when_started_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        plaudit = Shell(server, url)
        answers = await server.rated(3)
        path = write(tmp_path / "a.jsonl", [{"response_id": each, "label": True} for each in answers])
        kept = server.services.database.write
        tries = itertools.count()

        async def full(*args: Any, **options: Any) -> Any:
            if next(tries) >= 3:  # a key's claim, the vote and its answer: the first row is whole
                raise StorageFull
            return await kept(*args, **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(server.services.database, "write", full)
            told = await plaudit("import", "trl-unpaired", path)
        assert told.exit_code == 1
        assert "stopped at line 2, 1 imported" in told.stderr
        assert (await plaudit("import", "trl-unpaired", path)).exit_code == 0
        assert {row["revision"] for row in await votes(server) if row["source"] == "annotator"} == {1}


async def test_nothing_hostile_survives_in_an_export(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        plaudit = Shell(server, url)
        answer = await server.chat("Hello?")
        await server.vote(answer["id"], False, comment=HOSTILE, correction="Hello!")
        lines = (await plaudit("export", "feedback")).stdout
        assert lines.isascii()
        assert json.loads(lines)["comment"] == HOSTILE
        (row,) = csv.DictReader(io.StringIO((await plaudit("export", "feedback", "--format", "csv")).stdout))
        assert row["comment"] == "'" + HOSTILE.replace("\u202e", "")
        assert row["value"] == "-1.0"
        (pair,) = map(json.loads, (await plaudit("export", "trl-preference")).stdout.splitlines())
        assert pair["chosen"] == [{"role": "assistant", "content": "Hello!"}]
        assert pair["rejected_id"] == answer["id"]


async def test_a_file_is_whole_its_owners_and_never_overwritten_unasked(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        plaudit = Shell(server, url)
        for number in range(3):
            await server.chat(f"Question {number}?")
        path = tmp_path / "out.jsonl"
        done = await plaudit("export", "answers", "-o", path)
        assert (done.exit_code, done.stdout) == (0, "")
        assert "3 rows in" in done.stderr
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(path.read_text().splitlines()) == 3
        assert (await plaudit("export", "answers", "-o", path)).exit_code == 2
        none = await plaudit("export", "answers", "-o", path, "--force", "--since", "2999-01-01")
        assert (none.exit_code, path.read_text()) == (0, "")
        assert (await plaudit("export", "answers", "-o", tmp_path / "no" / "where")).exit_code == 2
        assert (await plaudit("export", "answers", "--since", "soon")).exit_code == 2
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(WRITERS, Format.jsonl, fill_the_disk)
            full = await plaudit("export", "answers", "-o", tmp_path / "new")
        assert (full.exit_code, "No space left" in full.stderr) == (1, True)
        plaudit.arguments[-1] = "plk_wrong"
        assert (await plaudit("export", "answers", "-o", tmp_path / "new")).exit_code == 1
        assert await asyncio.to_thread(files, tmp_path) == {"out.jsonl"}


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.jsonl", '\ufeff{"a": 1}\n\n{"a": 2}\n3\n{\n', [(1, True), (3, True), (4, False), (5, False)]),
        ("a.json", '\n[\n {"a": 1},\n\n {"a":\n 2}, 3]\n', [(3, True), (5, True), (6, False)]),
        ("b.json", "[]", []),
        ("a.csv", 'a,b\n1,"x\ny"\n2,z\n3\n', [(2, True), (4, True), (5, False)]),
        ("empty", "", []),
    ],
)
def test_rows_know_their_lines(tmp_path: Path, name: str, text: str, lines: list[tuple[int, bool]]) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert [(line.number, line.problem is None) for line in read_lines(path)] == lines


@pytest.mark.parametrize("text", ['[{"a": 1}', '[{"a": 1} {"a": 2}]', '[{"a": 1}, oops]', "[" * 100_000, b"\xff\xfe{}"])
def test_nothing_of_a_broken_file_is_imported(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = CliRunner().invoke(command, ["--url", "http://127.0.0.1:9", "import", "langfuse", str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"plaudit: {path}: ")
