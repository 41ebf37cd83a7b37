"""A long prompt among streams, on the CPU: how long does everybody else wait? Against vLLM's own limit of a step.

    python -m benchmarks.long_prompt [--quick] [--model FOLDER]

A step of the engine takes as long as its tokens, and nobody's next token comes before it ends. Two vLLMs that differ in
`--max-num-batched-tokens` alone (ours, and vLLM's own for a server on CPUs) are asked in turns: streams, and in their
midst one prompt of many tokens. The idle one costs memory, no processor. Figures are medians over the rounds.
"""

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import ask, chat_body, open_client, percentile
from benchmarks.report import machine, write_result
from benchmarks.services import vllm
from plaudit_server.engine.bundled import ensure_model
from plaudit_server.engine.process import CPU_STEP_TOKENS
from plaudit_server.settings import Settings

STOCK = 2048
"""`--max-num-batched-tokens` of vLLM's API server on CPUs where nobody says otherwise."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, a shorter prompt; writes nothing")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--words", type=int, help="of the long prompt, about two tokens each")
    parser.add_argument("--steps", type=int, nargs="+", default=[CPU_STEP_TOKENS, STOCK], help="limits, in tokens")
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.words = args.words or (100 if args.quick else 800)
    return args


async def once(http: httpx.AsyncClient, args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Streams, the prompt a second later, and what each side felt, in ms."""
    short = [chat_body(seed * 100 + n, tokens=96, model="base", ignore_eos=True) for n in range(args.streams)]
    streams = [asyncio.create_task(ask(http, body)) for body in short]
    await asyncio.sleep(1)
    text = " ".join(f"{(seed * 7919 + word * 104729) % 9}" for word in range(args.words))  # digits: new each round
    long = chat_body(0, tokens=8, model="base", ignore_eos=True) | {"messages": [{"role": "user", "content": text}]}
    asked = await ask(http, long)
    answers = await asyncio.gather(*streams)
    if bad := [answer.error for answer in (asked, *answers) if answer.failed]:
        raise SystemExit(f"{len(bad)} failed: {bad[0]}")
    gaps = [gap for answer in answers for gap in answer.gaps]
    assert asked.ttft is not None
    return {
        "longest_gap_ms": round(1000 * max(gaps), 1),
        "gap_p50_ms": round(1000 * percentile(gaps, 0.5), 1),
        "streams_ms": round(1000 * max(answer.ended - answer.began for answer in answers), 1),
        "long_prompt_ttft_ms": round(1000 * asked.ttft, 1),
    }


async def measure(args: argparse.Namespace, scratch: Path, model: Path) -> dict[str, Any]:
    """Both limits, in turns."""
    one, other = args.steps
    found: dict[int, list[dict[str, float]]] = {one: [], other: []}
    async with (
        vllm(model, scratch / "one", step_tokens=one) as first,
        vllm(model, scratch / "other", step_tokens=other) as second,
        open_client(first, "") as asks_first,
        open_client(second, "") as asks_second,
    ):
        sides = {one: asks_first, other: asks_second}
        for http in sides.values():
            await ask(http, chat_body(0, tokens=4, model="base"))  # warm up
        for number in range(args.rounds):
            for limit in sorted(sides, reverse=number % 2 == 1):
                found[limit].append(await once(sides[limit], args, number + 1))
                print(f"round {number + 1}, {limit} tokens a step: {found[limit][-1]}", flush=True)
    by_limit = {
        str(limit): {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for limit, rows in found.items()
    }
    ratios = {
        f"{name.removesuffix('_ms')}_ratio": round(
            statistics.median(a[name] / b[name] for a, b in zip(found[one], found[other], strict=True)), 3
        )
        for name in found[one][0]
    }
    settings = {name: getattr(args, name) for name in ("rounds", "streams", "words")}
    return ratios | {"by_step_tokens": by_limit, "settings": settings}


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(measure(args, Path(scratch), args.model or ensure_model(Settings())))
    print(f"\n{machine()}\n")
    for limit, row in found["by_step_tokens"].items():
        print(f"{limit:>5} tokens a step  {row}")
    print({name: value for name, value in found.items() if name.endswith("_ratio")})
    if not args.quick:
        print(f"written: {write_result('long_prompt', found)}")


if __name__ == "__main__":
    main()
