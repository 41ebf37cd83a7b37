"""Real swaps on real vLLM, and real faults put between the engine and vLLM's HTTP interface.

Used by the end-to-end test and by `benchmarks/swap_proof.py`.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import torch

from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import GeneratePrompt, TokenSequence
from plaudit.wire.versions import ProofReport, ReplicaProof
from plaudit_server.engine.process import EngineChild
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.engine.swap import Bounds, probe_replica
from plaudit_server.engine.vllm import VllmEngine
from plaudit_server.settings import Settings
from tests.support.engine_adapters import Adapter, Published, Reference, publish, write_version

TOPICS = ("bees", "rain", "chess", "bread", "trains", "music", "the moon", "dogs", "tea", "football", "paint", "trees")
ASKS = ("Tell me about", "Give me advice on", "Write a question about")


class FaultyClient(ReplicaClient):
    """A client of real vLLM on whose way something goes wrong, silently: vLLM's answers stay 200."""

    def __init__(self, socket: Path, fault: str, instead: Path | None = None) -> None:
        super().__init__(socket=socket)
        self.fault = fault
        self._instead = instead
        self._loaded: set[str] = set()

    async def load_adapter(self, lora_name: str, folder: Path) -> None:
        """Load nothing, or another folder."""
        self._loaded.add(lora_name)
        if self.fault != "load skipped":
            await super().load_adapter(lora_name, self._instead or folder)

    async def score(self, sequences: Sequence[TokenSequence], *, model: str, priority: int) -> list[list[float]]:
        """Where nothing was loaded, or by the fault, the base answers."""
        if self.fault in ("load skipped", "base served") and model in self._loaded:
            model = "base"
        return await super().score(sequences, model=model, priority=priority)


class Workbench:
    """One real vLLM, the trainer's reference, a parent and a new version."""

    def __init__(self, base: Path, folder: Path, child: EngineChild, client: ReplicaClient) -> None:
        self.base, self.folder, self.client = base, folder, client
        self.socket = child.launch.socket
        self.settings = Settings(data=folder)
        self.reference = Reference(base)
        self._faulty: list[FaultyClient] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, base: Path, folder: Path) -> AsyncIterator["Workbench"]:
        """Start vLLM; stop it at the end."""
        child = await EngineChild.start(Settings(data=folder, engine_kv_cache_gib=1), base)
        try:
            async with ReplicaClient(socket=child.launch.socket) as client:
                while not await client.healthy():
                    assert child.running, child.last_words()
                    await asyncio.sleep(0.25)
                bench = cls(base, folder, child, client)
                yield bench
                for faulty in bench._faulty:
                    await faulty.aclose()
        finally:
            await child.stop()

    def faulty(self, fault: str, instead: Path | None = None) -> FaultyClient:
        """A client of this vLLM with a fault: `load skipped`, `base served`, or another folder loaded instead."""
        self._faulty.append(FaultyClient(self.socket, fault, instead))
        return self._faulty[-1]

    async def draw(self, *, prompts: int, tokens: int) -> list[TokenSequence]:
        """Probe sequences: the base's own answers."""
        asked = [f"{ask} {topic}." for ask in ASKS for topic in TOPICS][:prompts]
        answers = await self.client.generate(
            [GeneratePrompt(messages=[{"role": "user", "content": text}]) for text in asked],
            model="base",
            n=1,
            sampling=SamplingParams(max_tokens=tokens, seed=1),
        )
        return [TokenSequence(prompt_ids=a.prompt_ids, response_ids=a.response_ids) for a in answers]

    @contextlib.asynccontextmanager
    async def engine(self, *clients: ReplicaClient) -> AsyncIterator[VllmEngine]:
        """An engine whose replicas are these clients of the one vLLM; what it installed is unloaded at the end."""
        urls = [f"http://{n}" for n in range(len(clients))]
        engine = VllmEngine(self.settings.model_copy(update={"engine_urls": urls}), self.base)
        for replica, client in zip(engine.fleet.replicas, clients, strict=True):
            replica.client = client
            await engine.residency.restore(replica)
        try:
            yield engine
        finally:
            for version in engine.resident() - {"base"}:
                await engine.retire(version)

    async def install(self, version: Published, client: ReplicaClient, parent: Published | None) -> ProofReport:
        """A swap through one client, the parent resident beforehand by an honest one."""
        async with self.engine(self.client) as engine:
            if parent is not None:
                report = await engine.install(parent.ref)
                assert report.passed, report.reason
            engine.fleet.replicas[0].client = client
            try:
                return await engine.install(version.ref)
            finally:
                engine.fleet.replicas[0].client = self.client

    async def slope_alone(self, version: Published, adapter_folder: Path | None, parent: Published | None) -> Any:
        """What the probe alone would say, without the bytes' check, of whatever lies in this folder."""
        names = [f"alone-{torch.randint(1 << 40, (1,)).item():x}" for _ in range(2)]
        models = ["base", "base"]
        for place, folder in enumerate((parent and Path(parent.ref.location) / "adapter", adapter_folder)):
            if folder is not None:
                await self.client.load_adapter(names[place], folder)
                models[place] = names[place]
        try:
            bounds = Bounds(self.settings.probe_slope_low, self.settings.probe_slope_high)
            return await probe_replica(self.client, models[1], models[0], version.probe, bounds)
        finally:
            for name in set(models) - {"base"}:
                await self.client.unload_adapter(name)
            (held,) = await self.client.call_workers("plaudit_adapters")
            await self.client.call_workers("plaudit_forget", held)


