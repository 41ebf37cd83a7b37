"""The engine core is a fork of the API server where that was tried, and vLLM's own way is left alone elsewhere."""

import multiprocessing
import os
from collections.abc import Callable

import pytest

from plaudit_server.engine import forked_core

utils = pytest.importorskip("vllm.v1.engine.utils", exc_type=ImportError)
version = pytest.importorskip("vllm.version", exc_type=ImportError)
platforms = pytest.importorskip("vllm.platforms", exc_type=ImportError)


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What would be called in a fork; vLLM's function is put back after the test."""
    hooks: list[Callable[[], None]] = []
    monkeypatch.setattr(forked_core.os, "register_at_fork", lambda *, after_in_child: hooks.append(after_in_child))
    monkeypatch.setattr(utils, "get_mp_context", utils.get_mp_context)
    return hooks


@pytest.mark.parametrize("tested", forked_core.TESTED)
def test_a_tested_version_forks_and_the_fork_knows_its_parent(
    hooks: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch, tested: str
) -> None:
    monkeypatch.setattr(version, "__version__", f"{tested}+cpu")
    monkeypatch.setattr(platforms.current_platform, "is_cpu", lambda: True)
    parents: list[int] = []

    assert forked_core.install(in_fork=parents.append)

    assert utils.get_mp_context() is multiprocessing.get_context("fork")
    (hook,) = hooks
    hook()
    assert parents == [os.getpid()]


@pytest.mark.parametrize(("found", "is_cpu"), [("9.9.9", True), (forked_core.TESTED[0], False)])
def test_another_version_and_a_gpu_are_left_alone(
    hooks: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch, found: str, is_cpu: bool
) -> None:
    before = utils.get_mp_context
    monkeypatch.setattr(version, "__version__", found)
    monkeypatch.setattr(platforms.current_platform, "is_cpu", lambda: is_cpu)

    assert not forked_core.install(in_fork=lambda parent: None)

    assert utils.get_mp_context is before and not hooks
