"""Every fenced block of README and docs runs, or is listed here with the reason why not, and is parsed all the same.

TypeScript and HTML are checked where Node is: tests/clients/test_docs_typescript.py. The tutorial runs with the real
engine in tests/e2e/test_tutorial.py, word for word.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

import pytest
import pytest_asyncio
import typer.main
import yaml

from plaudit.cli import app
from plaudit.environment import ELSEWHERE
from plaudit_server.engine.process import launch_vllm
from plaudit_server.settings import Settings
from plaudit_trainer.config import TrainerConfig
from tests.support import docs_blocks
from tests.support.docs_blocks import Block, all_blocks, commands, pages, prose
from tests.support.server import Harness, listening, serving

pytestmark = pytest.mark.sqlite
E2E = "tests/e2e/test_tutorial.py runs it, with the real engine"
ENGINES = "needs vLLM servers on other machines"
BACKUP = "tests/integration/test_store_backup.py runs it"
REAL = "starts the real engine: tests/e2e does"
THEIRS = "tests/integrations runs the example, in an environment that has the package"

NOT_RUN = {
    "README.md: make run": REAL,
    "README.zh.md: make run": REAL,
    "docs/personas/contributor.md: make setup": "installs; CI does it before any test",
    "docs/tutorial/first-loop.md: $": E2E,
    "docs/tutorial/first-loop.zh.md: $": "test_docs_translated.py: the same as in English",
    "docs/howto/add-thumbs-to-a-page.md: cd clients/widget": "tests/clients builds it",
    "docs/howto/add-thumbs-to-a-page.md: plaudit-thumbs {": "looks; tests/browser styles parts",
    "docs/howto/encoder-decoder.md: PLAUDIT_MODEL=": "downloads a model",
    "docs/howto/install-by-hand.md: VLLM_": ENGINES,
    "docs/howto/run-several-replicas.md: VLLM_": ENGINES,
    "docs/howto/run-several-replicas.md: PLAUDIT_ENGINE_URLS=": ENGINES,
    "docs/howto/run-several-replicas.md: plaudit replicas": ENGINES,
    "docs/howto/run-on-postgres.md: pip install": "makes a database; tests/integration runs on one",
    "docs/howto/run-on-postgres.md: pg_dump": BACKUP,
    "docs/howto/run-on-postgres.md: pg_restore": BACKUP,
    "docs/howto/run-on-postgres.md: python -c": BACKUP,
    "docs/howto/run-on-postgres.md: rm -f": BACKUP,
    "docs/howto/scale-out.md: # each GPU": "needs GPUs; tests/integration runs two processes",
    "docs/howto/swap-whole-models.md: run = trainer": "needs a whole model; tests/integration/test_api_whole_models.py",
    "docs/howto/tune.md: plaudit tune": "trains; tests/integration/test_tune_command.py does",
    "docs/howto/use-gradio.md: pip install": THEIRS,
    'docs/howto/use-gradio.md: """A Gradio chat': THEIRS,
    "docs/howto/use-chainlit.md: pip install": THEIRS,
    'docs/howto/use-chainlit.md: """A Chainlit chat': THEIRS,
    "docs/howto/use-chainlit.md: from chainlit": THEIRS,
}
"""Blocks that do not run, by page and how their first line begins, each with the reason. Shell among them is parsed all
the same, and held to our own parsers."""


@dataclass(frozen=True)
class Shell:
    """How a shell block is run: as it stands, or (`alone`) line by line, since its lines are alternatives."""

    alone: bool = False
    before: str = ""
    stdin: str = ""
    complains: str = "nothing"
    """Commands that begin so end with 1, since they see that this is no real installation."""


END = "plaudit rollouts abort >/dev/null 2>&1 || true\n"
START = END + "plaudit promote v1 --reason again >/dev/null\nplaudit rollouts start v42 >/dev/null\n"
PAUSE = '[ "$LINE" != resume ] || plaudit rollouts pause >/dev/null\n'
FILES = """cp kto.jsonl relabelled.jsonl
answer=$(python -c 'import json; print(json.loads(open("answers.jsonl").readline())["id"])')
printf 'name,value,dataType,observationId\\nuser-feedback,1,NUMERIC,%s\\n' "$answer" > scores.csv
"""
RUN = {
    "README.md: .venv/bin/plaudit chat": Shell(alone=True, stdin="y\n"),
    "README.zh.md: .venv/bin/plaudit chat": Shell(alone=True, stdin="y\n"),
    "docs/howto/deploy-a-canary.md: plaudit rollouts start": Shell(alone=True, before=END),
    "docs/howto/deploy-a-canary.md: curl": Shell(before=END),
    "docs/howto/deploy-a-canary.md: plaudit rollouts show": Shell(),
    "docs/howto/deploy-a-canary.md: plaudit rollouts promote": Shell(alone=True, before=START + PAUSE),
    "docs/howto/import-and-export.md: plaudit export": Shell(),
    "docs/howto/import-and-export.md: plaudit import": Shell(before=FILES),
    "docs/howto/use-the-chat-page.md: .venv/bin/plaudit keys create": Shell(),
    "docs/howto/use-the-console.md: .venv/bin/plaudit keys create": Shell(),
    "docs/personas/operator.md: plaudit doctor": Shell(alone=True, complains="plaudit doctor"),  # of the fake engine
    "docs/personas/operator.md: plaudit versions show": Shell(),
    "docs/reference/cli.md: printf": Shell(),
}
"""Shell blocks that run, against the real server with the fake engine."""

