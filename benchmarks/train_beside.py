"""What do users feel of a trainer that learns on the same machine? Latency with the trainer idle and busy.

    python -m benchmarks.train_beside [--quick] [--seconds 150] [--clients 4] [--spread 0.5] [--model FOLDER]

A service as `make run` starts it: engine, server and trainer on the same cores, the trainer niced, its rollouts at low
priority. Clients stream answers: *full*, without pause, where the trainer gets what the engine leaves, which is little;
and *half*, where each client rests for as long as its answer took, so that the trainer has time to run in. Answers are
half to one and a half times `--tokens` long, evenly: of one length (`--spread 0`), clients without a pause fall into
step and have their prompts read together, until the trainer's answers put them out of it.

*Idle*: the trainer waits for votes. *Busy*: it is fed rated answers as fast as it takes them; only answers that lie
wholly within a running training run count. `p99_ratio` is the worse of the two loads.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import Answer, Load, chat_body, open_client, percentile, questions, summary
from benchmarks.report import machine, write_result
from benchmarks.services import whole_service
from plaudit_server.engine.bundled import ensure_model
from plaudit_server.settings import Settings

VOTES = 32
WARM_UP_S = 20
RESTS = {"half": 1.0, "full": 0.0}
"""Of each load, how long a client rests, as a multiple of the time of its answer."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 s a phase; writes nothing")
    parser.add_argument("--seconds", type=float, help="of each phase; the busy one counts only time in which it trains")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--spread", type=float, default=0.5, help="of the answers' lengths about --tokens, as a share")
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    args.seconds = args.seconds or (20 if args.quick else 150)
    return args


def environment() -> dict[str, str]:
    """What a run for one person sets, with batches small enough that the trainer starts soon and goes on."""
    return {
        "PLAUDIT_AUTO_PROMOTE": "true",
        "PLAUDIT_TRAINER_MIN_RECORDS": str(VOTES),
        "PLAUDIT_TRAINER_MAX_VOTES_PER_USER": "0",
        "PLAUDIT_TRAINER_REWARD_BAR": "0",
        "PLAUDIT_TRAINER_GATE_WIN_RATE": "0",
        "PLAUDIT_TRAINER_POLL_S": "1",
    }


def _load(args: argparse.Namespace, url: str, key: str, rest: float) -> Load:
    def body(number: int) -> dict[str, Any]:
        more = {"ignore_eos": True, "train": False, "user": f"reader-{number}"}
        return chat_body(number, tokens=_length(number, args.tokens, args.spread), model="policy", **more)

    return Load([url], key, clients=args.clients, body=body, rest=rest)


def _length(number: int, tokens: int, spread: float) -> int:
    """Of the n-th answer: evenly over [1 − spread, 1 + spread] · tokens, in an order without rhythm (golden ratio)."""
    return round(tokens * (1 + spread * (2 * (number * 0.6180339887 % 1) - 1)))


