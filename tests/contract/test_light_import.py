"""`import plaudit` stays light: it is what an application pays for one HTTP client."""

import json
import subprocess
import sys
import time

import pytest

HEAVY = {"torch", "fastapi", "starlette", "sqlalchemy", "vllm", "transformers", "numpy", "uvicorn", "alembic"}
TERMINAL = {"typer", "rich"}


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = (
        f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import plaudit", HEAVY | TERMINAL | {"httpx", "pydantic"}),
        ("import plaudit.wire.training", HEAVY | TERMINAL | {"httpx"}),
        # httpx itself imports rich for its own command where click is installed too.
        ("from plaudit import AsyncPlaudit, Plaudit", HEAVY | {"typer"}),
        ("import plaudit.cli", HEAVY | {"httpx", "pydantic"}),
    ],
)
def test_what_an_import_brings_along(statement: str, forbidden: set[str]) -> None:
    assert modules_after(statement) & forbidden == set()


def test_the_package_says_that_it_is_typed() -> None:
    from importlib.resources import files

    assert files("plaudit").joinpath("py.typed").is_file()


def test_importing_the_client_costs_less_than_three_seconds() -> None:
    """A loose bound for a busy machine: a quarter of a second is usual, torch alone would be several."""
    began = time.perf_counter()
    modules_after("from plaudit import Plaudit")
    assert time.perf_counter() - began < 3
