"""`make demo`: simulated users teach the policy a taste, through the HTTP API alone.

For each taste a service is started as `make run` starts it, on a data folder of its own. Users ask everyday questions
and rate the answers: 👍 where the taste is met, 👎 where not, and one vote in ten is a coin flip. After every round the
trainer learns from the votes, and what passes its gate and the swap probe is promoted. At the end base and newest
version answer questions that were never asked before, and the operator rolls back.

Nothing here knows how training works; nothing in the trainer knows the tastes.
"""

import argparse
import asyncio
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.report import machine, write_result
from benchmarks.tastes import TASTES, Answer, Taste
from plaudit import AsyncPlaudit
from plaudit.errors import PlauditError
from plaudit_server.engine.bundled import ensure_model
from plaudit_server.settings import Settings

HERE = Path(__file__).parent
HELD_OUT_EVERY = 4
RANDOM_VOTES = 0.10
ANSWER_TOKENS = 64
AT_ONCE = 24
console = Console()


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked."""

    rounds: int
    votes: int
    samples: int
    minutes: float


@dataclass(slots=True)
class Story:
    """What happened with one taste."""

    taste: str
    base_hits: list[list[bool]] = field(default_factory=list)
    new_hits: list[list[bool]] = field(default_factory=list)
    newest: str = "base"
    rounds: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    rollback: str = ""
    votes: int = 0
    up_by_version: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))


class Clock:
    """Adds the time of a `with` block to a stage."""

    def __init__(self, story: Story, stage: str) -> None:
        self.story, self.stage = story, stage

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.story.seconds[self.stage] += time.monotonic() - self.began


class Service:
    """`python -m plaudit_server up` on a fresh data folder."""

    def __init__(self, data: Path, port: int, model: Path, votes: int) -> None:
        self.data = data
        self.url = f"http://127.0.0.1:{port}"
        settings = {
            "PLAUDIT_DATA": str(data),
            "PLAUDIT_PORT": str(port),
            "PLAUDIT_MODEL": str(model),
            "PLAUDIT_AUTO_PROMOTE": "true",
            "PLAUDIT_CONSENT_DEFAULT": "granted",
            "PLAUDIT_TRAINER_MIN_RECORDS": str(votes),
            "PLAUDIT_TRAINER_MAX_NEW_TOKENS": str(ANSWER_TOKENS),
            "PLAUDIT_TRAINER_POLL_S": "1",
        }
        data.mkdir(parents=True, exist_ok=True)
        self.log = (data / "up.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "plaudit_server", "up"],
            env={**os.environ, **settings},
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def check(self) -> None:
        """Say why it ended, if it did."""
        if self.process.poll() is not None:
            raise SystemExit(f"the service ended:\n{(self.data / 'up.log').read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """As Ctrl-C does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
        self.log.close()

    async def client(self) -> AsyncPlaudit:
        """A client with the admin's key, once the service is ready."""
        key_file = self.data / "admin.key"
        while not key_file.exists():
            self.check()
            await asyncio.sleep(0.2)
        client = AsyncPlaudit(base_url=self.url, api_key=key_file.read_text().strip(), timeout=300)
        while True:
            self.check()
            try:
                if (await client.ready()).status == "ok":
                    return client
            except PlauditError:
                pass
            await asyncio.sleep(0.5)


