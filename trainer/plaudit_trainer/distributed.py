"""Several processes, one trainer: each holds the model, takes its share of every pass, and ends with the same weights.

Started by `accelerate launch` (or torchrun), which says who is who in the environment. All processes run the same code
on the same lesson; the leader alone speaks HTTP, publishes and reports, and tells the others what came of it. With
FSDP switched on, the frozen weights are sharded over the processes; adapters are small and stay whole on each.

Every process must make the same collective calls in the same order. Hence `Crew.deal` gives each as many passes as the
others, and whatever may turn out differently on one process (an answer over HTTP, a lost lease) goes through
`Crew.led`.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import GeneratedAnswer, GeneratePrompt
from plaudit_trainer import precision
from plaudit_trainer.learner import Job, Outcome, Reporter, Sampler

if TYPE_CHECKING:
    from plaudit_trainer.config import TrainerConfig
    from plaudit_trainer.models import Backbone

T = TypeVar("T")
Learn = Callable[[Job, Sampler, Reporter, "TrainerConfig"], Outcome]

_PATIENCE = timedelta(days=30)
"""How long a process waits for the leader, which may wait for users' votes. A leader that dies is noticed at once."""
_SETTLE = timedelta(minutes=2)
EXIT_OUT_OF_STEP = 3


class Abandoned(Exception):
    """The leader gave up this lesson."""


class _Movable(Protocol):
    def to(self, device: torch.device | str) -> Self: ...


M = TypeVar("M", bound=_Movable)