KEY = 'from pathlib import Path\nkey = Path("data/admin.key").read_text().strip()\n'
BEFORE = {
    "docs/reference/sdk.md: with client.chat.stream(": "from plaudit import Plaudit\nclient = Plaudit()\n",
    "docs/reference/sdk.md: async with await": "from plaudit import AsyncPlaudit\nclient = AsyncPlaudit()\n",
    "docs/reference/sdk.md: from openai import OpenAI": KEY + 'messages = [{"role": "user", "content": "Hello."}]\n',
    "docs/howto/votes-from-a-browser.md: answer =": "from types import SimpleNamespace\nfrom plaudit import Plaudit\n"
    'client, question, PLAUDIT = Plaudit(), "Hello?", "https://plaudit.example.com"\n'
    'session = SimpleNamespace(user_id="ada")\n',
}
"""What stands before a Python block that takes names for granted."""

SHELLS = [block for block in all_blocks() if block.language in {"sh", "console"}]
PYTHON = [block for block in all_blocks() if block.language == "python"]
FOREIGN = [block for block in PYTHON if block.name.startswith(tuple(NOT_RUN))]


def test_every_block_says_its_language() -> None:
    known = {"sh", "console", "python", "ts", "html", "css", "yaml", "json", "toml", "text"}
    assert [block.name for block in all_blocks() if block.language not in known] == []


def test_code_stands_in_fences() -> None:
    indented = re.compile(r"^(?:#.*|[^\s*|\d-].*)?\n\n    \S", re.M)
    assert [page.name for page in pages() if indented.search(prose(page))] == []


def test_every_block_runs_or_is_listed_with_its_reason() -> None:
    elsewhere = {"python", "ts", "html", "yaml", "json", "toml", "text"}  # run or parsed, all of them
    asked = [block.name for block in all_blocks() if block.language not in elsewhere]
    listed = (*RUN, *NOT_RUN)
    assert [name for name in asked if not name.startswith(listed)] == [], "new: let it run, or say here why it does not"
    there = asked + [block.name for block in PYTHON]
    assert [key for key in listed if not any(name.startswith(key) for name in there)] == [], "blocks that are no more"


@pytest.mark.parametrize("block", SHELLS, ids=lambda block: f"{block.page}:{block.line}")
def test_shell_parses_and_our_commands_are_real(block: Block) -> None:
    done = subprocess.run(["bash", "-n", "-c", block.shell], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    for words in commands(block.shell):
        docs_blocks.check(words)


def test_what_is_no_command_is_told() -> None:
    for wrong in ("plaudit frobnicate", "plaudit rate", "make nothing", "python -m plaudit_server play"):
        with pytest.raises(ValueError, match=r"frobnicate|rate|nothing|play"):
            docs_blocks.check(next(commands(wrong)))


def test_vllm_is_started_with_the_options_that_we_start_it_with(tmp_path: Path) -> None:
    ours = set(launch_vllm(Settings(data=tmp_path), tmp_path, tmp_path).command)
    for block in SHELLS:
        for words in commands(block.shell):
            if "vllm.entrypoints.openai.api_server" in words:
                options = {word for word in words if word.startswith("--")} - {"--host", "--port"}
                assert options <= ours, block.name


@pytest.mark.parametrize("block", [b for b in all_blocks() if b.language in {"yaml", "json", "toml"}], ids=str)
def test_data_parses(block: Block) -> None:
    assert {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}[block.language](block.text)


def known_variables() -> set[str]:
    return (
        {f"PLAUDIT_{name.upper()}" for name in Settings.model_fields}
        | {f"PLAUDIT_TRAINER_{name.upper()}" for name in TrainerConfig.model_fields}
        | {f"PLAUDIT_{name}" for name in ELSEWHERE}
    )


def test_settings_that_pages_speak_of_exist() -> None:
    for page in pages():
        said = set(re.findall(r"(?<![\w/])PLAUDIT_[A-Z0-9_]*[A-Z0-9]\b(?![_*<])", page.read_text(encoding="utf-8")))
        assert said - known_variables() - {"PLAUDIT_TRAINER"} == set(), page


INLINE = re.compile(r"`(?:\.venv/bin/)?plaudit ([a-z][^`]*)`")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(docs_blocks.ROOT).as_posix())
def test_commands_within_sentences_exist(page: Path) -> None:
    for said in INLINE.findall(prose(page)):
        follow(said.split())


