"""`kill -9` of server, engine or trainer at random moments of the loop, on real parts.

In CI three kills, one of each; `make chaos` does twenty. Set PLAUDIT_CHAOS_SEED to repeat a sequence.
"""

import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from plaudit import Plaudit
from plaudit.errors import PlauditError
from tests.support.stack import Stack, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("PLAUDIT_CHAOS_KILLS", "3"))
SEED = int(os.environ.get("PLAUDIT_CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))
VICTIMS = ("trainer", "server", "engine")

# Small and quick runs, so that a kill finds the loop in every one of its stages; every finite policy passes the gate.
TRAINER = {
    "PLAUDIT_AUTO_PROMOTE": "true",
    "PLAUDIT_TRAINER_MIN_RECORDS": "12",
    "PLAUDIT_TRAINER_MAX_RECORDS": "16",
    "PLAUDIT_TRAINER_MIN_EXAMPLES": "8",
    "PLAUDIT_TRAINER_MAX_NEW_TOKENS": "12",
    "PLAUDIT_TRAINER_ROLLOUT_PROMPTS": "4",
    "PLAUDIT_TRAINER_GATE_ANSWERS": "8",
    "PLAUDIT_TRAINER_REWARD_STEPS": "8",
    "PLAUDIT_TRAINER_CRITIC_STEPS": "4",
    "PLAUDIT_TRAINER_PROBE_MIN_TOKENS": "128",
    "PLAUDIT_TRAINER_REWARD_BAR": "0",
    "PLAUDIT_TRAINER_GATE_WIN_RATE": "0",
    "PLAUDIT_TRAINER_GATE_LENGTH_GROWTH": "10",
    "PLAUDIT_TRAINER_GATE_END_OF_TEXT_DROP": "1",
    "PLAUDIT_TRAINER_GATE_DISAGREEMENT_GROWTH": "100",
    "PLAUDIT_TRAINER_RETRY_S": "2",
}


class Users(threading.Thread):
    """People who ask and rate without end, and remember every vote that the server acknowledged."""

    def __init__(self, stack: Stack, seed: int) -> None:
        super().__init__(name="users", daemon=True)
        self.stack = stack
        self.dice = random.Random(seed)
        self.acknowledged: dict[str, float] = {}
        self.askers: dict[str, str] = {}
        self.refused = 0
        self.late_votes = 0
        self.over = threading.Event()

    def run(self) -> None:
        with Plaudit(base_url=self.stack.url, api_key=self.stack.key(), timeout=60, max_retries=0) as client:
            number = 0
            while not self.over.is_set():
                number += 1
                self.one_turn(client, number)
                self.over.wait(0.4)  # leave the trainer some of the processor, or the loop hardly turns

    def one_turn(self, client: Plaudit, number: int) -> None:
        user = f"user-{number % 6}"
        try:
            reply = client.chat.create(f"Say something about {number}.", max_tokens=12, temperature=1.0, user=user)
            self.askers[reply.response_id] = user
        except PlauditError:
            self.refused += 1
            time.sleep(0.5)
            self.vote_late(client)
            return
        if number % 3:  # every third answer waits for its vote until chat is refused
            self.vote(client, reply.response_id, user)

    def vote(self, client: Plaudit, response_id: str, user: str) -> bool:
        value = self.dice.random() < 0.5
        try:
            client.feedback.create(response_id, value, end_user=user)
        except PlauditError:
            return False
        self.acknowledged[response_id] = 1.0 if value else -1.0
        return True

    def unrated(self) -> list[str]:
        """Answers that wait for their vote, the oldest first."""
        return [answer for answer in self.askers.copy() if answer not in self.acknowledged]

    def vote_late(self, client: Plaudit) -> None:
        """While chat is refused, feedback on earlier answers must be accepted, provided the server itself lives."""
        waiting = self.unrated()
        if waiting and self.vote(client, waiting[0], self.askers[waiting[0]]):
            self.late_votes += 1


@pytest.fixture
def stack(tmp_path: Path, base_model: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path, model=base_model, environment=TRAINER)
    stack.start("server")
    try:
        stack.wait_ready()
        stack.start("trainer")
        yield stack
    finally:
        stack.stop()


def kill_and_restart(stack: Stack, victim: str) -> None:
    """As the supervisor does: what dies is started again at once; the engine is the server's own affair."""
    engine = stack.engine_processes() if victim == "server" else []
    stack.kill(victim)
    if engine:
        wait_for("the engine to go with its server", lambda: not any(p.is_running() for p in engine), seconds=20)
    if victim != "engine":
        stack.start(victim)


def versions_on_disk(stack: Stack) -> dict[str, dict]:
    """Every visible version folder must be whole: manifest and the sha256 of every file."""
    found = {}
    for folder in (stack.data / "versions").iterdir():
        if folder.name.startswith("."):
            continue
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, digest in manifest["files"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest["sha256"], f"{folder.name}/{name}"
        found[folder.name] = manifest
    return found


def trained_records(stack: Stack, names: Iterable[str]) -> Counter[str]:
    """How often each record was trained on, from what the trainer itself wrote beside the weights it published."""
    folders = (stack.data / "versions" / name for name in names)
    return Counter(r for folder in folders for r in json.loads((folder / "batch.json").read_text())["records"])


def newest(client: Plaudit) -> int:
    return max((int(v.name[1:]) for v in client.versions.list().data if v.name != "base"), default=0)


@pytest.fixture
def client(stack: Stack) -> Iterator[Plaudit]:
    """Closed even where the test fails: the next one would be blamed for its open socket."""
    with Plaudit(base_url=stack.url, api_key=stack.key(), timeout=60) as client:
        yield client


def test_nothing_acknowledged_is_lost_nothing_is_trained_twice_and_the_loop_goes_on(stack: Stack, client: Plaudit):
    print(f"\nchaos: {KILLS} kills, seed {SEED}")
    dice = random.Random(SEED)
    order = [victim for _ in range(-(-KILLS // 3)) for victim in dice.sample(VICTIMS, 3)][:KILLS]
    users = Users(stack, SEED)
    users.start()
    try:
        # Without one, there is nothing to rate while the engine is away; a second may be about to get its vote.
        wait_for("answers that wait for their vote", lambda: len(users.unrated()) > 1, seconds=60)
        for number, victim in enumerate(order, 1):
            if dice.random() < 0.6:  # else the kill may strike while the last one is still being mended
                stack.wait_ready()
            pause = dice.uniform(2, 30)
            time.sleep(pause)
            print(f"chaos: {number}: after {pause:.1f} s kill -9 {victim}", flush=True)
            kill_and_restart(stack, victim)
        stack.wait_ready()
        reached = newest(client)
        wait_for("a version trained after the last kill", lambda: newest(client) > reached, seconds=400, pause=1)
    finally:
        users.over.set()
        users.join(90)
    assert users.acknowledged and not users.is_alive()
    assert users.late_votes, "feedback must be accepted while the engine is away"

    kept = {f.response_id: f.value for f in client.feedback.iterate(limit=100)}
    missing = {answer for answer, value in users.acknowledged.items() if kept.get(answer) != value}
    assert not missing, f"{len(missing)} of {len(users.acknowledged)} acknowledged votes are gone"

    manifests = versions_on_disk(stack)
    registered = {v.name for v in client.versions.list().data} - {"base"}
    assert registered <= set(manifests), "a registered version has no folder"
    trained = trained_records(stack, manifests)
    twice = {record: times for record, times in trained.items() if times > 1}
    assert not twice
    print(
        f"chaos: {len(users.acknowledged)} votes acknowledged, all kept ({users.late_votes} of them while chat was "
        f"refused); {users.refused} chats refused; {len(manifests)} version(s) from {len(trained)} records, none twice"
    )
