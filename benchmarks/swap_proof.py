"""Does the swap probe catch every fault, and never cry wolf? On real vLLM with the bundled model.

    python -m benchmarks.swap_proof [--quick] [--swaps 50] [--model FOLDER]

Prints a table and the machine, and writes benchmarks/results/swap_proof.json.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import machine, write_result
from plaudit.wire.versions import ReplicaProof
from plaudit_server.engine.bundled import ensure_model
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.settings import Settings
from tests.support.engine_adapters import Published, publish
from tests.support.engine_faults import Workbench, on_wrong_base, zeroed


async def _good_swaps(bench: Workbench, sequences: Any, swaps: int, folder: Path) -> list[dict[str, Any]]:
    """Each swap a new adapter, one Adam step from its parent, every third from base."""
    rows: list[dict[str, Any]] = []
    newest: Published | None = None
    async with bench.engine(bench.client) as engine:
        for number in range(1, swaps + 1):
            parent = None if number % 3 == 1 else newest
            start = 4 * number % (len(sequences) - 4)
            adapter = bench.reference.step(
                parent.adapter if parent else None, sequences[start : start + 4], seed=number, size=3e-4
            )
            new = publish(
                folder, bench.reference, name=f"v{number}", parent=parent, adapter=adapter, sequences=sequences
            )
            report = await engine.install(new.ref)
            rows.append(_row(f"good swap {number}", new, report.replicas[0], report.seconds))
            _show(rows[-1])
            if newest is not None:
                await engine.retire(newest.ref.name)
            newest = new
    return rows


async def _faults(bench: Workbench, sequences: Any, folder: Path) -> list[dict[str, Any]]:
    """Each fault, and what the probe alone says of it."""
    first = bench.reference.step(None, sequences[:4], seed=1)
    parent = publish(folder, bench.reference, name="v901", parent=None, adapter=first, sequences=sequences)
    second = bench.reference.step(first, sequences[4:8], seed=2)
    new = publish(folder, bench.reference, name="v902", parent=parent, adapter=second, sequences=sequences)
    parents = Path(parent.ref.location) / "adapter"
    clients: dict[str, tuple[ReplicaClient, Path | None]] = {
        "load skipped": (bench.faulty("load skipped"), None),
        "base served": (bench.faulty("base served"), None),
        "parent's adapter under the new name": (bench.faulty("another", parents), parents),
        "zeroed adapter": (bench.faulty("another", zeroed(new)), zeroed(new)),
    }
    rows = []
    for name, (client, live) in clients.items():
        report = await bench.install(new, client, parent)
        alone = await bench.slope_alone(new, live, parent)
        rows.append(_row(name, new, report.replicas[0], report.seconds) | {"probe_alone": _interval(alone)})
        _show(rows[-1])
    rows.append(await _one_missed(bench, parent))
    rows.append(await _wrong_base(bench, sequences, folder))
    return rows


async def _one_missed(bench: Workbench, version: Published) -> dict[str, Any]:
    bad = bench.faulty("none")
    async with bench.engine(bench.client, bad) as engine:
        bad.fault = "load skipped"
        report = await engine.install(version.ref)
    shown = _row("one replica missed", version, report.replicas[1], report.seconds)
    _show(shown)
    return shown


async def _wrong_base(bench: Workbench, sequences: Any, folder: Path) -> dict[str, Any]:
    other = on_wrong_base(bench.reference, size=0.05, seed=3)
    adapter = bench.reference.step(None, sequences[:4], seed=1)
    version = publish(folder, other, name="v903", parent=None, adapter=adapter, sequences=sequences)
    report = await bench.install(version, bench.client, None)
    shown = _row("wrong base", version, report.replicas[0], report.seconds)
    _show(shown)
    return shown


def _row(name: str, version: Published, proof: ReplicaProof, seconds: float) -> dict[str, Any]:
    changes = [
        abs(new - old)
        for s in version.probe.sequences
        for new, old in zip(s.new_logprobs, s.parent_logprobs, strict=True)
    ]
    return {
        "case": name,
        "passed": proof.passed,
        "trained_change": sum(changes) / len(changes),
        "slope": _interval(proof),
        "tensors": f"{proof.tensors_matched}/{proof.tensors_expected}",
        "tokens": len(changes),
        "seconds": seconds,
        "reason": proof.reason,
    }


def _interval(result: Any) -> list[float | None]:
    return [None if v is None else round(v, 4) for v in (result.slope, result.low, result.high)]


def _show(shown: dict[str, Any]) -> None:
    slope = "/".join("-" if v is None else f"{v:.3f}" for v in shown["slope"])
    verdict = "passed" if shown["passed"] else "caught"
    print(
        f"{shown['case']:<38} {verdict}  |Δ| {shown['trained_change']:.4f}  slope {slope:<22} "
        f"tensors {shown['tensors']:<8} {shown['seconds']:5.1f} s  {shown['reason'] or ''}",
        flush=True,
    )


async def _main(model: Path, swaps: int, quick: bool) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        async with Workbench.open(model, Path(scratch)) as bench:
            sequences = await bench.draw(prompts=12 if quick else 24, tokens=48 if quick else 64)
            bad = await _faults(bench, sequences, Path(scratch))
            good = await _good_swaps(bench, sequences, swaps, Path(scratch))
    alarms = sum(not r["passed"] for r in good)
    caught = sum(not r["passed"] for r in bad)
    print(f"\n{caught} of {len(bad)} faults caught, {alarms} alarms in {len(good)} good swaps; {machine()}")
    if not quick:
        figures = {"faults": bad, "good_swaps": good, "alarms": alarms, "caught": caught}
        figures |= {"minutes": round((time.monotonic() - started) / 60, 1)}
        print(f"written: {write_result('swap_proof', figures)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three swaps on a small probe; writes nothing")
    parser.add_argument("--swaps", type=int, default=None)
    parser.add_argument("--model", type=Path, default=None)
    asked = parser.parse_args()
    folder = asked.model or ensure_model(Settings())
    asyncio.run(_main(folder, asked.swaps or (3 if asked.quick else 50), asked.quick))
