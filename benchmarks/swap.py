"""Does anybody notice a swap? Streaming clients ask without pause while versions are published, proven and promoted.

    python -m benchmarks.swap [--quick] [--swaps 50] [--clients 8] [--engine vllm|fake] [--model FOLDER] [--arm inplace]

Arms: `still` (no swap, the measure of the others), `lanes` (what Plaudit does), `wait` (for contrast: what systems do
that refuse requests while a training step runs; the refusing is done by the clients here, for `--step-seconds`).

An answer is frozen when it waits longer than a second beyond what 99 in 100 waits are without swaps, for its first
token or between two. It is mixed when its pieces or headers name two versions, or when its tokens' log-probabilities
are nearer to those of the version before or after than to those of the version that it names: that is looked at for
answers which were being given while a promotion happened. Published-to-served goes from the registration's first byte
to the alias naming the new version, looked at every 50 ms; loading and proving lie in between.

`--arm inplace` measures whole models that take turns on one replica (`benchmarks.swap_in_place`) beside `still`.

The adapters are made before the clients start: the cost of training is `benchmarks.train_beside`'s affair.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load import Answer, Load, chat_body, open_client, percentile, questions, summary
from benchmarks.report import machine, write_result
from benchmarks.services import PROBE_PROMPTS, PROBE_TOKENS, Made, Operator, gateway, make_versions
from benchmarks.swap_in_place import in_place_figures, make_whole_models, measure_in_place
from plaudit_server.engine.bundled import ensure_model
from plaudit_server.settings import Settings

FROZEN_S = 1.0
LOOKED_AT = 16


@dataclass(slots=True)
class Swaps:
    """When each version was published and when it served, by the monotonic clock; and its proof's seconds."""

    names: list[str] = field(default_factory=list)
    published: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    proofs: list[float] = field(default_factory=list)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three swaps, seconds of load; writes nothing")
    parser.add_argument("--swaps", type=int)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most")
    parser.add_argument("--still-seconds", type=float)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds from one swap's end to the next")
    parser.add_argument("--step-seconds", type=float, help="of a training step, in the arm `wait`")
    parser.add_argument("--engine", choices=("vllm", "fake"), default="vllm")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--arm", choices=("lanes", "inplace"), default="lanes")
    args = parser.parse_args()
    args.swaps = args.swaps or (3 if args.quick else 50)
    args.still_seconds = args.still_seconds or (5 if args.quick else 120)
    args.step_seconds = args.step_seconds or (3 if args.quick else 30)
    return args


async def measure(args: argparse.Namespace, url: str, key: str, versions: Path, model: Path) -> dict[str, Any]:
    """All arms, one after the other, on one gateway."""
    async with open_client(url, key) as http:
        operator = Operator(http)
        real = args.engine == "vllm"
        sequences = await operator.draw(questions()[:PROBE_PROMPTS], PROBE_TOKENS) if real else None
        made = await asyncio.to_thread(make_versions, versions, model, args.swaps, sequences)

        still = await _still(args, url, key)
        lanes, swaps = await _lanes(args, url, key, operator, made)
        wait = await _wait(args, url, key)
        wrong = await _wrong_voices(operator, lanes, swaps) if real else []
    return figures(args, still=still, lanes=lanes, wait=wait, swaps=swaps, wrong=wrong)


def _load(args: argparse.Namespace, url: str, key: str) -> Load:
    def body(number: int) -> dict[str, Any]:
        return chat_body(number, tokens=args.tokens, logprobs=True, return_token_ids=True, user=f"user-{number}")

    return Load([url], key, clients=args.clients, body=body)


async def measure_whole(args: argparse.Namespace, url: str, key: str, versions: Path, model: Path) -> dict[str, Any]:
    """The arms `still` and `inplace`, on one gateway with one replica."""
    async with open_client(url, key) as http:
        operator = Operator(http)
        sequences = await operator.draw(questions()[:PROBE_PROMPTS], PROBE_TOKENS)
        made = await asyncio.to_thread(make_whole_models, versions, model, sequences)
        still = await _still(args, url, key)
        answers, took, across = await measure_in_place(
            lambda: _load(args, url, key).running(), operator, made, swaps=args.swaps, pause_s=args.pause
        )
    settings = {"clients": args.clients, "tokens": args.tokens, "pause_s": args.pause, "engine": args.engine}
    found = in_place_figures(answers, still, took)
    return found | {"frozen": frozen(answers, still), "drawn_by_two": len(across), "settings": settings}


