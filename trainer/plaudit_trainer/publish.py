"""A version's folder: written aside, sealed by its manifest, and made visible by one rename.

    versions/.tmp-v7-x1y2/   what a run is writing; leftovers are removed by the next start
    versions/v7/             complete, immutable; never without manifest.json
    versions/.lost-v7-x1y2/  complete, but its lease was lost before it could be registered; never served

The rename is the only step that others can see. Everything that it shows was on disk (fsync) before it.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from plaudit.wire.base import ResponseModel
from plaudit.wire.fingerprint import base_fingerprint, file_sha256
from plaudit.wire.training import Batch
from plaudit.wire.versions import FileDigest, GateReport, LoraShape, Manifest, TensorDigest, VersionCreate

MANIFEST = "manifest.json"
OUTCOME = "outcome.json"
BATCH = "batch.json"
ADAPTER_TENSORS = "adapter/adapter_model.safetensors"
MODEL = "model"
KEPT_LOST = 3
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_SOFTWARE = ("plaudit", "torch", "transformers", "peft", "trl", "accelerate", "safetensors", "numpy")

Observer = Callable[[str], None]
"""Told each step of the loop by name, just after it happened."""


class BadVersion(Exception):
    """The folder is not a complete version."""


class PublishedOutcome(ResponseModel):
    """`outcome.json`: what registering needs besides the manifest, so that a trainer killed in between still has it."""

    outcome: Literal["candidate", "rejected"]
    reason: str | None = None
    gate: GateReport
    metrics: dict[str, float]


class Origin(ResponseModel):
    """Where a version comes from, as its manifest tells."""

    version: str
    parent: str
    run_id: str
    batch_ids: list[str]
    base_model: str


def workspace(versions: Path, name: str) -> Path:
    """A fresh temporary folder for version `name`, beside the published ones so that a rename suffices."""
    versions.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=versions))


def sweep(versions: Path) -> list[str]:
    """Remove what interrupted runs left behind, and all but the newest lost versions.

    Only for the holder of the trainer's lock: a live run's workspace looks the same.

    Returns:
        The names of the temporary folders that were removed.
    """
    if not versions.is_dir():
        return []
    leftovers = [path for path in versions.iterdir() if path.name.startswith(".tmp-")]
    lost = sorted((p for p in versions.iterdir() if p.name.startswith(".lost-")), key=lambda p: p.stat().st_mtime)
    for path in [*leftovers, *lost[:-KEPT_LOST]]:
        shutil.rmtree(path)
    return [path.name for path in leftovers]


def write_batch_ids(folder: Path, batch: Batch) -> None:
    """Write `batch.json`: the ids of what was learnt from, so that the folder alone tells whose words are in it."""
    ids = {"batch": batch.id, "records": [r.response_id for r in batch.records]}
    words = json.dumps(ids | {"comparisons": [c.id for c in batch.comparisons]}, indent=1)
    (folder / BATCH).write_text(words + "\n", encoding="utf-8")


def publish(
    folder: Path,
    versions: Path,
    *,
    origin: Origin,
    lora: LoraShape | None,
    outcome: PublishedOutcome,
    base: Path,
    observe: Observer = lambda step: None,
) -> Path:
    """Seal a finished workspace and make it visible as `versions/<name>`.

    Args:
        folder: the workspace: `adapter/` or `model/`, `probe.json` and whatever the next run warms up from.
        versions: the folder of published versions.
        origin: name, parent, run and batches.
        lora: the adapter's geometry; None where the version is a whole model.
        outcome: verdict, gate and metrics; written beside the adapter.
        base: folder of the base model, for its fingerprint.
        observe: told `outcome_written`, `files_synced`, `manifest_written`, `renamed`.

    Returns:
        The published folder.

    Raises:
        OSError: the disk is full or broken; nothing is visible, and the workspace is still there.
        BadVersion: the workspace lacks the weights or the probe, or holds something that is not a plain file.
    """
    _write_durably(folder / OUTCOME, outcome.model_dump_json(indent=1))
    observe("outcome_written")
    manifest = _manifest(folder, origin, lora, base)
    _seal_modes(folder)
    for path in [*_files(folder), *_folders(folder)]:
        _fsync(path)
    observe("files_synced")
    _write_durably(folder / MANIFEST, manifest.model_dump_json(indent=1))
    (folder / MANIFEST).chmod(0o444)
    _fsync(folder)
    observe("manifest_written")
    target = versions / origin.version
    if target.exists():  # left by another run or broken: this run owns the name
        set_aside(target)
    folder.rename(target)
    _fsync(versions)
    observe("renamed")
    return target


def verify(folder: Path) -> Manifest:
    """Read a version's manifest and hold every file against it.

    Raises:
        BadVersion: no manifest, or a file is missing, added, changed, or not a plain file.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise BadVersion(f"{folder.name} has no {MANIFEST}") from error
    except ValidationError as error:
        raise BadVersion(f"{folder.name}/{MANIFEST} cannot be read: {error.errors()[0]['msg']}") from error
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder) if path != folder / MANIFEST}
    if found.keys() != manifest.files.keys():
        odd = sorted(found.keys() ^ manifest.files.keys())
        raise BadVersion(f"{folder.name}: missing or added files: {', '.join(odd)}")
    for name, digest in manifest.files.items():
        if _digest(found[name]) != digest:
            raise BadVersion(f"{folder.name}/{name} is not what its manifest says")
    if _tensors(folder, whole=manifest.kind == "full") != manifest.tensors:
        raise BadVersion(f"{folder.name}: the tensors are not what its manifest says")
    return manifest


