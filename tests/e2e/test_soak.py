"""The soak, five minutes of it: chats, votes, promotions, rollouts and kills at once, and nothing lost or leaked.

`python -m benchmarks.soak` does half an hour. Set PLAUDIT_SOAK_MINUTES for another length here.
"""

import os
from pathlib import Path

import pytest

from benchmarks import soak

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.timeout(3600)]

MINUTES = os.environ.get("PLAUDIT_SOAK_MINUTES", "5")


def test_nothing_is_lost_and_nothing_leaks(base_model: Path, tmp_path: Path) -> None:
    args = soak.arguments(["--minutes", MINUTES, "--model", str(base_model), "--clients", "6", "--kill-every", "90"])
    print(f"soak: {args.minutes:g} minutes, seed {args.seed}")
    found = soak.soak(args, tmp_path)
    print(found)
    assert soak.failures(found) == []
    assert any(deed.startswith("killed") for deed in found["deeds"]), "nothing was killed"