class Training:
    """Feeds the trainer votes, and notes when it trains."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.spans: list[tuple[float, float]] = []
        self.stages: dict[str, float] = {}
        self._asked = 0

    @property
    def seconds(self) -> float:
        """How long it has trained while it was watched."""
        return sum(end - begin for begin, end in self.spans)

    async def watch(self, until_s: float, *, give_up_s: float) -> None:
        """Feed and note, until it has trained so long."""
        last, deadline = time.monotonic(), time.monotonic() + give_up_s
        while self.seconds < until_s and time.monotonic() < deadline:
            run = await self._running()
            now = time.monotonic()
            if run is not None:
                self.spans.append((last, now))
                stage = str(run["stage"])
                self.stages[stage] = self.stages.get(stage, 0) + now - last
            else:
                await self._feed()
                now = time.monotonic()
            last = now
            await asyncio.sleep(0.5)

    async def _running(self) -> dict[str, Any] | None:
        runs = (await self.http.get("/v1/training/runs", params={"limit": 1})).json()["data"]
        return runs[0] if runs and runs[0]["state"] == "running" else None

    async def _feed(self) -> None:
        """One batch of short answers, rated by whether they have a line break."""
        await asyncio.gather(*(self._rated() for _ in range(VOTES // 4)))

    async def _rated(self) -> None:
        self._asked += 1
        asked = questions()
        user = f"rater-{self._asked % 64}"
        body = {
            "model": "policy",
            "messages": [{"role": "user", "content": asked[self._asked % len(asked)]}],
            "max_tokens": 32,
            "train": True,
            "user": user,
        }
        answer = (await self.http.post("/v1/chat/completions", json=body)).raise_for_status().json()
        text = answer["choices"][0]["message"]["content"] or ""
        vote = {"response_id": answer["id"], "value": "\n" not in text.strip(), "end_user": user}
        (await self.http.post("/v1/feedback", json=vote)).raise_for_status()


async def measure(args: argparse.Namespace, url: str, key: str) -> dict[str, Any]:
    """Both loads idle, then both busy."""
    async with _load(args, url, key, 0).running():
        await asyncio.sleep(WARM_UP_S)
    idle, busy, trained = {}, {}, {}
    for name, rest in RESTS.items():
        load = _load(args, url, key, rest)
        async with load.running():
            await asyncio.sleep(args.seconds)
        idle[name] = load.answers
    async with open_client(url, key) as http:
        for name, rest in RESTS.items():
            load, training = _load(args, url, key, rest), Training(http)
            async with load.running():
                await training.watch(args.seconds, give_up_s=20 * args.seconds)
            busy[name], trained[name] = [a for a in load.answers if _within(a, training.spans)], training
    loads = {name: figures(idle[name], busy[name], trained[name]) for name in RESTS}
    return {
        "p99_ratio": max(load["p99_ratio"] for load in loads.values()),
        "loads": loads,
        "settings": {name: getattr(args, name) for name in ("clients", "tokens", "spread", "seconds")}
        | {"votes": VOTES},
    }


def _within(answer: Answer, spans: Sequence[tuple[float, float]]) -> bool:
    """Whether it trained when the answer began and when it ended."""
    return all(any(begin <= at <= end for begin, end in spans) for at in (answer.began, answer.ended))


def figures(idle: Sequence[Answer], busy: Sequence[Answer], training: Training) -> dict[str, Any]:
    """Of one load: what is compared with the aim, and what it is made of."""
    if not busy:
        raise SystemExit("the trainer did not train while it was watched: see its log")

    def ratios(value: Any) -> dict[str, float]:
        ours, theirs = ([value(a) for a in answers if not a.failed and a.ttft] for answers in (busy, idle))
        return {f"p{q}": round(percentile(ours, q / 100) / percentile(theirs, q / 100), 3) for q in (50, 99)}

    whole = ratios(lambda answer: answer.ended - answer.began)
    return {
        "p99_ratio": whole["p99"],
        "p50_ratio": whole["p50"],
        "ttft_ratio": ratios(lambda answer: answer.ttft),
        "idle": summary(idle),
        "busy": summary(busy),
        "trained_s": round(training.seconds, 1),
        "stages_s": {stage: round(seconds, 1) for stage, seconds in training.stages.items()},
    }


def show(found: dict[str, Any]) -> None:
    """The table."""
    print(f"\n{machine()}\n")
    print("load  trainer   answers  failed   tok/s  answer p50     p99 s  ttft p99 ms")
    for name, load in found["loads"].items():
        for state in ("idle", "busy"):
            one = load[state]
            whole = one["answer_s"]
            print(
                f"{name:<6}{state:<9}{one['answers']:>8}{one['failed']:>8}{one['tokens_per_s']:>8.1f}"
                f"{whole['p50']:>12.2f}{whole['p99']:>8.2f}  {one['ttft_ms']['p99']:>10.0f}"
            )
        print(
            f"{name}: busy / idle p50 {load['p50_ratio']:.2f}, p99 {load['p99_ratio']:.2f}; trained {load['stages_s']}"
        )
    print(f"p99 of the worse load {found['p99_ratio']:.2f} (aim ≤ 1.5)")


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    model = args.model or ensure_model(Settings())
    with tempfile.TemporaryDirectory() as scratch, whole_service(Path(scratch), model, environment()) as stack:
        found = asyncio.run(measure(args, stack.url, stack.key()))
    show(found)
    if not args.quick:
        print(f"written: {write_result('train_beside', found)}")


if __name__ == "__main__":
    main()
