"""The grouped CPU kernel against vLLM's own functions, on random mixed batches."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
stock = pytest.importorskip("vllm.lora.ops.torch_ops.lora_ops", exc_type=ImportError)

from plaudit_server.engine import cpu_lora  # noqa: E402  # after the skips

SLOTS, RANK, INSIDE, OUT = 4, 8, 32, 24
BATCHES = {
    "one adapter": ([1], [9]),
    "decode, mixed": ([0, 2, 1, 0, 3], [1, 1, 1, 1, 1]),
    "prefill and decode, mixed": ([2, 0, 2], [7, 1, 4]),
}


def batch(slots: list[int], lengths: list[int], dtype: Any) -> dict[str, Any]:
    random = torch.Generator().manual_seed(sum(lengths) + len(slots))
    tokens = sum(lengths)
    return {
        "x": torch.randn(tokens, INSIDE, generator=random).to(dtype),
        "a": torch.randn(SLOTS, 1, RANK, INSIDE, generator=random).to(dtype) * 0.1,
        "b": torch.randn(SLOTS, 1, OUT, RANK, generator=random).to(dtype) * 0.1,
        "y": torch.randn(tokens, 2 * OUT, generator=random).to(dtype),
        "runs": (torch.zeros(1), torch.tensor(lengths), torch.tensor(slots), len(slots), max(lengths), tokens),
        "tokens": torch.repeat_interleave(torch.tensor(slots), torch.tensor(lengths)),
    }


def linear(ops: Any, given: dict[str, Any], *, runs: bool) -> Any:
    """What vLLM does for one layer: shrink into a float32 buffer, expand into some columns of the output."""
    buffer = torch.full((len(given["x"]), RANK), float("nan"))
    y = given["y"].clone()
    if runs:
        ops.sgmv_shrink(given["x"], given["a"], buffer, *given["runs"], 0.5)
        ops.sgmv_expand_slice(buffer, given["b"], y, *given["runs"], OUT, OUT, True)
        ops.sgmv_expand(buffer, given["b"], y, *given["runs"], True)
    else:
        ops.bgmv_shrink(given["x"], given["a"], buffer, given["tokens"], 0.5)
        ops.bgmv_expand_slice(buffer, given["b"], y, given["tokens"], OUT, OUT, True)
        ops.bgmv_expand(buffer, given["b"], y, given["tokens"], True)
    return y


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equal_to_stock(name: str, runs: bool, dtype: Any, tolerance: float) -> None:
    given = batch(*BATCHES[name], dtype)

    ours, theirs = linear(cpu_lora, given, runs=runs), linear(stock, given, runs=runs)

    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert not torch.equal(ours, given["y"])


@pytest.mark.parametrize("runs", [True, False])
def test_tokens_without_an_adapter_are_left_alone(runs: bool) -> None:
    given = batch([-1, 2, -1], [3, 4, 2], torch.float32)

    ours, theirs = linear(cpu_lora, given, runs=runs), linear(stock, given, runs=runs)

    without = given["tokens"] < 0
    assert torch.equal(ours[without], given["y"][without])
    torch.testing.assert_close(ours[~without], theirs[~without])


def test_stock_applies_the_last_slot_to_tokens_without_an_adapter() -> None:
    """Why `process.py` keeps the last slot empty. Where this fails, vLLM was mended and the guard can go."""
    given = batch([-1, 2], [3, 4], torch.float32)
    theirs = linear(stock, given, runs=True)
    as_if_last = linear(stock, given | {"runs": (*given["runs"][:2], torch.tensor([SLOTS - 1, 2]), 2, 4, 7)}, runs=True)

    assert torch.equal(theirs, as_if_last)


def test_without_any_adapter_nothing_changes() -> None:
    given = batch([-1], [5], torch.bfloat16)

    assert torch.equal(linear(cpu_lora, given, runs=True), given["y"])


@pytest.mark.parametrize("slots", [[1], [0, 1]])
def test_expand_without_adding_overwrites(slots: list[int]) -> None:
    given = batch(slots, [2] * len(slots), torch.float32)
    buffer = torch.randn(2 * len(slots), RANK)
    ours, theirs = given["y"].clone(), given["y"].clone()

    cpu_lora.sgmv_expand(buffer, given["b"], ours, *given["runs"], False)
    stock.sgmv_expand(buffer, given["b"], theirs, *given["runs"], False)

    torch.testing.assert_close(ours, theirs)