def prompts() -> tuple[list[str], list[str]]:
    """Questions to learn on and questions to judge by; no question is in both."""
    lines = [line.strip() for line in (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()]
    questions = [line for line in lines if line and not line.startswith("#")]
    held_out = questions[::HELD_OUT_EVERY]
    return [q for q in questions if q not in set(held_out)], held_out


async def ask(
    client: AsyncPlaudit, question: str, *, model: str, store: bool, user: str
) -> tuple[str | None, Answer, str]:
    """One question. Returns the id to rate, the answer, and the version that spoke."""
    reply = await client.chat.create(
        question, model=model, store=store, user=user, max_tokens=ANSWER_TOKENS, temperature=1.0
    )
    answer = Answer(text=reply.text, finished=reply.choices[0].finish_reason == "stop")
    return reply.response_id, answer, reply.version or "?"


async def judge(
    client: AsyncPlaudit, model: str, questions: Sequence[str], samples: int, likes: Taste
) -> list[list[bool]]:
    """👍 or 👎 without noise on answers that are not stored: one row a question, one column a sample."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(question: str) -> bool:
        async with gate:
            return likes((await ask(client, question, model=model, store=False, user="judge"))[1])

    hits = await asyncio.gather(*(one(q) for q in questions for _ in range(samples)))
    return [list(hits[i * samples : (i + 1) * samples]) for i in range(len(questions))]


async def live_round(
    client: AsyncPlaudit, story: Story, questions: Sequence[str], likes: Taste, dice: random.Random
) -> None:
    """Users ask and rate. Each question is asked by a user of its own choosing; one vote in ten is a coin flip."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(question: str, user: str, noise: float, coin: bool) -> None:
        async with gate:
            response_id, answer, version = await ask(client, question, model="policy", store=True, user=user)
            honest = likes(answer)
            vote = coin if noise < RANDOM_VOTES else honest
            await client.feedback.create(response_id, vote, end_user=user)
            story.up_by_version[version].append(honest)

    users = [f"user-{dice.randrange(10**9)}" for _ in range(max(8, len(questions) // 4))]
    work = [one(q, dice.choice(users), dice.random(), dice.random() < 0.5) for q in questions]
    story.votes += len(work)
    await asyncio.gather(*work)


async def wait_for_run(client: AsyncPlaudit, service: Service, done: set[str]) -> tuple[str, str, bool]:
    """Wait until a run that is not in `done` has ended and its version is proven or refused: (run, words, settled)."""
    while True:
        service.check()
        runs = [run for run in (await client.training.runs()).data if run.id not in done and run.state != "running"]
        for run in runs:
            if run.state == "failed":
                return run.id, f"{run.version}: run failed: {run.reason}", False
            version = await client.versions.get(run.version)
            if version.state == "ready" and "stable" in version.aliases:
                slopes = ", ".join(f"{r.slope:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in version.proof.replicas)
                return run.id, f"{version.name}: published, proven (slope {slopes}), promoted", True
            if version.state in ("rejected", "failed"):
                return run.id, f"{version.name}: {version.state}: {version.reason}", True
        await asyncio.sleep(1)


async def tell(taste: str, plan: Plan, *, model: Path, folder: Path, port: int, seed: int) -> Story:
    """One taste, from a fresh data folder to a rollback."""
    story, likes, dice = Story(taste), TASTES[taste], random.Random(seed)
    train, held_out = prompts()
    began = time.monotonic()
    service = Service(folder / taste, port, model, plan.votes)
    try:
        with Clock(story, "start"):
            client = await service.client()
        async with client:
            with Clock(story, "judge base"):
                story.base_hits = await judge(client, "policy@base", held_out, plan.samples, likes)
            console.print(f"  {taste}: base {rate(story.base_hits)} on {len(held_out)} held-out questions")
            done: set[str] = set()
            for number in range(1, plan.rounds + 1):
                if time.monotonic() - began > plan.minutes * 60 * 0.72:
                    story.rounds.append(f"stopped after {number - 1} rounds: the time is needed for judging")
                    break
                with Clock(story, "chat and rate"):
                    await live_round(client, story, dice.sample(train, k=min(plan.votes, len(train))), likes, dice)
                with Clock(story, "train, gate, prove"):
                    run, words, _settled = await wait_for_run(client, service, done)
                done.add(run)
                story.rounds.append(words)
                console.print(f"  {taste}: round {number}: {words}", markup=False, highlight=False)
            with Clock(story, "judge newest"):
                await judge_newest(client, story, held_out, plan.samples, likes)
            console.print(f"  {taste}: newest, {story.newest}, {rate(story.new_hits)} on the same questions")
            with Clock(story, "roll back"):
                story.rollback = await roll_back(client, story)
            console.print(f"  {taste}: {story.rollback}", markup=False, highlight=False)
    finally:
        service.stop()
    story.seconds["all"] = time.monotonic() - began
    return story


async def judge_newest(
    client: AsyncPlaudit, story: Story, questions: Sequence[str], samples: int, likes: Taste
) -> None:
    """The stable version is the newest that passed; judge it on the questions that base was judged on."""
    stable = next(alias.version for alias in await aliases(client) if alias.name == "stable")
    story.newest = stable
    story.new_hits = await judge(client, f"policy@{stable}", questions, samples, likes)


async def aliases(client: AsyncPlaudit) -> list:  # type: ignore[type-arg]
    """All aliases."""
    return list((await client.aliases.list()).data)


async def roll_back(client: AsyncPlaudit, story: Story) -> str:
    """Roll back and ask at once: who answers, and after how long?"""
    if story.newest == "base":
        return "nothing was promoted, so there is nothing to roll back"
    _, _, before = await ask(client, "Hello!", model="policy", store=False, user="operator")
    began = time.monotonic()
    alias = await client.rollback(to="previous", reason="demo: shown to take effect")
    moved = time.monotonic() - began
    _, _, after = await ask(client, "Hello!", model="policy", store=False, user="operator")
    if after != alias.version or after == before:
        raise SystemExit(f"rollback to {alias.version} did not take effect: {before} answered before, {after} after")
    return f"rolled back from {before} to {after} in {moved * 1000:.0f} ms; the next answer came from {after}"


def rate(hits: Sequence[Sequence[bool]]) -> str:
    """Share of 👍 in per cent with Wilson's 95 % interval (1927), as if samples of a question were independent."""
    flat = [hit for row in hits for hit in row]
    n, p, z = len(flat), sum(flat) / max(1, len(flat)), 1.96
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return f"{100 * p:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def gain(base: Sequence[Sequence[bool]], new: Sequence[Sequence[bool]], seed: int = 0) -> list[float]:
    """Mean gain in points with a 95 % interval: bootstrap over questions, which are the independent unit."""
    difference = np.array([np.mean(n) - np.mean(b) for b, n in zip(base, new, strict=True)])
    draws = np.random.default_rng(seed).choice(difference, size=(10_000, len(difference))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return [round(100 * float(x), 1) for x in (difference.mean(), low, high)]


def show(stories: Sequence[Story]) -> None:
    """The table at the end."""
    table = Table(title="👍-rate on questions never asked before, 95 % intervals")
    for column in ("taste", "base", "newest", "👍 base", "👍 newest", "gain, points", "votes", "minutes"):
        table.add_column(column, justify="left" if column == "taste" else "right")
    for story in stories:
        mean, low, high = gain(story.base_hits, story.new_hits)
        table.add_row(
            story.taste,
            "base",
            story.newest,
            rate(story.base_hits),
            rate(story.new_hits),
            f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]",
            str(story.votes),
            f"{story.seconds['all'] / 60:.1f}",
        )
    console.print(table)
    for story in stories:
        console.print(f"\n{story.taste}", style="bold")
        for words in [*story.rounds, story.rollback]:
            console.print(f"  {words}", markup=False, highlight=False)
        stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in story.seconds.items() if stage != "all")
        console.print(f"  time: {stages}", highlight=False)
        live = ", ".join(f"{v} {100 * np.mean(h):.0f} % of {len(h)}" for v, h in story.up_by_version.items())
        console.print(f"  liked while learning: {live}", highlight=False)


def figures(stories: Sequence[Story]) -> dict[str, object]:
    """What goes into benchmarks/results/demo.json."""
    return {
        story.taste: {
            "base_rate": round(float(np.mean(story.base_hits)), 4),
            "new_rate": round(float(np.mean(story.new_hits)), 4),
            "gain_points": gain(story.base_hits, story.new_hits),
            "minutes": round(story.seconds["all"] / 60, 1),
            "votes": story.votes,
            "newest": story.newest,
            "rounds": story.rounds,
            "rollback": story.rollback,
            "seconds": {stage: round(s, 1) for stage, s in story.seconds.items()},
        }
        for story in stories
    } | {"minutes": round(sum(s.seconds["all"] for s in stories) / 60, 1)}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tastes", default="you,paragraph", help=f"comma-separated, of {', '.join(TASTES)}")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of votes and training")
    parser.add_argument("--votes", type=int, default=80, help="votes a round")
    parser.add_argument("--samples", type=int, default=2, help="answers a held-out question")
    parser.add_argument("--minutes", type=float, default=19, help="budget a taste; no new round begins late in it")
    parser.add_argument("--model", help="Hugging Face id or folder (default: the bundled model)")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one round of 32 votes, one sample: does it run at all?")
    parser.add_argument("--keep", type=Path, help="folder for the data (default: a temporary one, removed)")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/demo.json alone")
    chosen = parser.parse_args()
    unknown = set(chosen.tastes.split(",")) - set(TASTES)
    if unknown:
        parser.error(f"unknown taste {', '.join(sorted(unknown))}; there are {', '.join(TASTES)}")
    return chosen


def main() -> None:
    """All tastes, the table, the result file."""
    chosen = arguments()
    plan = (
        Plan(1, 32, 1, chosen.minutes)
        if chosen.quick
        else Plan(chosen.rounds, chosen.votes, chosen.samples, chosen.minutes)
    )
    hardware = machine()
    console.print(f"machine: {hardware['cores']} cores, {hardware['processor']}, GPU {hardware['gpu'] or 'none'}")
    model = ensure_model(Settings(model=chosen.model) if chosen.model else Settings())
    with tempfile.TemporaryDirectory(prefix="plaudit-demo-") as scratch:
        folder = chosen.keep or Path(scratch)
        stories = [
            asyncio.run(tell(taste, plan, model=model, folder=folder, port=chosen.port, seed=chosen.seed))
            for taste in chosen.tastes.split(",")
        ]
    show(stories)
    if not chosen.no_write:
        console.print(f"\nwritten: {write_result('demo', figures(stories)).relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
