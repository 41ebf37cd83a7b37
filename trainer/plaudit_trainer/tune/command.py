"""`plaudit tune`, also `python -m plaudit_trainer tune`.

Arguments are parsed and the data is checked before torch is imported, so that a mistake is told at once.

Exit status: 0 done · 1 tuned, but not registered as was asked for · 2 wrong data or settings · 130 interrupted.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from plaudit_trainer.config import TrainerConfig
    from plaudit_trainer.tune.result import TuneReport
    from plaudit_trainer.tune.run import Material, Plan

EXIT_NOT_REGISTERED, EXIT_SETTING, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune. Returns the exit status."""
    given = parser().parse_args(arguments)
    from plaudit_trainer.__main__ import SettingError
    from plaudit_trainer.tune.data import BadData
    from plaudit_trainer.tune.register import NotRegistered
    from plaudit_trainer.tune.result import OutputInTheWay

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _tune(given)
    except NotRegistered as error:
        sys.stderr.write(f"plaudit: not registered: {error}\n")
        return EXIT_NOT_REGISTERED
    except (SettingError, BadData, OutputInTheWay) as error:
        sys.stderr.write(f"plaudit: {error}\n")
        return EXIT_SETTING
    except KeyboardInterrupt:
        sys.stderr.write("plaudit: stopped; nothing was written\n")
        return EXIT_INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The options. Those without a default here follow `TrainerConfig` or the kind of training."""
    parser = argparse.ArgumentParser(
        prog="plaudit tune",
        description="Fine-tune a model on demonstrations, measure it on held-out ones, and register it as a version.",
        epilog="Machine settings (device, precision, memory) are the trainer's: docs/reference/trainer-settings.md.",
    )
    parser.add_argument("paths", metavar="DATA", nargs="+", type=Path, help="JSON lines, or a folder of *.jsonl")
    parser.add_argument("--base", help="Hugging Face id or folder; else PLAUDIT_MODEL, else the bundled model")
    parser.add_argument("--out", type=Path, help="folder for the result (<PLAUDIT_DATA>/tuned/<base>-<digest>)")
    parser.add_argument("--dry-run", action="store_true", help="check the data and print counts; train nothing")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad lines out instead of refusing all")
    parser.add_argument("--full", action="store_true", help="train every weight instead of a LoRA adapter")
    parser.add_argument("--epochs", type=_positive, default=3.0, help="passes over the training rows (3)")
    parser.add_argument("--lr", type=_positive, help="peak learning rate (LoRA 2e-4, full 2e-5; T5 1e-3, 3e-4)")
    parser.add_argument("--batch", type=_count, default=16, help="rows an optimiser step (16)")
    parser.add_argument("--rank", type=_count, help="LoRA rank (PLAUDIT_TRAINER_LORA_RANK, 16)")
    parser.add_argument("--max-length", type=_count, default=1024, help="tokens; longer rows are left out (1024)")
    parser.add_argument("--heldout", type=_share, default=0.2, help="share of rows kept for evaluation (0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of split, order and initial weights (0)")
    parser.add_argument("--eval-rows", type=_count, default=200, help="held-out rows to answer at most (200)")
    parser.add_argument("--eval-tokens", type=_count, default=128, help="longest of those answers (128)")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a fifth slower")
    parser.add_argument("--threads", type=_count, help="CPU threads (PLAUDIT_TRAINER_THREADS, else all cores)")
    parser.add_argument(
        "--register",
        action=argparse.BooleanOptionalAction,
        help="register the result with the server (an adapter also unasked, where an address or a key is at hand)",
    )
    parser.add_argument("--url", help="address of the server (PLAUDIT_TRAINER_URL, http://127.0.0.1:8000)")
    parser.add_argument("--key-file", type=Path, help="file with a trainer's key (<PLAUDIT_DATA>/trainer.key)")
    return parser


def _tune(given: argparse.Namespace) -> int:
    from rich.console import Console

    from plaudit_trainer.__main__ import find_base
    from plaudit_trainer.tune import data
    from plaudit_trainer.tune.run import digest, is_adapter, prepare
    from plaudit_trainer.tune.text import read_language

    console = Console()
    config = _config(given)
    plan = _plan(given, find_base(config))
    data.load(plan.paths, skip_bad=plan.skip_bad)  # before anything heavy is imported
    language = read_language(plan.base)
    server = _server(given, config, as_adapter=is_adapter(plan, language), is_seq2seq=language.is_seq2seq)
    material = prepare(plan, language)
    _print_counts(console, material)
    if not (language.has_own_template or language.is_seq2seq):
        kept = "saved with the model" if given.full else "engines want one: --full saves it with the model"
        console.print(f"the base model has no chat template; a plain one is used ({kept})", markup=False)
    if given.dry_run:
        return 0
    out = given.out or config.data / "tuned" / f"{plan.base.name}-{digest(plan)[:8]}"
    report = _run(plan, out, material, config, console)
    _print_figures(console, report, out)
    if server is None:
        _say_how_to_serve(console, report, out)
        return 0
    return _register(console, server, out, report, base=plan.base, data=config.data)


def _run(plan: "Plan", out: Path, material: "Material", config: "TrainerConfig", console: "Console") -> "TuneReport":
    from plaudit_trainer.__main__ import SettingError
    from plaudit_trainer.architecture import UnsupportedModel
    from plaudit_trainer.progress import display_for
    from plaudit_trainer.tune.run import tune
    from plaudit_trainer.tune.train import Diverged

    display = display_for(console)
    try:
        return tune(plan, out, material, config, display)
    except UnsupportedModel as error:
        raise SettingError(f"--base {plan.base}: {error}, so adapters of it cannot be served; use --full") from error
    except Diverged as error:
        raise SettingError(str(error)) from error
    except OSError as error:
        raise SettingError(f"cannot write {out}: {error}; give another --out") from error
    finally:
        display.close()


def _config(given: argparse.Namespace) -> "TrainerConfig":
    from plaudit_trainer.__main__ import _config as checked

    values: dict[str, Any] = {"model": given.base, "url": given.url, "key_file": given.key_file}
    if given.threads or "PLAUDIT_TRAINER_THREADS" not in os.environ:
        values["threads"] = given.threads or os.cpu_count() or 1
    config = checked({name: value for name, value in values.items() if value is not None})
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported
        os.environ[variable] = str(config.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return config


def _plan(given: argparse.Namespace, base: Path) -> "Plan":
    from plaudit_trainer.tune.run import Plan

    return Plan(
        paths=tuple(given.paths),
        base=base,
        full=given.full,
        epochs=given.epochs,
        lr=given.lr,
        batch=given.batch,
        rank=given.rank,
        max_length=given.max_length,
        heldout_share=given.heldout,
        seed=given.seed,
        asked=given.eval_rows,
        answer_tokens=given.eval_tokens,
        skip_bad=given.skip_bad,
        checkpointing=given.gradient_checkpointing,
    )


@dataclass(frozen=True, slots=True)
class _Server:
    """Where to register. `is_must`: the user asked for it, rather than it being at hand."""

    url: str
    key: str
    is_must: bool


def _server(
    given: argparse.Namespace, config: "TrainerConfig", *, as_adapter: bool, is_seq2seq: bool
) -> _Server | None:
    """Where the result is to be registered, None for nowhere. Told before training, not after."""
    from plaudit_trainer.__main__ import SettingError, _checked_url, find_key

    named = given.url or given.key_file or "PLAUDIT_TRAINER_URL" in os.environ or config.key is not None
    at_hand = bool(named) or (config.data / "trainer.key").is_file()
    if given.register is False or (given.register is None and not (at_hand and as_adapter)):
        return None
    if is_seq2seq and not as_adapter:
        raise SettingError(
            "--register: vLLM serves no encoder–decoder model, so it cannot be swapped in; "
            "serve what this tunes with PLAUDIT_MODEL"
        )
    return _Server(_checked_url(config.url), find_key(config), bool(given.register))


def _register(console: "Console", server: _Server, out: Path, report: "TuneReport", *, base: Path, data: Path) -> int:
    from plaudit_trainer.tune.register import NotRegistered, register
    from plaudit_trainer.tune.result import read_registered

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    known = read_registered(out)
    if known is not None and known.url == server.url:
        say(f"registered before at {server.url} as {known.version}")
        return 0
    try:
        version = register(out, report, base=base, data=data, url=server.url, key=server.key, say=say)
    except NotRegistered as error:
        if server.is_must:
            raise
        say(f"not registered: {error}")
        say(f"the tuning is complete in {out}; the same command with --register tries again")
        return 0
    state = "the server is proving it" if report.gate.passed else "rejected by the gate: it stays visible, never serves"
    say(f"registered at {server.url} as {version}; {state}: plaudit versions show {version}")
    return 0


def _print_counts(console: "Console", material: "Material") -> None:
    from plaudit_trainer.tune.data import SHOWN

    for origin, what in material.loaded.bad[:SHOWN]:
        console.print(f"left out {origin}: {what}", markup=False, highlight=False, soft_wrap=True)
    shown = [f"{name.replace('_', ' ')} {n}" for name, n in material.counts.items() if n]
    console.print(" · ".join(shown), markup=False, highlight=False, soft_wrap=True)


def _print_figures(console: "Console", report: "TuneReport", out: Path) -> None:
    from rich.table import Table

    table = Table("held out", "before", "after", "change", "n", box=None, header_style="bold", pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for name, comparison in report.figures.items():
        cells = [_cell(figure) for figure in (comparison.before, comparison.after, comparison.change)]
        cells[2] = f"× {cells[2]}" if name == "perplexity" else cells[2]
        table.add_row(name, *cells, str(comparison.before.n))
    console.print(table, width=max(console.width, 120))
    for refusal in report.gate.refusals:
        console.print(f"gate: {refusal}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {out}", markup=False, highlight=False, soft_wrap=True)


def _say_how_to_serve(console: "Console", report: "TuneReport", out: Path) -> None:
    if report.kind == "model":
        console.print(
            "a whole model takes the base model's place: swap it in by the same command with --register, or "
            f"start the server with PLAUDIT_MODEL={(out / 'model').resolve()}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _cell(figure: Any) -> str:
    return f"{figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})"


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
