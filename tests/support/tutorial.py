"""Follows docs/tutorial/first-loop.md word for word: writes its files, types its commands, takes ids from outputs."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.docs_blocks import ROOT, Block, blocks_of

PAGE = ROOT / "docs" / "tutorial" / "first-loop.md"
START = "make run"
READY = "trainer waiting for feedback"
ID = re.compile(r"chatcmpl-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TITLE = re.compile(r'^```python title="([^"]+)"$', re.M)


class TutorialFailed(Exception):
    """A step did not do what the page says."""


class Follower:
    """Somebody who does what the page says, in one folder.

    Args:
        folder: where they stand.
        start: what is typed for `make run`; the page's own words unless a test has reason to begin otherwise.
        environment: of all commands.
        words: replaced in what is typed (the address, where the page's port is taken).
    """

    def __init__(
        self,
        folder: Path,
        *,
        start: Sequence[str] = ("make", "run"),
        environment: Mapping[str, str] | None = None,
        words: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.start = list(start)
        self.environment = dict(os.environ if environment is None else environment)
        self.words = dict(words or {})
        self.seconds: dict[str, float] = {}
        self.said: list[str] = []
        self._service: subprocess.Popen[bytes] | None = None
        self._titles = iter(TITLE.findall(PAGE.read_text(encoding="utf-8")))

    def follow(self, *, start_within_s: float = 1800) -> dict[str, float]:
        """All steps. Returns seconds since the beginning at which each command was done.

        Raises:
            TutorialFailed: a command failed, or the service did not start.
        """
        began = time.monotonic()
        for block in blocks_of(PAGE):
            if block.language == "python":
                (self.folder / next(self._titles)).write_text(self._here(block.text), encoding="utf-8")
            elif block.language == "console":
                for command in block.shell.splitlines():
                    self._type(command, start_within_s)
                    self.seconds[command.split(" -")[0][:60]] = round(time.monotonic() - began, 1)
        return self.seconds

    def _type(self, command: str, start_within_s: float) -> None:
        if command == START:
            self._begin(start_within_s)
            return
        latest = next((found[-1] for text in reversed(self.said) if (found := ID.findall(text))), None)
        typed = self._here(ID.sub(latest, command) if latest else command)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", typed],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise TutorialFailed(f"{typed}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
        self.said.append(done.stdout)
        with (self.folder / "session.txt").open("a", encoding="utf-8") as session:  # to renew the page's outputs from
            session.write(f"$ {typed}\n{done.stdout}\n")

    def _here(self, text: str) -> str:
        for page, here in self.words.items():
            text = text.replace(page, here)
        return text

    def _begin(self, within_s: float) -> None:
        log = self.folder / "make-run.log"
        with log.open("wb") as file:
            self._service = subprocess.Popen(
                self.start,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + within_s
        while READY not in log.read_text(encoding="utf-8", errors="replace"):
            if self._service.poll() is not None or time.monotonic() > deadline:
                raise TutorialFailed(f"the service did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.25)

    def stop(self) -> int:
        """Ctrl-C in the first terminal; returns the exit code."""
        if self._service is None:
            return 0
        if self._service.poll() is None:
            os.killpg(self._service.pid, signal.SIGINT)
        return self._service.wait(90)


def block_titles() -> list[str]:
    """The files that the page has its reader write."""
    return TITLE.findall(PAGE.read_text(encoding="utf-8"))


def pythons() -> list[Block]:
    """The page's Python blocks; each must be a file that a command names."""
    return [block for block in blocks_of(PAGE) if block.language == "python"]
