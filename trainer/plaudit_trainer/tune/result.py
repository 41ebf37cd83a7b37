"""What a tuning leaves: a folder that appears whole, by one rename, or not at all.

OUT/tune.json          what was done, on which rows, with which figures
OUT/adapter/           LoRA on a causal model: what vLLM loads beside its base
OUT/model/             --full, or an encoder–decoder model: a Hugging Face folder for PLAUDIT_MODEL
OUT/probe.json         beside an adapter or a whole causal model: what proves that it is live
OUT/registered.json    where it was registered, and as what
.tmp-OUT-x1y2/         what a tuning is writing; an interrupted one's is removed by the next
"""

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from plaudit.wire.base import JsonObject, Moment, ResponseModel
from plaudit.wire.versions import GateReport, LoraShape
from plaudit_trainer.tune.scores import Comparison

REPORT = "tune.json"
REGISTERED = "registered.json"


class OutputInTheWay(Exception):
    """The output folder cannot be used; the message names the mend."""


class TuneReport(ResponseModel):
    """`tune.json`."""

    format: Literal[1] = 1
    kind: Literal["adapter", "model"]
    digest: str = Field(description="of the data, the base model and the settings: equal for a repetition")
    base: str
    base_fingerprint: str
    created_at: Moment = Field(default_factory=lambda: datetime.now(UTC))
    settings: JsonObject
    counts: dict[str, int]
    figures: dict[str, Comparison]
    gate: GateReport
    lora: LoraShape | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class Registered(ResponseModel):
    """`registered.json`."""

    url: str
    version: str
    location: str


def digest_of(facts: JsonObject) -> str:
    """A short name of what determines a tuning."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_report(out: Path) -> TuneReport | None:
    """The finished tuning in a folder; None where the folder is not there or empty.

    Raises:
        OutputInTheWay: the folder holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        return TuneReport.model_validate_json((out / REPORT).read_bytes())
    except (OSError, ValidationError) as error:
        raise OutputInTheWay(f"{out} holds something else than a tuning; give another --out") from error


def read_registered(out: Path) -> Registered | None:
    """Where the tuning was registered, if it was."""
    try:
        return Registered.model_validate_json((out / REGISTERED).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_registered(out: Path, registered: Registered) -> None:
    """Note where the tuning was registered."""
    fresh = out / f".{REGISTERED}"
    fresh.write_text(registered.model_dump_json(indent=1) + "\n", encoding="utf-8")
    fresh.replace(out / REGISTERED)


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, removed at the end whatever happens; an earlier tuning's remains go first.

    Raises:
        OutputInTheWay: another process tunes into `out`.
        OSError: the place cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".lock-{out.name}").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputInTheWay(f"another process is tuning into {out}; wait for it, or give another --out") from error
        for leftover in out.parent.glob(f".tmp-{out.name}-*"):
            shutil.rmtree(leftover)
        folder = Path(tempfile.mkdtemp(prefix=f".tmp-{out.name}-", dir=out.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def finish(folder: Path, out: Path, report: TuneReport) -> None:
    """Write the report into the workspace and make it visible as `out`."""
    (folder / REPORT).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    folder.chmod(0o755)
    if out.exists():
        out.rmdir()  # empty, or `read_report` would have refused it
    folder.rename(out)
