"""The engine on vLLM: one child of our own, or several servers that others run.

`fleet.py` knows who they are and chooses; `residency.py` knows what they hold and proves it. Here requests are sent,
once more where that is safe.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import httpx

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.ops import ReplicaHealth
from plaudit.wire.training import GeneratedAnswer, GeneratePrompt, TokenSequence
from plaudit.wire.versions import ProofReport
from plaudit_server.engine.base import AdapterRef, ChatStream, ChatTrace, Member, Others
from plaudit_server.engine.choice import conversation_key
from plaudit_server.engine.fleet import Connect, Fleet, counted, unchanged
from plaudit_server.engine.process import Launcher, launch_vllm
from plaudit_server.engine.replica import TRAINER_PRIORITY, ReplicaClient
from plaudit_server.engine.residency import Residency
from plaudit_server.engine.swap import BASE, Replica
from plaudit_server.engine.wire import NotReached
from plaudit_server.errors import EngineError, EngineRefused, EngineUnavailable
from plaudit_server.settings import Settings

T = TypeVar("T")

ACCEPT_TIMEOUT_S = 60.0
"""How long a replica may take to accept a streamed request; its tokens may take longer."""


class VllmEngine:
    """Implements `plaudit_server.engine.base.Engine` on vLLM.

    Args:
        settings: `engine_*`, `probe_*` and `data`.
        base: the base model's folder.
        launcher: what to start as a child; whatever it starts must speak the part of vLLM's interface that we use.
        note: what `health` says of replicas that are ready.
        connect: how a replica's URL is reached.
    """

    is_fake = False

    def __init__(
        self,
        settings: Settings,
        base: Path,
        *,
        launcher: Launcher = launch_vllm,
        note: str | None = None,
        connect: Connect = lambda url: ReplicaClient(url=url),
    ) -> None:
        self._note = note
        self.residency = Residency(settings, base, lambda: self.fleet.replicas)
        self.fleet = Fleet(
            settings,
            base,
            on_up=self.residency.restore,
            on_look=self.residency.look,
            launcher=launcher,
            connect=connect,
        )

    async def start(self) -> None:
        """Begin to bring the engine up; `health` tells when it is ready."""
        self.fleet.start()

    async def close(self) -> None:
        """Stop what was started, and wait for it."""
        await self.fleet.close()

    def health(self) -> list[ReplicaHealth]:
        """One entry a replica."""
        return self.fleet.health(self._note)

    def follow(self, members: Sequence[Member], others: Others | None) -> None:
        """Bring the replicas in line with the fleet's list; see `Engine.follow`."""
        self.residency.others = others
        self.fleet.follow(members)

    def is_up(self) -> bool:
        """Whether some replica is up, whatever it holds."""
        return bool(self.fleet.up)

    def weights(self) -> set[str]:
        """Whole models that some ready replica answers with."""
        return {one.weights for one in self.fleet.up if one.weights is not None and not one.swapping}

    def capacity(self) -> int:
        """Replicas that are not being drained."""
        return sum(not one.draining for one in self.fleet.replicas)

    async def place(self, wanted: Sequence[str]) -> None:
        """Have these whole models live; see `Engine.place`."""
        await self.residency.place(wanted)

    def is_ready(self, version: str = BASE) -> bool:
        """Whether some replica would answer a chat on `version`."""
        return version not in self.residency.retiring and bool(self.fleet.serving(version))

    def resident(self) -> set[str]:
        """Versions that hold a place; empty while no replica is ready."""
        return self.weights() | self.residency.versions() if self.fleet.up else set()

    async def base_fingerprint(self) -> str:
        """Identity of the base model."""
        return (await self.residency.base_model()).fingerprint

    async def install(self, adapter: AdapterRef) -> ProofReport:
        """Check, load and prove a version on the replicas; see `Engine.install`."""
        return await self.residency.install(adapter)

    async def retire(self, version: str) -> None:
        """Unload a version once no request uses it."""
        await self.residency.retire(version)

    # ---- asking

    async def chat(self, body: JsonObject, *, version: str, request_id: str) -> tuple[JsonObject, ChatTrace]:
        """One whole chat completion; see `Engine.chat`."""

        async def ask(replica: Replica) -> tuple[JsonObject, ChatTrace]:
            before = len(replica.held_since)
            with counted(replica, version):
                model = replica.model(version)
                answer = await replica.reach().chat(body, model=model, version=version, request_id=request_id)
            answer[1].also_by += replica.held_since[before:]
            return answer

        return await self._ask(version, body, ask, _never_arrived)

    async def chat_stream(self, body: JsonObject, *, version: str, request_id: str) -> ChatStream:
        """As `chat`, streamed."""

        async def ask(replica: Replica) -> ChatStream:
            before = len(replica.held_since)
            until_closed = contextlib.ExitStack()
            until_closed.enter_context(counted(replica, version))
            try:
                async with asyncio.timeout(ACCEPT_TIMEOUT_S):
                    stream = await replica.reach().chat_stream(
                        body,
                        model=replica.model(version),
                        version=version,
                        request_id=request_id,
                        on_close=until_closed.close,
                    )
                until_closed.callback(lambda: stream.trace.also_by.extend(replica.held_since[before:]))
                return stream
            except TimeoutError as error:
                until_closed.close()
                raise EngineUnavailable(
                    f"{replica.name} has not accepted the request after {ACCEPT_TIMEOUT_S:g} s."
                ) from error
            except BaseException:
                until_closed.close()
                raise

        return await self._ask(version, body, ask, lambda error: isinstance(error, EngineUnavailable))

    async def _ask(
        self,
        version: str,
        body: JsonObject,
        ask: Callable[[Replica], Awaitable[T]],
        is_safe_to_repeat: Callable[[EngineError], bool],
    ) -> T:
        """Ask one replica, and another one where the first refused before it had begun."""
        key = conversation_key(body.get("messages")) if len(self.fleet.replicas) > 1 else None
        first = self._pick(version, key)
        try:
            return await self._ask_one(first, version, ask)
        except EngineError as error:
            if not (is_safe_to_repeat(error) or _is_lost(error, version)):
                raise
            try:
                second = self.fleet.pick(version, key, but=first)
            except EngineUnavailable:
                raise error from None  # what the only replica said is more telling
        return await self._ask_one(second, version, ask)

    async def _ask_one(self, replica: Replica, version: str, ask: Callable[[Replica], Awaitable[T]]) -> T:
        """Ask, and let the replica's breaker know what came of it."""
        try:
            answer = await ask(replica)
        except EngineRefused as error:
            replica.breaker.succeeded()
            if _is_lost(error, version):
                self.residency.lost(replica, version, "it says that it does not know it")
            raise
        except EngineError:
            replica.breaker.failed(time.monotonic())
            raise
        replica.breaker.succeeded()
        return answer

    async def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """Draw answers for the trainer on all replicas that have the version; see `Engine.generate`."""

        async def on(replica: Replica, places: Sequence[int]) -> list[GeneratedAnswer]:
            with counted(replica, version), unchanged(replica):
                answers = await replica.reach().generate(
                    [prompts[i] for i in places], model=replica.model(version), n=n, sampling=sampling
                )
            return [a.model_copy(update={"prompt_index": places[a.prompt_index]}) for a in answers]

        parts = await asyncio.gather(*(on(*share) for share in self._shares(version, len(prompts))))
        return sorted(itertools.chain.from_iterable(parts), key=lambda answer: answer.prompt_index)

    async def score(self, sequences: Sequence[TokenSequence], *, version: str) -> list[list[float]]:
        """Log-probability (nats) of each response token under `version`."""
        replica = self._pick(version, None)
        with counted(replica, version), unchanged(replica):
            return await replica.reach().score(sequences, model=replica.model(version), priority=TRAINER_PRIORITY)

    def _pick(self, version: str, key: str | None) -> Replica:
        if version in self.residency.retiring:
            raise EngineUnavailable(f"{version} is not live on any engine replica yet; try again shortly.")
        return self.fleet.pick(version, key)

    def _shares(self, version: str, count: int) -> list[tuple[Replica, list[int]]]:
        """Which prompts go to which replica: every k-th to each of k."""
        self._pick(version, None)
        serving = self.fleet.serving(version)
        places = [list(range(first, count, len(serving))) for first in range(len(serving))]
        return [(replica, mine) for replica, mine in zip(serving, places, strict=True) if mine]


def _never_arrived(error: EngineError) -> bool:
    """Whether a whole answer cannot have been begun: the replica was not reached, or turned it away with a 503."""
    if not isinstance(error, EngineUnavailable):
        return False
    return error.__cause__ is None or isinstance(error.__cause__, NotReached)


def _is_lost(error: EngineError, version: str) -> bool:
    """Whether a replica says that it does not know a version which we believed it had."""
    return isinstance(error, EngineRefused) and error.status == httpx.codes.NOT_FOUND and version != BASE
