"""The engine as the rest of the server sees it.

An engine is one or more replicas. Each holds the weights of one whole model: the base model, with any number of
adapters beside it, or a version that is a whole model itself, alone. Versions are known by their name, are immutable,
and are loaded and proven on a replica before a request there may name them. Nothing here assumes that replicas are
local.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.ops import ReplicaHealth
from plaudit.wire.training import GeneratedAnswer, GeneratePrompt, TokenSequence
from plaudit.wire.versions import ProofReport, VersionKind


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A version's weights: what the engine needs to load them and to prove them.

    Args:
        name: the version's name, `v42`.
        parent: the version that its probe compares with, `v41` or `base`.
        location: the version's folder (manifest.json, probe.json, and adapter/ or model/).
        manifest_sha256: SHA-256 of manifest.json's bytes.
        kind: an adapter, which lives beside others on the base model, or a whole model, which takes its place.
    """

    name: str
    parent: str
    location: str
    manifest_sha256: str
    kind: VersionKind = "adapter"


@dataclass(frozen=True, slots=True)
class Member:
    """A replica that somebody else runs, as the fleet's list has it. Draining, it is given nothing new."""

    name: str
    url: str
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Others:
    """Other gateways on the same replicas: the versions that they use, and whether this one comes before them all."""

    versions: frozenset[str]
    is_first: bool = True


@dataclass(slots=True)
class ChoiceTrace:
    """What one choice was, exactly: the ids drawn and their log-probabilities (nats) when drawn.

    `logprobs` has one entry for each of `response_ids`, or is None where the engine did not give every one of them:
    a missing value is never invented.
    """

    index: int
    response_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    text: str = ""
    tool_calls: list[Any] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(slots=True)
class ChatTrace:
    """What a chat request was, exactly; filled while its answer passes through.

    `also_by`: the versions whose weights took the place of the asked one's while the answer was being drawn, in that
    order. Its log-probabilities are then no single version's.
    """

    prompt_ids: list[int] | None = None
    choices: dict[int, ChoiceTrace] = field(default_factory=dict)
    usage: JsonObject | None = None
    first_token_at: float | None = None  # time.monotonic()
    also_by: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Brand:
    """What an answer and each of its chunks say of their making. `created` in seconds since 1970."""

    id: str
    created: int
    model: str
    fingerprint: str

    def on(self, answer: JsonObject) -> JsonObject:
        """An answer or chunk of the engine under our name."""
        ours: JsonObject = {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }
        return ours | answer | ours


class ChatStream(Protocol):
    """A streamed answer. Closing it aborts generation in the engine; its trace is whole afterwards."""

    trace: ChatTrace

    def events(self, brand: Brand) -> AsyncGenerator[bytes]:
        """OpenAI's chunks as server-sent events, as the caller asked for them: what we asked the engine for in addition
        is taken out. Several come at once where the engine sent them together. `[DONE]` is left to the caller.
        """
        ...

    async def aclose(self) -> None:
        """Stop generation."""
        ...


class Engine(Protocol):
    """What a policy is served by. Errors are `plaudit_server.errors.EngineError`s."""

    is_fake: bool

    async def start(self) -> None:
        """Begin to bring the engine up; returns at once. `health` tells when it is ready."""
        ...

    async def close(self) -> None:
        """Stop everything that was started, and wait for it."""
        ...

    def health(self) -> list[ReplicaHealth]:
        """One entry a replica."""
        ...

    def follow(self, members: Sequence[Member], others: Others | None) -> None:
        """Bring the replicas in line with the fleet's list. Cheap where nothing changed; also before `start`.

        A replica that is no longer listed, or draining, gets no new request; those in flight end by themselves. A
        new one is watched from now on, and ready once everything that is installed was proven there.

        Args:
            members: the replicas that others run; a child of ours is not among them.
            others: other gateways that use these replicas, if there are any.
        """
        ...

    def is_up(self) -> bool:
        """Whether some replica is up, whatever it holds."""
        ...

    def weights(self) -> set[str]:
        """Whole models, `base` or versions, that some ready replica holds now, proven."""
        ...

    def capacity(self) -> int:
        """How many whole models can be live at once: one a replica that is not being drained."""
        ...

    async def place(self, wanted: Sequence[str]) -> None:
        """Have these whole models live, the most needed first; replicas that are left over hold the first.

        `base`, or versions that were installed before; others are passed over. One replica at a time is swapped, with
        proof, while the others serve. One that cannot be swapped keeps, or gets back, what it had.
        """
        ...

    def is_ready(self, version: str = "base") -> bool:
        """Whether a chat on `version` would be answered: some replica is ready and has it proven."""
        ...

    async def chat(self, body: JsonObject, *, version: str, request_id: str) -> tuple[JsonObject, ChatTrace]:
        """One whole chat completion.

        Args:
            body: OpenAI's request without `model`.
            version: `base` or a proven version.
            request_id: ours; becomes part of the engine's, so that logs can be joined.

        Returns:
            The engine's answer, less what only we asked for; and its trace.

        Raises:
            EngineUnavailable: no ready replica has the version.
            EngineRefused: the engine answered 4xx.
        """
        ...

    async def chat_stream(self, body: JsonObject, *, version: str, request_id: str) -> ChatStream:
        """As `chat`, streamed. Returns once the engine has accepted the request."""
        ...

    async def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """Draw answers for the trainer, at lower priority than chats. A prompt the engine refuses is left out."""
        ...

    async def score(self, sequences: Sequence[TokenSequence], *, version: str) -> list[list[float]]:
        """Log-probability (nats) of each response token under `version`, from any ready replica."""
        ...

    async def install(self, adapter: AdapterRef) -> ProofReport:
        """Check the artefact, load it on every ready replica that holds the base model, and prove it there.

        A whole model is swapped in and proven on one replica, the one that can best be spared; `place` brings it to
        others, which prove it for themselves.

        A version is proven when `engine_quorum` replicas have proven it (unset: all that are ready now); another one
        serves on without it. A version that fails is unloaded again and can never be named. After a
        replica's restart the engine installs what was installed before, by itself, before the replica is ready again.
        Idempotent.

        Returns:
            The proof; `passed` is False with the reason where anything did not hold. Never raises for a bad artefact.

        Raises:
            EngineUnavailable: too few replicas are up; try again later.
        """
        ...

    async def retire(self, version: str) -> None:
        """Unload a version once no request uses it. Unknown versions are ignored."""
        ...

    def resident(self) -> set[str]:
        """Versions that hold a place: installed and proven. Contains `base`; empty while no replica is ready."""
        ...

    async def base_fingerprint(self) -> str:
        """Identity of the base model, as manifests carry it (`plaudit.wire.fingerprint`)."""
        ...