async def _still(args: argparse.Namespace, url: str, key: str) -> list[Answer]:
    async with _load(args, url, key).running() as load:
        await asyncio.sleep(args.still_seconds)
    return load.answers


async def _lanes(
    args: argparse.Namespace, url: str, key: str, operator: Operator, made: Sequence[Made]
) -> tuple[list[Answer], Swaps]:
    swaps = Swaps()
    async with _load(args, url, key).running() as load:
        await asyncio.sleep(args.pause)
        for version in made:
            request = await operator.reserve(version)
            began = time.monotonic()
            await operator.register(request)
            # The server promotes by itself what was proven while its parent serves (PLAUDIT_AUTO_PROMOTE).
            await operator.until_stable(version.name)
            swaps.names.append(version.name)
            swaps.published.append(began)
            swaps.served.append(time.monotonic())
            swaps.proofs.append((await operator.until_ready(version.name))["proof"]["seconds"])
            print(f"{version.name} served after {swaps.served[-1] - began:.2f} s", flush=True)
            await asyncio.sleep(args.pause)
    return load.answers, swaps


async def _wait(args: argparse.Namespace, url: str, key: str) -> list[Answer]:
    async with _load(args, url, key).running() as load:
        for _ in range(2):
            await asyncio.sleep(args.pause)
            load.gate.clear()
            await asyncio.sleep(args.step_seconds)
            load.gate.set()
        await asyncio.sleep(args.pause)
    return load.answers


async def _wrong_voices(operator: Operator, answers: Sequence[Answer], swaps: Swaps) -> list[str]:
    """Of answers that a promotion fell into: whose tokens sound more like its neighbour than like who it names."""
    neighbours = dict(zip(["base", *swaps.names], swaps.names, strict=False))
    spanning = [a for a in answers if _can_be_told(a) and any(a.began < at < a.ended for at in swaps.served)]
    wrong = []
    for answer in spanning[-LOOKED_AT:]:
        (named,) = {version.removeprefix("policy@") for version in answer.versions}
        other = neighbours.get(named)
        if other is None:
            continue
        own = await _distance(operator, named, answer)
        strange = await _distance(operator, other, answer)
        print(f"an answer of {named} at a swap to {other}: |Δ| {own:.4f} under its own, {strange:.4f} under the other")
        if own >= strange:
            wrong.append(f"{named}: {own:.4f} against {strange:.4f} under {other}")
    return wrong


def _can_be_told(answer: Answer) -> bool:
    """Whether it is whole, names one version, and each of its tokens has a log-probability."""
    return not answer.failed and not answer.mixed and 0 < len(answer.ids) == len(answer.logprobs)


async def _distance(operator: Operator, version: str, answer: Answer) -> float:
    sequence = {"prompt_ids": answer.prompt_ids, "response_ids": answer.ids}
    (scored,) = await operator.score(version, [sequence])
    return sum(abs(a - b) for a, b in zip(scored, answer.logprobs, strict=True)) / len(scored)