def follow(words: list[str]) -> None:
    """Verbs and options of a command that is spoken of, with placeholders and alternatives."""
    command = typer.main.get_command(app)
    options = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        verbs = getattr(command, "commands", {})
        if word.startswith("--"):
            given = options | {option for parameter in command.params for option in parameter.opts}
            free = command.name == "tune"
            assert free or word.rstrip(",.").partition("=")[0] in given | {"--help", "--install-completion"}, words
        elif verbs and word[0].isalpha() and not word.isupper():
            assert set(word.split("|")) <= set(verbs), words
            command = verbs[word.split("|")[0]]
            options |= {"--json"}


# ---- blocks that run


@dataclass
class Place:
    """A folder as one stands in it, with a server that runs."""

    folder: Path
    url: str
    harness: Harness
    environment: dict[str, str]

    async def run(self, *command: str, stdin: str = "", **variables: str) -> tuple[int | None, str]:
        child = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            env=self.environment | variables,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(child.communicate(stdin.encode()), timeout=60)
        return child.returncode, said.decode()

    def here(self, text: str) -> str:
        """A block's text with this server's address and a version that it has."""
        return text.replace("http://127.0.0.1:8000", self.url).replace("v42", "v2")


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, start in {"plaudit": '-c "from plaudit.cli import app; app()"', "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {start} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    async with serving(tmp_path) as harness, listening(harness.app) as url:
        await harness.publish()
        await harness.admin.post("/v1/versions/v1/promote", json={"reason": "first"})
        await harness.publish()
        answer = await harness.chat("What is 2+2?", train=True)
        assert (await harness.vote(answer["id"], True)).is_success
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT_")}
        roots = [str(docs_blocks.ROOT / part) for part in ("clients/python", "server", "trainer")]
        clean |= {"PYTHONPATH": os.pathsep.join([*roots, clean.get("PYTHONPATH", "")])}
        clean |= {"PATH": f"{programs}:{clean['PATH']}", "PLAUDIT_URL": url, "NO_COLOR": "1", "COLUMNS": "120"}
        clean |= {"KEY": (tmp_path / "data" / "admin.key").read_text(encoding="ascii").strip()}
        yield Place(tmp_path, url, harness, clean)


def script(block: Block) -> str:
    """The block as a program: behind the names that it takes for granted, in a function where it must be in one."""
    before = next((text for name, text in BEFORE.items() if block.name.startswith(name)), "")
    body = before + block.text
    awaits = re.search(r"^(?:async |.*\bawait )", block.text, re.M) is not None
    if not awaits and not re.search(r"^return ", block.text, re.M):
        return body
    inside = f"{'async ' if awaits else ''}def block():\n{indent(body, '    ')}\n"
    return inside + ("import asyncio\nasyncio.run(block())\n" if awaits else "block()\n")


@pytest.mark.parametrize("block", FOREIGN, ids=lambda block: f"{block.page}:{block.line}")
def test_python_that_is_run_elsewhere_parses(block: Block) -> None:
    compile(block.text, block.name, "exec")


@pytest.mark.parametrize(
    "block", [block for block in PYTHON if block not in FOREIGN], ids=lambda block: f"{block.page}:{block.line}"
)
async def test_python_runs(block: Block, place: Place) -> None:
    code, said = await place.run(sys.executable, "-W", "error", "-c", place.here(script(block)))
    assert code == 0, said


@pytest.mark.parametrize("page", sorted({name.partition(": ")[0] for name in RUN}))
async def test_shell_runs(page: str, place: Place) -> None:
    for block in SHELLS:
        how = next((how for key, how in RUN.items() if block.page == page and block.name.startswith(key)), None)
        if how is None:
            continue
        pieces = block.shell.splitlines() if how.alone else [block.shell]
        for piece in pieces:
            line = re.sub(r"\s+#.*", "", piece).split()[-1] if how.alone else ""
            whole = place.here(how.before + piece)
            code, said = await place.run("bash", "-euo", "pipefail", "-c", whole, stdin=how.stdin, LINE=line)
            assert code == int(piece.startswith(how.complains)), f"{piece}\n{said}"
            assert '{"error"' not in said, said
