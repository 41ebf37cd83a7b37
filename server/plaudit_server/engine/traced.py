"""An engine whose calls are spans, and which is told of the trace. Put around the engine only where traces are on."""

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.ops import ReplicaHealth
from plaudit.wire.training import GeneratedAnswer, GeneratePrompt, TokenSequence
from plaudit.wire.versions import ProofReport, ReplicaProof
from plaudit_server.engine.base import AdapterRef, Brand, ChatStream, ChatTrace, Engine, Member, Others
from plaudit_server.tracing import Attributes, Tracing, carried_by, failed

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class TracedEngine:
    """Implements `Engine` by another one; see there. Nothing of it is on the path of a token."""

    def __init__(self, engine: Engine, tracing: Tracing) -> None:
        self._engine = engine
        self._tracing = tracing
        self.is_fake = engine.is_fake

    async def start(self) -> None:
        """Begin to bring the engine up."""
        await self._engine.start()

    async def close(self) -> None:
        """Stop everything that was started."""
        await self._engine.close()

    def health(self) -> list[ReplicaHealth]:
        """One entry a replica."""
        return self._engine.health()

    def follow(self, members: Sequence[Member], others: Others | None) -> None:
        """Bring the replicas in line with the fleet's list."""
        self._engine.follow(members, others)

    def is_up(self) -> bool:
        """Whether some replica is up."""
        return self._engine.is_up()

    def weights(self) -> set[str]:
        """Whole models that some ready replica answers with."""
        return self._engine.weights()

    def capacity(self) -> int:
        """How many whole models can be live at once."""
        return self._engine.capacity()

    async def place(self, wanted: Sequence[str]) -> None:
        """Have these whole models live."""
        await self._engine.place(wanted)

    def is_ready(self, version: str = "base") -> bool:
        """Whether a chat on `version` would be answered."""
        return self._engine.is_ready(version)

    def resident(self) -> set[str]:
        """Versions that are installed and hold a place."""
        return self._engine.resident()

    async def base_fingerprint(self) -> str:
        """Identity of the base model."""
        return await self._engine.base_fingerprint()

    async def chat(self, body: JsonObject, *, version: str, request_id: str) -> tuple[JsonObject, ChatTrace]:
        """One whole chat completion."""
        with self._tracing.span("engine.chat", _asked(version, request_id), kind="client") as span, carried_by(span):
            answer, trace = await self._engine.chat(body, version=version, request_id=request_id)
            _note(span, trace)
            return answer, trace

    async def chat_stream(self, body: JsonObject, *, version: str, request_id: str) -> ChatStream:
        """As `chat`, streamed; the span ends with the stream."""
        span = self._tracing.begin("engine.chat_stream", _asked(version, request_id))
        try:
            with carried_by(span):
                stream = await self._engine.chat_stream(body, version=version, request_id=request_id)
        except BaseException as error:
            failed(span, error)
            span.end()
            raise
        return _TracedStream(stream, span)

    async def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """Draw answers for the trainer."""
        asked: Attributes = {"plaudit.version": version, "plaudit.prompts": len(prompts), "plaudit.n": n}
        with self._tracing.span("engine.generate", asked, kind="client") as span, carried_by(span):
            return await self._engine.generate(prompts, version=version, n=n, sampling=sampling)

    async def score(self, sequences: Sequence[TokenSequence], *, version: str) -> list[list[float]]:
        """Log-probabilities under `version`."""
        asked: Attributes = {"plaudit.version": version, "plaudit.sequences": len(sequences)}
        with self._tracing.span("engine.score", asked, kind="client") as span, carried_by(span):
            return await self._engine.score(sequences, version=version)

    async def install(self, adapter: AdapterRef) -> ProofReport:
        """Load a version on every replica and prove it there: an event for each replica's proof."""
        asked = {"plaudit.version": adapter.name, "plaudit.parent": adapter.parent}
        with self._tracing.span("engine.install", asked, kind="client") as span, carried_by(span):
            report = await self._engine.install(adapter)
            span.set_attribute("plaudit.passed", report.passed)
            for proof in report.replicas:
                span.add_event("proof", _shown(proof))
            return report

    async def retire(self, version: str) -> None:
        """Unload a version once no request uses it."""
        with self._tracing.span("engine.retire", {"plaudit.version": version}, kind="client") as span, carried_by(span):
            await self._engine.retire(version)


class _TracedStream:
    """The engine's own stream, whose closing also ends a span."""

    def __init__(self, stream: ChatStream, span: "Span") -> None:
        self.trace = stream.trace
        self._stream = stream
        self._span = span

    def events(self, brand: Brand) -> AsyncGenerator[bytes]:
        """The stream's own events: no token passes through here."""
        return self._stream.events(brand)

    async def aclose(self) -> None:
        """Stop generation, and end the span."""
        try:
            await self._stream.aclose()
        finally:
            _note(self._span, self.trace)
            self._span.end()


def _shown(proof: ReplicaProof) -> dict[str, str | float | bool]:
    figures = {"slope": proof.slope, "low": proof.low, "high": proof.high}
    known = {f"plaudit.{name}": value for name, value in figures.items() if value is not None}
    return {"plaudit.replica": proof.replica, "plaudit.passed": proof.passed, **known}


def _asked(version: str, request_id: str) -> Attributes:
    return {"gen_ai.operation.name": "chat", "plaudit.version": version, "plaudit.request_id": request_id}


def _note(span: "Span", trace: ChatTrace) -> None:
    span.set_attribute("gen_ai.usage.input_tokens", len(trace.prompt_ids or ()))
    span.set_attribute("gen_ai.usage.output_tokens", sum(len(c.response_ids) for c in trace.choices.values()))
    reasons = [choice.finish_reason for choice in trace.choices.values() if choice.finish_reason is not None]
    span.set_attribute("gen_ai.response.finish_reasons", reasons)
