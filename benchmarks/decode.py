"""Tokens a second: through Plaudit against bare vLLM, and on adapters with our CPU kernel against vLLM's own.

    python -m benchmarks.decode [--quick] [--parts bare lanes] [--model FOLDER]

*bare*: one vLLM, asked directly and through a gateway, in turns, 1, 16 and 64 streams at once. *lanes*: two vLLMs that
differ in `PLAUDIT_CPU_LORA` (0 keeps the stock functions), asked in turns: base, one adapter, four adapters mixed. The
idle one costs memory, no processor. Every answer has the same length (`ignore_eos`). Each figure is the median of the
rounds' ratios, so that a machine that slows down slows both sides.
"""

import argparse
import asyncio
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import Answer, ask, chat_body, open_client, questions
from benchmarks.report import machine, write_result
from benchmarks.services import gateway, vllm
from plaudit.wire.training import TokenSequence
from plaudit_server.engine.bundled import ensure_model
from plaudit_server.engine.plugin import KERNEL_VARIABLE
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.settings import Settings

ADAPTERS = ("lane-1", "lane-2", "lane-3", "lane-4")


@dataclass(frozen=True, slots=True)
class Side:
    """Something to ask: a client, and what the n-th stream asks for."""

    name: str
    http: httpx.AsyncClient
    model: Callable[[int], str]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of 1 and 4 streams, short; writes nothing")
    parser.add_argument("--parts", nargs="+", choices=("bare", "lanes"), default=["bare", "lanes"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--streams", type=int, nargs="+")
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.tokens = args.tokens or (8 if args.quick else 96)
    args.streams = args.streams or ([1, 4] if args.quick else [1, 16, 64])
    return args


async def rate(side: Side, streams: int, tokens: int, seed: int) -> float:
    """Tokens a second of so many streams at once, from the first request to the last token."""

    def body(number: int) -> dict[str, Any]:
        # The seed makes every round's prompts new, so that no prefix cache has more than the template.
        return chat_body(seed * 1000 + number, tokens=tokens, model=side.model(number), ignore_eos=True)

    began = time.monotonic()
    answers: list[Answer] = await asyncio.gather(*(ask(side.http, body(number)) for number in range(streams)))
    seconds = time.monotonic() - began
    if bad := [answer.error for answer in answers if answer.failed]:
        raise SystemExit(f"{side.name}: {len(bad)} of {streams} failed: {bad[0]}")
    return streams * tokens / seconds


async def in_turns(args: argparse.Namespace, sides: Sequence[Side], streams: int) -> dict[str, list[float]]:
    """Rates of all sides, round by round; the order is turned each round."""
    seeds = itertools.count(1000 * streams)
    for side in sides:  # warm up: templates, connections, the compiler
        await rate(side, min(streams, 4), 4, next(seeds))
    found: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(args.rounds):
        turned = [*sides[number % len(sides) :], *sides[: number % len(sides)]]
        for side in turned:
            found[side.name].append(await rate(side, streams, args.tokens, next(seeds)))
        shown = "  ".join(f"{name} {rates[-1]:.1f}" for name, rates in found.items())
        print(f"{streams} streams, round {number + 1}: {shown} tok/s", flush=True)
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 4)


# ---- through Plaudit against bare


async def bare_part(args: argparse.Namespace, scratch: Path, model: Path) -> dict[str, Any]:
    """One vLLM, twice asked."""
    async with vllm(model, scratch / "bare-engine") as url:
        environment = {"PLAUDIT_ENGINE": "vllm", "PLAUDIT_ENGINE_URLS": url}
        with gateway(scratch / "bare-gateway", model, environment) as stack:
            async with open_client(url, "") as direct, open_client(stack.url, stack.key()) as ours:
                sides = [Side("bare", direct, lambda _: "base"), Side("plaudit", ours, lambda _: "policy@base")]
                rates = {n: await in_turns(args, sides, n) for n in args.streams}
    by_streams = {str(n): ratio(found["plaudit"], found["bare"]) for n, found in rates.items()}
    return {
        "ratio_to_bare": min(by_streams.values()),
        "ratio_to_bare_by_streams": by_streams,
        "tokens_per_s": {str(n): {k: statistics.median(v) for k, v in found.items()} for n, found in rates.items()},
    }


# ---- lanes


async def lanes_part(args: argparse.Namespace, scratch: Path, model: Path) -> dict[str, Any]:
    """Our kernel against the stock one, and against the same server's base."""
    folders = await asyncio.to_thread(make_adapters, scratch / "adapters", model)
    async with (
        lane_server(scratch / "ours", model, folders, kernel="1") as ours,
        lane_server(scratch / "stock", model, folders, kernel="0") as stock,
        open_client(ours, "") as asks_ours,
        open_client(stock, "") as asks_stock,
    ):
        sides = [
            Side("base, our server", asks_ours, lambda _: "base"),
            Side("adapter, ours", asks_ours, lambda _: ADAPTERS[0]),
            Side("adapter, stock", asks_stock, lambda _: ADAPTERS[0]),
            Side("4 adapters, ours", asks_ours, lambda n: ADAPTERS[n % 4]),
            Side("4 adapters, stock", asks_stock, lambda n: ADAPTERS[n % 4]),
        ]
        rates = {n: await in_turns(args, sides, n) for n in args.streams}
        difference = await outputs_apart(ours, stock)
    most = max(rates)
    found = rates[most]
    return {
        "lane_speedup_over_stock": ratio(found["adapter, ours"], found["adapter, stock"]),
        "lane_ratio_to_base": ratio(found["adapter, ours"], found["base, our server"]),
        "mixed_speedup_over_stock": ratio(found["4 adapters, ours"], found["4 adapters, stock"]),
        "mixed_ratio_to_base": ratio(found["4 adapters, ours"], found["base, our server"]),
        "at_streams": most,
        "outputs_mean_abs_logprob_difference": difference["mean"],
        "outputs_max_abs_logprob_difference": difference["max"],
        "lanes_tokens_per_s": {
            str(n): {k: round(statistics.median(v), 2) for k, v in row.items()} for n, row in rates.items()
        },
    }


@contextlib.asynccontextmanager
async def lane_server(folder: Path, model: Path, adapters: Sequence[Path], *, kernel: str) -> AsyncIterator[str]:
    """A vLLM with the adapters loaded."""
    async with vllm(model, folder, {KERNEL_VARIABLE: kernel}) as url, ReplicaClient(url=url) as client:
        for name, adapter in zip(ADAPTERS, adapters, strict=True):
            await client.load_adapter(name, adapter)
        log = (folder / "logs" / "engine.log").read_text(encoding="utf-8", errors="replace")
        if ("Plaudit's CPU LoRA kernel is in place" in log) != (kernel == "1"):
            print(f"note: with {KERNEL_VARIABLE}={kernel} the log does not say which kernel is in place; see {folder}")
        yield url


def make_adapters(folder: Path, model: Path) -> list[Path]:
    """Four adapters of rank 16 on all linear layers, random in A and B: speed does not depend on what they say."""
    import torch
    from safetensors.torch import save_file

    from tests.support.engine_adapters import RANK, TARGETS, Reference

    shapes = {name: (m.in_features, m.out_features) for name, m in Reference(model).linears.items()}
    made = []
    for number, name in enumerate(ADAPTERS):
        place = folder / name
        place.mkdir(parents=True)
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for layer, (inside, outside) in shapes.items():
            a = torch.randn(RANK, inside, generator=generator) * inside**-0.5
            b = torch.randn(outside, RANK, generator=generator) * 0.01
            tensors[f"base_model.model.{layer}.lora_A.weight"] = a.bfloat16()
            tensors[f"base_model.model.{layer}.lora_B.weight"] = b.bfloat16()
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
        (place / "adapter_config.json").write_text(_json(config | {"target_modules": list(TARGETS)}), encoding="utf-8")
        made.append(place)
    return made


def _json(value: Any) -> str:
    import json

    return json.dumps(value)


async def outputs_apart(ours: str, stock: str) -> dict[str, float]:
    """How far apart the log-probabilities of the same tokens lie under the same adapters."""
    async with ReplicaClient(url=ours) as one, ReplicaClient(url=stock) as other:
        differences: list[float] = []
        for place, name in enumerate(ADAPTERS):
            ids = [(7 * k + 11 * place) % 400 + 100 for k in range(64)]
            sequence = [TokenSequence(prompt_ids=ids[:8], response_ids=ids[8:])]
            left, right = [await each.score(sequence, model=name, priority=0) for each in (one, other)]
            differences += [abs(a - b) for a, b in zip(left[0], right[0], strict=True)]
    return {"mean": round(statistics.mean(differences), 6), "max": round(max(differences), 6)}


async def measure(args: argparse.Namespace, scratch: Path, model: Path) -> dict[str, Any]:
    """The parts asked for."""
    found: dict[str, Any] = {}
    if "bare" in args.parts:
        found |= await bare_part(args, scratch, model)
    if "lanes" in args.parts:
        found |= await lanes_part(args, scratch, model)
    return found | {"settings": {name: getattr(args, name) for name in ("rounds", "tokens", "streams", "parts")}}


def show(found: dict[str, Any]) -> None:
    """The figures beside their aims."""
    print(f"\n{machine()}\n")
    for name, aim in (
        ("ratio_to_bare", "≥ 0.97"),
        ("lane_speedup_over_stock", "≥ 3"),
        ("lane_ratio_to_base", "≥ 0.9"),
        ("mixed_speedup_over_stock", ""),
        ("mixed_ratio_to_base", ""),
        ("outputs_max_abs_logprob_difference", "noise of the arithmetic"),
    ):
        if name in found:
            print(f"{name:<38}{found[name]:>10.4f}  {aim and f'aim {aim}'}")


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    assert len(questions()) > 16
    model = args.model or ensure_model(Settings())
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(measure(args, Path(scratch), model))
    show(found)
    if not args.quick and len(args.parts) == 2:
        print(f"written: {write_result('decode', found)}")


if __name__ == "__main__":
    main()
