"""The arm `inplace` of `benchmarks.swap`: two whole models take turns on one replica while clients stream.

A swap goes from the request that promotes to its answer: the drain, the pause, the reload, the comparison of every
weight and the probe lie in between. Chats that come meanwhile wait; answers that outlast the drain go on under the
other model and are counted by what their rows say of themselves.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from benchmarks.load import Answer, Load, percentile, summary
from benchmarks.services import Made, Operator

Running = Callable[[], AbstractAsyncContextManager[Load]]


def make_whole_models(folder: Path, model: Path, sequences: Sequence[Any]) -> list[Made]:
    """v1, the base model a little off, and v2, its child."""
    from tests.support.engine_whole import publish_whole

    v1 = publish_whole(folder, model, "v1", parent=None, sequences=sequences, seed=1)
    v2 = publish_whole(folder, model, "v2", parent=v1, sequences=sequences, seed=2)
    return [Made(ref.name, ref.parent, ref.location, ref.manifest_sha256) for ref in (v1, v2)]


async def measure_in_place(
    running: Running, operator: Operator, made: Sequence[Made], *, swaps: int, pause_s: float
) -> tuple[list[Answer], list[float], list[str]]:
    """The clients' answers, the seconds of each swap, and the ids of answers that two models have drawn."""
    for version in made:
        await operator.register(await operator.reserve_whole(version))
        await operator.until_ready(version.name)
        await operator.promote(version.name)
    took = []
    async with running() as load:
        await asyncio.sleep(pause_s)
        for number in range(swaps):
            name = made[number % 2].name
            began = time.monotonic()
            await operator.promote(name)
            took.append(time.monotonic() - began)
            print(f"{name} serves after {took[-1]:.2f} s", flush=True)
            await asyncio.sleep(pause_s)
    across = await operator.drawn_by_two([a.response_id for a in load.answers if a.response_id])
    return load.answers, took, across


def in_place_figures(answers: Sequence[Answer], still: Sequence[Answer], took: Sequence[float]) -> dict[str, Any]:
    """What users felt, beside what they feel without swaps."""
    first = [answer.ttft for answer in answers if answer.ttft is not None]
    p99_still = percentile([answer.ttft for answer in still if answer.ttft is not None], 0.99)
    return {
        "failed": sum(answer.failed for answer in answers),
        "mixed": sum(answer.mixed for answer in answers),
        "added_p99_ttft_ms": round(1000 * (percentile(first, 0.99) - p99_still), 1),
        "longest_ttft_s": round(max(first, default=0), 2),
        "swaps": len(took),
        "swap_p50_s": round(percentile(took, 0.5), 3),
        "swap_p95_s": round(percentile(took, 0.95), 3),
        "arms": {"still": summary(still), "inplace": summary(answers)},
        "errors": sorted({answer.error for answer in answers if answer.error})[:5],
    }
