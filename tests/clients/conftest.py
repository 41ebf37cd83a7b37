"""The clients for browsers and Node, built once a run: `clients/build.sh` does nothing where all is up to date."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
NODE_MISSING = 3
"""What `clients/build.sh` exits with."""


@pytest.fixture(scope="session")
def node_environment() -> dict[str, str]:
    """Variables for child processes; the packages are installed, type checked and built.

    Without Node the tests are skipped, with one line that says what to do; in CI that is a failure.
    """
    done = subprocess.run([CLIENTS / "build.sh"], capture_output=True, text=True, timeout=540, check=False)
    if done.returncode == NODE_MISSING:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(os.environ) | {"PATH": f"{os.environ.get('PATH', '')}:{ROOT / '.venv' / 'bin'}"}
