"""How long does a bad version go on answering once the operator said stop? Two gateways, one database, one engine.

    python -m benchmarks.rollback [--quick] [--rollbacks 20] [--gateways 2] [--engine vllm|fake] [--model FOLDER]

Clients ask both gateways for `policy` without pause, one token an answer, while the bad version is stable. The operator
calls `POST /v1/rollback` on the first gateway. Measured: seconds from the verb's first byte to the last request, begun
after it, that either gateway still gave to the bad version (0: none was; a request counts from when it was sent), or to
the last moment at which a gateway still named it as stable, if that is later: a real engine on a small machine begins
few requests a second, and between two of them nobody would see a gateway that lags.
"""

import argparse
import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Answer, Load, chat_body, open_client, percentile, questions, summary
from benchmarks.report import machine, write_result
from benchmarks.services import PROBE_PROMPTS, PROBE_TOKENS, Made, Operator, gateway, make_versions, vllm
from plaudit_server.engine.bundled import ensure_model
from plaudit_server.settings import Settings
from plaudit_server.store.database import sqlite_url
from tests.support.stack import Stack

LATER_S = 2.0
"""How long after the verb it is watched whether the bad version still answers."""

LOOK_S = 0.025
"""Between two looks at whom a gateway names. Ten times as many took most of a core from what was looked at."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rollbacks; writes nothing")
    parser.add_argument("--rollbacks", type=int)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--engine", choices=("vllm", "fake"), default="vllm")
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    args.rollbacks = args.rollbacks or (3 if args.quick else 20)
    return args


@dataclass(frozen=True, slots=True)
class Rollback:
    """One, in seconds from the verb's first byte.

    Args:
        verb_s: until it had answered.
        last_request_s: until the last new request on the bad version had begun.
        named_s: for each gateway, until it was last seen to name the bad version as stable.
    """

    verb_s: float
    last_request_s: float
    named_s: Sequence[float]
    answers: Sequence[Answer]

    @property
    def last_s(self) -> float:
        """Until the bad version was given to nobody any more."""
        return max(self.last_request_s, *self.named_s)


@contextlib.asynccontextmanager
async def gateways(args: argparse.Namespace, scratch: Path, model: Path) -> AsyncIterator[list[Stack]]:
    """Gateways on one database, one folder of versions and one engine."""
    async with contextlib.AsyncExitStack() as opened:
        environment = {
            "PLAUDIT_ENGINE": args.engine,
            "PLAUDIT_DATABASE_URL": sqlite_url(scratch / "shared.db"),
            "PLAUDIT_MAX_PENDING_CHATS": "512",
        }
        if args.engine == "vllm":
            environment["PLAUDIT_ENGINE_URLS"] = await opened.enter_async_context(vllm(model, scratch / "engine"))
        stacks: list[Stack] = []
        for number in range(args.gateways):
            data = scratch / f"gateway-{number}"
            if stacks:
                data.mkdir()
                shutil.copy(stacks[0].data / "hash.key", data)
            stacks.append(opened.enter_context(gateway(data, model, environment)))
        yield stacks


async def measure(args: argparse.Namespace, stacks: Sequence[Stack], model: Path) -> list[Rollback]:
    """Make a good and a bad version, then roll back from the bad one, again and again."""
    async with contextlib.AsyncExitStack() as opened:
        key = stacks[0].key()  # one database, one set of keys
        operators = [Operator(await opened.enter_async_context(open_client(s.url, key))) for s in stacks]
        first = operators[0]
        real = args.engine == "vllm"
        sequences = await first.draw(questions()[:PROBE_PROMPTS], PROBE_TOKENS) if real else None
        versions = stacks[0].data / "versions"
        good, bad = await asyncio.to_thread(make_versions, versions, model, 2, sequences)
        for version in (good, bad):
            await first.register(await first.reserve(version))
            await first.until_ready(version.name)
            await first.promote(version.name)
        return [await _one(args, stacks, operators, good, bad) for _ in range(args.rollbacks)]


async def _one(
    args: argparse.Namespace, stacks: Sequence[Stack], operators: Sequence[Operator], good: Made, bad: Made
) -> Rollback:
    if await operators[0].stable() != bad.name:
        await operators[0].promote(bad.name)
    load = Load(
        [stack.url for stack in stacks],
        stacks[0].key(),
        clients=args.clients,
        body=lambda number: chat_body(number, tokens=1, user=f"user-{number}"),
    )
    async with load.running():
        await _until_all_say(load, bad.name, len(stacks))
        began = time.monotonic()
        named = [asyncio.create_task(_last_named(stack, bad.name, since=began)) for stack in stacks]
        await operators[0].rollback(good.name)
        answered = time.monotonic()
        await asyncio.sleep(LATER_S)
        named_s = await asyncio.gather(*named)
    late = [a.began - began for a in load.answers if a.header_version == bad.name and a.began > began]
    found = Rollback(answered - began, max(late, default=0.0), named_s, load.answers)
    verb_ms, last_ms = 1000 * found.verb_s, 1000 * found.last_s
    print(f"the verb took {verb_ms:.0f} ms; {bad.name} was given to nobody after {last_ms:.0f} ms", flush=True)
    return found


async def _last_named(stack: Stack, version: str, *, since: float) -> float:
    """Seconds until a gateway was last seen to name this version as stable; asked every `LOOK_S`."""
    last = 0.0
    async with open_client(stack.url, "") as http:
        while time.monotonic() < since + LATER_S:
            asked = time.monotonic()
            if (await http.get("/healthz")).json()["stable"] == version:
                last = asked - since
            await asyncio.sleep(LOOK_S)
    return last


async def _until_all_say(load: Load, version: str, servers: int) -> None:
    """Until the newest answers of every gateway come from this version."""
    seen = 0
    for _ in range(600):
        await asyncio.sleep(0.2)
        newest = load.answers[-20 * servers :]
        seen = len({a.client % servers for a in newest if a.header_version == version})
        if seen == servers and all(a.header_version == version for a in newest if not a.failed):
            return
    raise SystemExit(f"only {seen} of {servers} gateways answer with {version} after two minutes")


def figures(args: argparse.Namespace, found: Sequence[Rollback]) -> dict[str, Any]:
    """What is compared with the aim, and what it is made of."""
    answers = [answer for one in found for answer in one.answers]
    last = [one.last_s for one in found]
    return {
        "seconds_p95": round(percentile(last, 0.95), 4),
        "seconds_p50": round(percentile(last, 0.5), 4),
        "seconds_max": round(max(last), 4),
        "last_request_p95_s": round(percentile([one.last_request_s for one in found], 0.95), 4),
        "named_p95_s": round(percentile([max(one.named_s) for one in found], 0.95), 4),
        "verb_p95_s": round(percentile([one.verb_s for one in found], 0.95), 4),
        "rollbacks": len(found),
        "gateways": args.gateways,
        "engine": args.engine,
        "failed": sum(answer.failed for answer in answers),
        "errors": sorted({answer.error for answer in answers if answer.error})[:5],
        "load": summary(found[-1].answers),
    }


async def run(args: argparse.Namespace, scratch: Path, model: Path) -> dict[str, Any]:
    """All of it."""
    async with gateways(args, scratch, model) as stacks:
        return figures(args, await measure(args, stacks, model))


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    model = args.model or (ensure_model(Settings()) if args.engine == "vllm" else Path())
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(run(args, Path(scratch), model))
    print(f"\n{machine()}\n\n{found['rollbacks']} rollbacks under load, {found['gateways']} gateways")
    print("until the bad version was given to nobody, seconds after the verb (aim: p95 ≤ 0.5):")
    print("   ".join(f"{q} {found[f'seconds_{q}']:.3f}" for q in ("p50", "p95", "max")))
    print(f"{found['failed']} answers failed {found['errors'] or ''}")
    if not args.quick and args.engine == "vllm":
        print(f"written: {write_result('rollback', found)}")


if __name__ == "__main__":
    main()
