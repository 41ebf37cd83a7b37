"""Bfloat16 where it is the faster, not where it merely exists."""

from collections.abc import Iterator

import pytest
import torch

from plaudit_trainer import precision
from tests.support.tiny_models import tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def not_measured_yet() -> Iterator[None]:
    precision.bfloat16_is_faster.cache_clear()
    yield
    precision.bfloat16_is_faster.cache_clear()


def with_speed(
    monkeypatch: pytest.MonkeyPatch, *, supported: bool, bfloat16: float, float32: float
) -> list[torch.dtype]:
    """A CPU on which a product takes so many seconds. Answers what will have been measured."""
    measured: list[torch.dtype] = []

    def multiplying(dtype: torch.dtype) -> float:
        measured.append(dtype)
        return bfloat16 if dtype == torch.bfloat16 else float32

    monkeypatch.setattr(precision, "_multiplying", multiplying)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    return measured


@pytest.mark.parametrize(("bfloat16", "chosen"), [(1.0, torch.bfloat16), (4.0, torch.float32)])
def test_a_cpu_computes_in_what_it_multiplies_faster_in(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, chosen: torch.dtype
) -> None:
    measured = with_speed(monkeypatch, supported=True, bfloat16=bfloat16, float32=2.0)
    config = tiny_config(precision="auto")
    assert precision.pick_dtype(config, CPU) == chosen
    assert set(measured) == {torch.bfloat16, torch.float32}
    measured.clear()
    assert precision.pick_dtype(config, CPU) == chosen
    assert not measured, "once a process"


def test_one_slow_try_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter([9.0, 2.0] + [1.0, 2.0] * 9)  # the first in bfloat16 was disturbed
    with_speed(monkeypatch, supported=True, bfloat16=0, float32=0)
    monkeypatch.setattr(precision, "_multiplying", lambda _: next(tries))
    assert precision.bfloat16_is_faster()


def test_without_the_instructions_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = with_speed(monkeypatch, supported=False, bfloat16=1.0, float32=2.0)
    assert precision.pick_dtype(tiny_config(precision="auto"), CPU) == torch.float32
    assert not measured


def test_a_gpu_and_what_was_configured_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = with_speed(monkeypatch, supported=True, bfloat16=4.0, float32=2.0)
    assert precision.pick_dtype(tiny_config(precision="auto"), GPU) == torch.bfloat16
    assert precision.pick_dtype(tiny_config(precision="bfloat16"), CPU) == torch.bfloat16
    assert precision.pick_dtype(tiny_config(precision="float32"), GPU) == torch.float32
    assert not measured


def test_a_real_product_takes_time() -> None:
    assert 0 < precision._multiplying(torch.float32) < 10
