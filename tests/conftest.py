"""What all tests share: in CI a skipped test is a failed one, because nobody reads the list of skips there."""

import asyncio
import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, pytest.TestReport]:
    report: pytest.TestReport = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = (
            f"skipped in CI: {report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr}"
        )
    return report


_OPENERS = ("open_store", "serving")
"""A module that imports one of these has its tests run on each database."""


def pytest_configure(config: pytest.Config) -> None:
    # Workers inherit it: they share one PostgreSQL, which lives as long as this process.
    os.environ.setdefault("TESTS_RUN", str(os.getpid()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_kind" not in metafunc.fixturenames:
        return
    only = {mark for mark in ("sqlite", "postgres") if any(metafunc.definition.iter_markers(mark))}
    opens = only or any(hasattr(metafunc.module, name) for name in _OPENERS)
    if opens:
        metafunc.parametrize("database_kind", sorted(only) or ["sqlite", "postgres"], indirect=True)


@pytest.fixture(autouse=True)
def database_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """`sqlite` or `postgres`: where `open_store` and `serving` keep their data in this test."""
    kind: str = getattr(request, "param", "sqlite")
    if kind == "sqlite":
        yield kind
        return
    from tests.support import databases

    if databases.server_url() is None:
        pytest.skip(databases.HOW)
    databases.current.kind = kind
    yield kind
    databases.current.kind = "sqlite"
    asyncio.run(databases.current.drop())