def registration(folder: Path, manifest: Manifest) -> VersionCreate:
    """The message that registers a published folder. The same folder always gives the same message."""
    outcome = PublishedOutcome.model_validate_json((folder / OUTCOME).read_bytes())
    return VersionCreate(
        name=manifest.version,
        kind=manifest.kind,
        run_id=manifest.run_id,
        batch_ids=manifest.batch_ids,
        parent=manifest.parent,
        location=str(folder.resolve()),
        manifest_sha256=file_sha256(folder / MANIFEST),
        outcome=outcome.outcome,
        reason=outcome.reason,
        gate=outcome.gate,
        metrics=outcome.metrics,
    )


def set_aside(folder: Path) -> Path:
    """Take a folder out of sight: its name is freed, its bytes are kept for a person to look at."""
    aside = Path(tempfile.mkdtemp(prefix=f".lost-{folder.name}-", dir=folder.parent))
    folder.rename(aside)  # onto an empty folder: atomic, and never onto somebody else's
    _fsync(folder.parent)
    return aside


def tensor_digests(path: Path) -> dict[str, TensorDigest]:
    """SHA-256, shape and dtype (safetensors' names, such as `BF16`) of each tensor's bytes as stored.

    Raises:
        BadVersion: the file is missing or is not in the safetensors format.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, path.stat().st_size - 8):
                raise BadVersion(f"{path.name} is not a safetensors file")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            digests = {}
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                file.seek(8 + length + start)
                sha256 = hashlib.sha256(file.read(end - start)).hexdigest()
                digests[name] = TensorDigest(sha256=sha256, shape=entry["shape"], dtype=entry["dtype"])
    except FileNotFoundError as error:
        raise BadVersion(f"{path.name} is missing") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:  # not JSON, or JSON of another shape
        raise BadVersion(f"{path.name} is not a safetensors file") from error
    return digests


def software_versions() -> dict[str, str]:
    """What this was trained with, for the manifest."""
    found = {"python": platform.python_version()}
    for name in _SOFTWARE:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _tensors(folder: Path, *, whole: bool) -> dict[str, TensorDigest]:
    """Of the adapter, or of all files of a whole model."""
    if not whole:
        return tensor_digests(folder / ADAPTER_TENSORS)
    digests: dict[str, TensorDigest] = {}
    for path in sorted((folder / MODEL).glob("*.safetensors")):
        digests |= tensor_digests(path)
    return digests


def _manifest(folder: Path, origin: Origin, lora: LoraShape | None, base: Path) -> Manifest:
    weights = (ADAPTER_TENSORS, "adapter/adapter_config.json") if lora is not None else (f"{MODEL}/config.json",)
    for needed in (*weights, "probe.json"):
        if not (folder / needed).is_file():
            raise BadVersion(f"the run left no {needed}")
    return Manifest(
        kind="full" if lora is None else "adapter",
        version=origin.version,
        parent=origin.parent,
        base_model=origin.base_model,
        base_fingerprint=base_fingerprint(base),
        run_id=origin.run_id,
        batch_ids=origin.batch_ids,
        created_at=datetime.now(UTC),
        lora=lora,
        files={path.relative_to(folder).as_posix(): _digest(path) for path in _files(folder)},
        tensors=_tensors(folder, whole=lora is None),
        software=software_versions(),
    )


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BadVersion(f"{path.relative_to(folder)} is neither a plain file nor a folder")
        yield path


def _files(folder: Path) -> list[Path]:
    return [path for path in _walk(folder) if path.is_file()]


def _folders(folder: Path) -> list[Path]:
    return [*(path for path in _walk(folder) if path.is_dir()), folder]


def _digest(path: Path) -> FileDigest:
    return FileDigest(sha256=file_sha256(path), bytes=path.stat().st_size)


def _seal_modes(folder: Path) -> None:
    """Readable by the engine, which may run as somebody else; files not writable, since a version never changes."""
    for path in _files(folder):
        path.chmod(0o444)
    for path in _folders(folder):
        path.chmod(0o755)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
