"""The tutorial, word for word, on real processes: vLLM, the bundled model, server and trainer.

Only two things differ from a reader's session, since tests may not install and may not take port 8000: `make run` is
what it runs after its installation, and the address has a free port. `python -m benchmarks.tutorial` changes nothing.
"""

import os
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT, free_port
from tests.support.tutorial import Follower, block_titles, pythons

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(500)
def test_every_step_of_the_tutorial_works(tmp_path: Path, base_model: Path) -> None:
    assert len(block_titles()) == len(pythons()) > 0
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, start in {"plaudit": '-c "from plaudit.cli import app; app()"', "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {start} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    port = free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT_")}
    roots = [str(ROOT / part) for part in ("clients/python", "server", "trainer")]
    clean |= {"PYTHONPATH": os.pathsep.join([*roots, clean.get("PYTHONPATH", "")])}
    clean |= {"PLAUDIT_PORT": str(port), "PLAUDIT_MODEL": str(base_model)}
    follower = Follower(
        tmp_path,
        start=[sys.executable, "-m", "plaudit_server", "up"],
        environment=clean,
        words={"http://127.0.0.1:8000": f"http://127.0.0.1:{port}"},
    )
    try:
        follower.follow(start_within_s=300)
        answer, stream, vote, compared, doctor = follower.said
        assert "Paris" in answer
        assert "policy@base" in stream
        assert vote.startswith("up for base (fb_")
        assert "object='comparison'" in compared
        assert "FAIL" not in doctor
    finally:
        code = follower.stop()
    assert code == 0
