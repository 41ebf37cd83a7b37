"""Does instruction tuning teach what carries over? BLEU, chrF, accuracy and perplexity before and after.

    python -m benchmarks.tune --data FOLDER [--model FOLDER] [--quick]

FOLDER holds `instructions/*.jsonl` in any shape that `plaudit tune` reads. The published figures are on Self-Instruct's
seed tasks (written by experts, with `is_classification`) and user-oriented instructions, from
https://github.com/yizhongw/self-instruct (Apache-2.0). Whole instructions are held out, never single rows; everything
is `plaudit tune`'s own code with its own defaults, but for 30 % held out, and each seed draws another split. A finished
seed is found again in `--work`, so an interrupted benchmark goes on where it was.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.report import machine, write_result

MEASURES = ("bleu", "chrf", "accuracy", "perplexity")
BUNDLED = Path("models") / "smollm2-135m-instruct"


def main() -> int:
    """Run it. Returns the exit status."""
    given = _arguments()
    files = sorted((given.data / "instructions").glob("*.jsonl")) if given.data else []
    if not files:
        sys.stderr.write(f"no instructions/*.jsonl below {given.data or '--data'}; they are needed from:\n{__doc__}")
        return 2
    if not (given.model / "config.json").is_file():
        sys.stderr.write(f"no model in {given.model}: start the server once, which unpacks it, or give --model\n")
        return 2
    seeds = range(1 if given.quick else given.seeds)
    reports = [_tuned(given, files, seed) for seed in seeds]
    figures = _figures(reports) | {"seconds": [seconds for _, seconds in reports]}
    figures |= {"model": given.model.name, "quick": given.quick, "full": given.full, "seeds": list(seeds)}
    figures["settings"] = {name: value for name, value in reports[0][0]["settings"].items() if name != "seed"}
    _print(figures)
    if not given.no_write:
        print(write_result("tune_quick" if given.quick else "tune", figures))
    return 0


def _arguments() -> argparse.Namespace:
    folder = os.environ.get("PLAUDIT_BENCH_DATA")
    data = Path(os.environ.get("PLAUDIT_DATA", "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(folder) if folder else None, help="(PLAUDIT_BENCH_DATA)")
    parser.add_argument("--model", type=Path, default=data / BUNDLED, help="Hugging Face folder (the bundled model)")
    parser.add_argument("--work", type=Path, default=data / "bench" / "tune", help="where tunings are kept")
    parser.add_argument("--seeds", type=int, default=3, help="splits and orders (3)")
    parser.add_argument("--epochs", type=float, default=3.0, help="passes over the training rows (3)")
    parser.add_argument("--full", action="store_true", help="every weight instead of LoRA")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the processor (all)")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, 24 answers of 32 tokens")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results alone")
    return parser.parse_args()


def _tuned(given: argparse.Namespace, files: Sequence[Path], seed: int) -> tuple[dict[str, Any], float | None]:
    """One tuning's report, and its seconds; None where it was found finished."""
    from rich.console import Console

    from plaudit_trainer.config import TrainerConfig
    from plaudit_trainer.progress import display_for
    from plaudit_trainer.tune import result
    from plaudit_trainer.tune.run import Plan, digest, prepare, tune
    from plaudit_trainer.tune.text import read_language

    plan = Plan(tuple(files), given.model.resolve(), full=given.full, seed=seed, epochs=given.epochs, heldout_share=0.3)
    if given.quick:
        plan = replace(plan, epochs=1, max_length=256, asked=24, answer_tokens=32)
    out = given.work / f"{given.model.name}-{digest(plan)}"
    known = result.read_report(out)
    if known is not None:
        return known.model_dump(mode="json"), None
    console = Console()
    console.print(f"seed {seed}: {out}", markup=False, highlight=False)
    display, began = display_for(console), time.monotonic()
    try:
        report = tune(plan, out, prepare(plan, read_language(plan.base)), TrainerConfig(threads=given.threads), display)
    finally:
        display.close()
    return report.model_dump(mode="json"), time.monotonic() - began


def _figures(reports: Sequence[tuple[Mapping[str, Any], float | None]]) -> dict[str, Any]:
    """`<measure>: [before, after]`, means over seeds; and of every seed the values, intervals and rows."""
    found: dict[str, Any] = {"n": {}, "by_seed": {}}
    for measure in MEASURES:
        compared = [report["figures"][measure] for report, _ in reports if measure in report["figures"]]
        if not compared:
            continue
        found[measure] = [statistics.mean(c[when]["value"] for c in compared) for when in ("before", "after")]
        found["n"][measure] = sum(c["before"]["n"] for c in compared)
        found["by_seed"][measure] = compared
    found["counts"] = [report["counts"] for report, _ in reports]
    return found


def _print(figures: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("held out", "before", "after", "change of each seed (95 %)", "rows", box=None, pad_edge=False)
    for measure in MEASURES:
        if measure in figures:
            before, after = figures[measure]
            changes = [c["change"] for c in figures["by_seed"][measure]]
            shown = "  ".join(f"{c['value']:+.3g} ({c['low']:.3g}, {c['high']:.3g})" for c in changes)
            sign = "× " if measure == "perplexity" else ""
            cells = (f"{before:.4g}", f"{after:.4g}", sign + shown.replace("+", "") if sign else shown)
            table.add_row(measure, *cells, str(figures["n"][measure]))
    Console(width=160).print(table)
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB, GPU {about['gpu']}")


if __name__ == "__main__":
    sys.exit(main())
