"""What the trainer keeps on disk between its starts, in `<data>/trainer/`.

worker           its name; leases are held under it, so a restarted trainer gets its batch again
lock             held while it runs: two trainers in one folder would share a name and a lease
pending/v7       v7 was published and may not be registered yet
attempts.json    failed runs in a row, and the records that were in every one of them
"""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from plaudit.wire.base import ResponseModel
from plaudit.wire.training import Batch


class AlreadyRunning(Exception):
    """Another trainer works in this data folder."""


class Attempts(ResponseModel):
    """Failed runs in a row. `suspects` were in each of them."""

    format: Literal[1] = 1
    failures: int = 0
    suspects: list[str] = Field(default_factory=list)


class TrainerState:
    """The folder. Every write is a rename, so that a kill leaves the old state or the new one."""

    def __init__(self, data: Path) -> None:
        self.folder = data / "trainer"
        self._pending = self.folder / "pending"
        self._attempts = self.folder / "attempts.json"

    def prepare(self) -> None:
        """Make the folder. Raises OSError where that is not possible."""
        self._pending.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder. The kernel lets go when the process ends, however it ends.

        Raises:
            AlreadyRunning: somebody else holds it.
        """
        with (self.folder / "lock").open("a+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise AlreadyRunning(f"another trainer (process {file.read().strip() or '?'}) holds it") from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def worker(self) -> str:
        """This trainer's name, made at its first start."""
        path = self.folder / "worker"
        name = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if not name:
            name = f"trainer-{uuid.uuid4().hex[:12]}"
            _replace(path, name)
        return name

    def add_pending(self, version: str) -> None:
        """Remember, before it becomes visible, that a version wants registering."""
        _replace(self._pending / version, "")

    def remove_pending(self, version: str) -> None:
        """It is registered, or was put aside."""
        (self._pending / version).unlink(missing_ok=True)

    def pending(self) -> list[str]:
        """Versions that may want registering."""
        return sorted(path.name for path in self._pending.iterdir() if path.suffix != ".new")

    def count_failure(self, batch: Batch) -> int:
        """Count a failed run; returns how many failed in a row with some record in all of them.

        A released batch comes back under another id and with newer records beside the old ones. Only a record that
        was in every failed run can be what makes them fail; where there is none, counting begins anew.
        """
        ids = record_ids(batch)
        before = self._read_attempts()
        suspects = ids & set(before.suspects)
        now = Attempts(failures=before.failures + 1 if suspects else 1, suspects=sorted(suspects or ids))
        _replace(self._attempts, now.model_dump_json())
        return now.failures

    def forget_failures(self) -> None:
        """A run ended well, or its batch was set aside."""
        self._attempts.unlink(missing_ok=True)

    def _read_attempts(self) -> Attempts:
        try:
            return Attempts.model_validate(json.loads(self._attempts.read_bytes()))
        except (FileNotFoundError, ValueError, ValidationError):
            return Attempts()


def record_ids(batch: Batch) -> set[str]:
    """Everything in a batch that could be at fault."""
    return {record.response_id for record in batch.records} | {comparison.id for comparison in batch.comparisons}


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