def figures(
    args: argparse.Namespace,
    *,
    still: Sequence[Answer],
    lanes: Sequence[Answer],
    wait: Sequence[Answer],
    swaps: Swaps,
    wrong: Sequence[str],
) -> dict[str, Any]:
    """What is compared with the aims, and what it is made of."""
    took = [served - published for served, published in zip(swaps.served, swaps.published, strict=True)]
    arms = {"still": still, "lanes": lanes, "wait": wait}
    p99 = {name: percentile([a.ttft for a in answers if a.ttft is not None], 0.99) for name, answers in arms.items()}
    return {
        "failed": sum(answer.failed for answer in lanes),
        "frozen": frozen(lanes, still),
        "mixed": sum(answer.mixed for answer in lanes) + len(wrong),
        "added_p99_ttft_ms": round(1000 * (p99["lanes"] - p99["still"]), 1),
        "publish_to_served_p95_s": round(percentile(took, 0.95), 3),
        "publish_to_served_p50_s": round(percentile(took, 0.5), 3),
        "proof_p95_s": round(percentile(swaps.proofs, 0.95), 3),
        "swaps": len(took),
        "answers_at_a_swap_looked_at": LOOKED_AT,
        "sounded_like_another": list(wrong),
        "wait": {
            "failed": sum(a.failed for a in wait),
            "step_seconds": args.step_seconds,
            "frozen": frozen(wait, still),
        },
        "arms": {name: summary(answers) for name, answers in arms.items()},
        "errors": sorted({answer.error for answer in lanes if answer.error})[:5],
        "settings": {"clients": args.clients, "tokens": args.tokens, "pause_s": args.pause, "engine": args.engine},
    }


def frozen(answers: Sequence[Answer], still: Sequence[Answer]) -> int:
    """How many waited a second longer than 99 in 100 waits without swaps."""
    gap = percentile([gap for answer in still for gap in answer.gaps], 0.99) + FROZEN_S
    first = percentile([answer.ttft for answer in still if answer.ttft is not None], 0.99) + FROZEN_S
    return sum(max(a.gaps, default=0) > gap or (a.ttft or 0) > first for a in answers if not a.failed)


def show(found: dict[str, Any]) -> None:
    """The table."""
    print(f"\n{machine()}\n")
    print(
        f"{'arm':<8}{'answers':>9}{'failed':>8}{'tok/s':>8}{'ttft p50':>10}{'p99':>8}{'gap p99':>9}{'longest':>9}  ms"
    )
    for name, arm in found["arms"].items():
        ttft, gap = arm["ttft_ms"], arm["gap_ms"]
        print(
            f"{name:<8}{arm['answers']:>9}{arm['failed']:>8}{arm['tokens_per_s'] or 0:>8.1f}{ttft['p50']:>10.0f}"
            f"{ttft['p99']:>8.0f}{gap['p99']:>9.0f}{arm['longest_gap_ms']:>9.0f}"
        )
    print(f"\n{found['swaps']} swaps (aims in brackets)")
    print(f"failed {found['failed']} (0), frozen {found['frozen']} (0), mixed {found['mixed']} (0)")
    print(f"time to first token, p99: {found['added_p99_ttft_ms']:+.0f} ms (≤ 100)")
    served = found["publish_to_served_p95_s"]
    print(f"published to served, p95: {served:.2f} s (≤ 2), of which proof {found['proof_p95_s']:.2f} s")


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    model = args.model or (ensure_model(Settings()) if args.engine == "vllm" else Path())
    if args.arm == "inplace":
        _main_in_place(args, model)
        return
    environment = {"PLAUDIT_ENGINE": args.engine, "PLAUDIT_AUTO_PROMOTE": "true", "PLAUDIT_ENGINE_KV_CACHE_GIB": "1"}
    with tempfile.TemporaryDirectory() as scratch, gateway(Path(scratch), model, environment) as stack:
        found = asyncio.run(measure(args, stack.url, stack.key(), stack.data / "versions", model))
    show(found)
    if not args.quick and args.engine == "vllm":
        print(f"written: {write_result('swap', found)}")


def _main_in_place(args: argparse.Namespace, model: Path) -> None:
    if args.engine != "vllm":
        raise SystemExit("--arm inplace needs --engine vllm: the fake engine has no weights")
    environment = {"PLAUDIT_ENGINE": "vllm", "PLAUDIT_ENGINE_KV_CACHE_GIB": "1"}
    with tempfile.TemporaryDirectory() as scratch, gateway(Path(scratch), model, environment) as stack:
        found = asyncio.run(measure_whole(args, stack.url, stack.key(), stack.data / "versions", model))
    print(f"\n{machine()}\n")
    for name, figure in found.items():
        print(f"{name:<20}{figure}")
    if not args.quick:
        print(f"written: {write_result('swap_inplace', found)}")


if __name__ == "__main__":
    main()
