"""In which vLLM the plugin does something, and what."""

import os

import pytest

from plaudit_server.engine import cpu_lora, cpu_seeds, plugin


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, instead of doing it."""
    done: list[str] = []
    monkeypatch.setattr(cpu_seeds, "install", lambda: done.append("seeds"))
    monkeypatch.setattr(cpu_lora, "install", lambda: done.append("lora"))
    monkeypatch.setattr(plugin, "watch_parent", lambda parent: done.append(f"watch {parent}"))
    monkeypatch.delenv(plugin.LIFELINE_VARIABLE, raising=False)
    monkeypatch.delenv(plugin.KERNEL_VARIABLE, raising=False)
    return done


def test_a_vllm_of_somebody_else_is_left_alone(done: list[str]) -> None:
    plugin.register()

    assert done == []


def test_an_engine_started_by_hand_asks_for_the_mends(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugin.KERNEL_VARIABLE, "1")

    plugin.register()

    assert done == ["seeds", "lora"]


def test_the_process_that_computes_is_mended_and_ends_with_its_parent(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(plugin.LIFELINE_VARIABLE, "7")
    monkeypatch.setattr(plugin, "expected_parent", lambda lifeline: lifeline + 1)

    plugin.register()

    assert done == ["watch 8", "seeds", "lora"]


def test_the_first_process_draws_no_tokens(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugin.LIFELINE_VARIABLE, str(os.getpid()))
    monkeypatch.setattr(plugin, "expected_parent", lambda lifeline: lifeline)

    plugin.register()

    assert done == [f"watch {os.getpid()}", "lora"]


def test_vllms_own_lora_is_kept_where_that_is_asked(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugin.LIFELINE_VARIABLE, "7")
    monkeypatch.setattr(plugin, "expected_parent", lambda lifeline: lifeline + 1)
    monkeypatch.setenv(plugin.KERNEL_VARIABLE, "0")

    plugin.register()

    assert done == ["watch 8", "seeds"]
