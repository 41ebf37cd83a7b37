"""The CPU kernel against vLLM's own, in vLLM's own wrapper, on random mixed batches."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm.lora.punica_wrapper.punica_cpu", exc_type=ImportError)

from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU  # noqa: E402  # after the skips

from plaudit_server.engine import cpu_lora  # noqa: E402

SLOTS, RANK, INSIDE, OUT = 12, 8, 32, (24, 16)
BATCHES = {
    "one adapter": [1] * 9,
    "a token each": [0, 2, 1, 0, 3],
    "runs": [2] * 7 + [0] + [2] * 4,
    "slots far apart": [0, 0, 11, 11, 5],
}


def batch(slots: list[int], dtype: Any = torch.float32) -> dict[str, Any]:
    random = torch.Generator().manual_seed(len(slots))
    return {
        "slots": torch.tensor(slots),
        "x": torch.randn(len(slots), INSIDE, generator=random).to(dtype),
        "a": tuple(torch.randn(SLOTS, 1, RANK, INSIDE, generator=random).to(dtype) * 0.1 for _ in OUT),
        "b": tuple(torch.randn(SLOTS, 1, out, RANK, generator=random).to(dtype) * 0.1 for out in OUT),
        "y": torch.randn(len(slots), sum(OUT), generator=random).to(dtype),
    }


def wrapper(slots: list[int], *, prefill: bool) -> PunicaWrapperCPU:
    """As vLLM's worker makes it; adapter n + 1 lies in slot n, and request 0 has none."""
    made = PunicaWrapperCPU(64, 64, "cpu")
    ids = tuple(slot + 1 for slot in slots)
    mapping: Any = SimpleNamespace(index_mapping=ids, prompt_mapping=ids, is_prefill=prefill)  # vLLM's LoRAMapping
    made.update_metadata(mapping, [n + 1 for n in range(SLOTS)], SLOTS, 100)
    return made


def linear(kernel: Any, given: dict[str, Any], *, prefill: bool = True, scale: float = 0.5) -> Any:
    y = given["y"].clone()
    slots = given["slots"].tolist()
    kernel(wrapper(slots, prefill=prefill), y, given["x"], given["a"], given["b"], scale, OUT)
    return y


stock = PunicaWrapperCPU.add_lora_linear


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equal_to_stock(name: str, prefill: bool, dtype: Any, tolerance: float) -> None:
    given = batch(BATCHES[name], dtype)

    ours, theirs = [linear(kernel, given, prefill=prefill) for kernel in (cpu_lora.add_lora_linear, stock)]

    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert not torch.equal(ours, given["y"])


@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("slots", [[-1, -1, 2, 2, 2, -1], [0, -1, 11, -1]])
def test_tokens_without_an_adapter_are_left_alone(slots: list[int], prefill: bool) -> None:
    given = batch(slots)

    ours, theirs = [linear(kernel, given, prefill=prefill) for kernel in (cpu_lora.add_lora_linear, stock)]

    without = given["slots"] < 0
    assert torch.equal(ours[without], given["y"][without])
    torch.testing.assert_close(ours[~without], theirs[~without])


def test_stock_applies_the_last_slot_to_tokens_without_an_adapter() -> None:
    """Why `process.py` keeps the last slot empty. Where this fails, vLLM was mended and the guard can go."""
    theirs, as_if_last = linear(stock, batch([-1, 2, 2])), linear(stock, batch([SLOTS - 1, 2, 2]))

    assert torch.equal(theirs, as_if_last)


def test_without_any_adapter_nothing_changes() -> None:
    given = batch([-1] * 5, torch.bfloat16)

    assert torch.equal(linear(cpu_lora.add_lora_linear, given), given["y"])


def test_a_broken_adapter_spoils_its_own_tokens_only() -> None:
    whole, broken = batch([0, 1, -1]), batch([0, 1, -1])
    for a in broken["a"]:
        a[1] = float("nan")

    ours = linear(cpu_lora.add_lora_linear, broken)

    assert torch.equal(ours[[0, 2]], linear(cpu_lora.add_lora_linear, whole)[[0, 2]])
    assert ours[1].isnan().all()


def test_a_token_has_the_same_answer_alone_and_in_a_crowd() -> None:
    crowd = batch([3, 0, 3, 7, -1, 5])
    alone = {**crowd, "slots": crowd["slots"][:1], "x": crowd["x"][:1], "y": crowd["y"][:1]}

    torch.testing.assert_close(linear(cpu_lora.add_lora_linear, alone)[0], linear(cpu_lora.add_lora_linear, crowd)[0])