@dataclass(frozen=True, slots=True)
class Crew:
    """The processes that train together, as one of them sees it; alone, every method does nothing.

    Args:
        rank: this process's number; 0 leads.
        size: how many there are.
        control: the group that messages go through, on the CPU; tensors go through the default group.
        sharded: the frozen weights are spread over the processes (FSDP).
    """

    rank: int = 0
    size: int = 1
    control: Any = None
    sharded: bool = False

    def deal(
        self, lengths: Sequence[int], buckets: Callable[[Sequence[int]], list[list[int]]]
    ) -> list[tuple[list[int], bool]]:
        """This process's passes over rows of these lengths, as (rows, whether they count).

        Rows are dealt by length, so that shares are alike, then grouped by `buckets`. A process with fewer passes
        than another runs the shortest row once more for each that it lacks, which must not count: with sharded
        weights the others wait for it in every layer.
        """
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        hands = [order[rank :: self.size] for rank in range(self.size)]
        dealt = [[[hand[i] for i in group] for group in buckets([lengths[r] for r in hand])] for hand in hands]
        idle = max(map(len, dealt)) - len(dealt[self.rank])
        return [(rows, True) for rows in dealt[self.rank]] + [(order[-1:], False)] * idle

    def gathered(self, mine: dict[int, M], device: torch.device) -> dict[int, M]:
        """The results of all processes, by row: the same, bit for bit, on each."""
        if self.size == 1:
            return mine
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, {row: value.to("cpu") for row, value in mine.items()}, group=self.control)
        return {row: value.to(device) for part in reversed(parts) for row, value in part.items()}

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def largest(self, value: float) -> float:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return max(values)

    def told(self, word: T) -> T:
        """What the leader says; the others' words are ignored."""
        if self.size == 1:
            return word
        words: list[Any] = [word]
        dist.broadcast_object_list(words, src=0, group=self.control)
        result: T = words[0]
        return result

    def led(self, call: Callable[[], T]) -> T:
        """The leader makes the call, all return its result.

        Raises:
            Abandoned: on all but the leader, where the call raised; the leader raises what the call did.
        """
        if self.size == 1:
            return call()
        result, error = None, None
        if self.rank == 0:
            try:
                result = call()
            except BaseException as raised:  # noqa: BLE001  # it is raised again below, once the others know
                error = raised
        done, value = self.told((error is None, result))
        if error is not None:
            raise error
        if not done:
            raise Abandoned
        return value  # type: ignore[return-value]

    def settle(self) -> None:
        """All have ended this lesson; who has not within two minutes is out of step, which only a restart mends."""
        if self.size == 1:
            return
        try:
            dist.monitored_barrier(self.control, timeout=_SETTLE)
        except RuntimeError as error:
            sys.stderr.write(f"plaudit: the processes are out of step, ending so that they are restarted: {error}\n")
            os._exit(EXIT_OUT_OF_STEP)  # an orderly end would wait for the others once more

    def leave(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = Crew()


@cache  # a process meets the others once
def join() -> Crew:
    """Meet the other processes that the launcher started. Alone, nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    # Accelerate's default lets transformers load weights on the first process only, and expects them to be broadcast by
    # a call that is not made here: the others would compute on garbage. Each process loads its own.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return Crew(dist.get_rank(), dist.get_world_size(), control, sharded)


def shard(backbone: "Backbone") -> None:
    """Spread the frozen weights of each layer over the crew, where FSDP is on. Call it once all adapters are there.

    Adapters stay whole on each process: they are small, and their gradients are summed by `Crew.add_up`. So do
    embeddings, which the log-probabilities are read off in chunks.
    """
    if not backbone.crew.sharded:
        return
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    mesh = init_device_mesh(backbone.device.type, (backbone.crew.size,))
    for layer in backbone.layers():
        adapters = {p for name, p in layer.named_parameters() if ".lora_" in name}
        fully_shard(
            layer,
            mesh=mesh,
            reshard_after_forward=bool(plugin.reshard_after_forward),
            ignored_params=adapters,
        )
    if plugin.activation_checkpointing:
        backbone.checkpoint_layers()


def recast(backbone: "Backbone") -> None:
    """Let sharded layers whose precision was changed be gathered in the new one.

    FSDP allocates what it gathers into once, in the first precision, and has no public way to do it again. A test
    changes the precision of a sharded model, so that an upgrade of torch that renames these fields is noticed.
    """
    if not backbone.crew.sharded:
        return
    for layer in backbone.layers():
        for group in layer._get_fsdp_state()._fsdp_param_groups:  # type: ignore[operator]
            for weight in group.fsdp_params:
                weight.all_gather_outputs = []
                vars(weight).pop("_unsharded_param", None)
                weight.init_dtype_attrs(group.mp_policy)


# The lesson


@dataclass(frozen=True, slots=True)
class LedSampler:
    """A `Sampler` that draws on the leader; all get the same answers."""

    crew: Crew
    sampler: Sampler | None

    def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """As the leader's."""

        def draw() -> list[GeneratedAnswer]:
            assert self.sampler is not None
            return self.sampler.generate(prompts, version=version, n=n, sampling=sampling)

        return self.crew.led(draw)


@dataclass(frozen=True, slots=True)
class LedReporter:
    """A `Reporter` that reports on the leader; where that raises, all leave the lesson."""

    crew: Crew
    reporter: Reporter | None

    def stage(self, name: str, total: int | None = None) -> None:
        """As the leader's."""
        self.crew.led(lambda: self.reporter.stage(name, total) if self.reporter else None)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """As the leader's."""
        self.crew.led(lambda: self.reporter.step(step, metrics) if self.reporter else None)


def leading(crew: Crew, learn: Learn) -> Learn:
    """`learn` as the leader runs it: the others learn along."""
    if crew.size == 1:
        return learn

    def lead(job: Job, sampler: Sampler, reporter: Reporter, config: "TrainerConfig") -> Outcome:
        config = precision.decided(config)
        crew.told((job, config.model_copy(update={"key": None})))
        try:
            return learn(job, LedSampler(crew, sampler), LedReporter(crew, reporter), config)
        finally:
            crew.settle()

    return lead


def dismiss(crew: Crew) -> None:
    """The leader ends: so do the others."""
    if crew.size > 1:
        crew.told(None)
        crew.leave()


def follow(crew: Crew, learn: Learn) -> None:
    """Learn along with the leader, lesson after lesson, until it ends."""
    # The launcher signals every process; the leader finishes its step first, and needs the others for that.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    while True:
        lesson: tuple[Job, TrainerConfig] | None = crew.told(None)
        if lesson is None:
            crew.leave()
            return
        job, config = lesson
        with tempfile.TemporaryDirectory(prefix="plaudit-") as folder:
            try:
                mine = replace(job, workspace=Path(folder))
                learn(mine, LedSampler(crew, None), LedReporter(crew, None), config)
            except Abandoned:
                pass
            except Exception as error:  # noqa: BLE001  # what the leader makes of the same error decides
                sys.stderr.write(f"plaudit: process {crew.rank}: {type(error).__name__}: {error}\n")
        crew.settle()
