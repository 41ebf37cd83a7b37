"""The web component: type checked, built, at most 10 kB gzipped, and its own tests in a DOM without a browser."""

import subprocess
from pathlib import Path

WIDGET = Path(__file__).parents[2] / "clients" / "widget"


def test_its_own_tests(node_environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["npm", "test", "--silent"],
        cwd=WIDGET,
        env=node_environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