class Case:
    """A workbench with a parent, resident, and its child; both are a small step of training."""

    def __init__(self, bench: Workbench, engine: VllmEngine, parent: Published, new: Published) -> None:
        self.bench, self.engine, self.parent, self.new = bench, engine, parent, new

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, base: Path, folder: Path) -> AsyncIterator["Case"]:
        """Start vLLM, train both, install the parent."""
        async with Workbench.open(base, folder) as bench:
            sequences = await bench.draw(prompts=16, tokens=48)
            first = bench.reference.step(None, sequences[:4], seed=1)
            parent = publish(folder, bench.reference, name="v1", parent=None, adapter=first, sequences=sequences)
            second = bench.reference.step(first, sequences[4:8], seed=2)
            new = publish(folder, bench.reference, name="v2", parent=parent, adapter=second, sequences=sequences)
            async with bench.engine(bench.client) as engine:
                report = await engine.install(parent.ref)
                assert report.passed, report.reason
                yield cls(bench, engine, parent, new)

    async def install(self, client: ReplicaClient) -> ReplicaProof:
        """The swap to the child through this client; what was installed is retired again."""
        replica = self.engine.fleet.replicas[0]
        replica.client = client
        try:
            report = await self.engine.install(self.new.ref)
        finally:
            replica.client = self.bench.client
            await self.engine.retire(self.new.ref.name)
        assert report.passed == report.replicas[0].passed
        return report.replicas[0]


def renamed(version: Published, name: str, fingerprint: str) -> Published:
    """The same weights and probe as another version, child of base."""
    folder = Path(version.ref.location).with_name(name)
    ref = write_version(
        folder, adapter=version.adapter, probe=version.probe, name=name, parent="base", fingerprint=fingerprint
    )
    return Published(ref, version.adapter, version.probe)


def zeroed(version: Published) -> Path:
    """A folder with the version's adapter, all zeros in B."""
    folder = Path(tempfile.mkdtemp(dir=Path(version.ref.location).parent))
    adapter: Adapter = {k: torch.zeros_like(t) if k.endswith(".B") else t for k, t in version.adapter.items()}
    write_version(folder, adapter=adapter, probe=version.probe, name="v99", parent="base", fingerprint="0" * 64)
    return folder / "adapter"


def on_wrong_base(reference: Reference, *, size: float, seed: int) -> Reference:
    """The same model with every linear weight off by a share of itself, as after another fine-tuning."""
    other = Reference(reference.folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for linear in other.linears.values():
            noise = torch.randn(linear.weight.shape, generator=generator)
            linear.weight += size * linear.weight.std() * noise
    return other
