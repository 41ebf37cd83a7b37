"""How far behind an answer's version is, from manifests and, where they are gone, from names."""

import json
from pathlib import Path
from typing import Any

import pytest

from plaudit_trainer.batches import PreferenceBatch
from plaudit_trainer.staleness import histogram, versions_behind, without_stale
from tests.support.tiny_models import tiny_config
from tests.support.tiny_votes import run, trajectory


def publish(folder: Path, **parents: str) -> None:
    """Folders of versions with nothing in their manifests but the parent."""
    for version, parent in parents.items():
        (folder / version).mkdir(parents=True)
        (folder / version / "manifest.json").write_text(json.dumps({"version": version, "parent": parent}))


def run_from(parent: str, folder: Path) -> Any:
    location = str(folder / parent) if parent != "base" else None
    return run().model_copy(update={"parent": parent, "parent_location": location})


def test_ancestors_count_updates_not_numbers(tmp_path: Path) -> None:
    publish(tmp_path, v2="base", v5="v2", v9="v5")
    behind = versions_behind(run_from("v9", tmp_path), ["v9", "v5", "v2", "base"])
    assert behind == {"v9": 0, "v5": 1, "v2": 2, "base": 3}


def test_a_branch_counts_back_to_the_common_ancestor_and_forth(tmp_path: Path) -> None:
    publish(tmp_path, v1="base", v2="v1", v3="v1", v4="v3")
    assert versions_behind(run_from("v2", tmp_path), ["v4"]) == {"v4": 3}


def test_a_rolled_back_canary_is_known_from_the_warm_start(tmp_path: Path) -> None:
    publish(tmp_path, v1="base")
    warm = run().model_copy(update={"warm_start_location": str(tmp_path / "v1")})
    assert versions_behind(warm, ["base", "v1"]) == {"base": 0, "v1": 1}


def test_without_manifests_the_numbers_bound_the_age(tmp_path: Path) -> None:
    behind = versions_behind(run_from("v9", tmp_path), ["v9", "v4", "base", "odd"])
    assert behind == {"v9": 0, "v4": 5, "base": 9, "odd": None}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"parent": "v3"}'])
def test_a_broken_or_circular_manifest_ends_the_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "v3").mkdir()
    (tmp_path / "v3" / "manifest.json").write_text(text)
    assert versions_behind(run_from("v3", tmp_path), ["v1"]) == {"v1": 2}


def batch(*versions: str) -> PreferenceBatch:
    return PreferenceBatch([], [], [trajectory(version=v) for v in versions], {}, {"tie": 1})


def test_stale_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    found = without_stale(batch("v9", "v8", "v6", "unheard-of"), run_from("v9", tmp_path), tiny_config(max_staleness=1))
    assert [t.version for t in found.trajectories] == ["v9", "v8"]
    assert found.dropped == {"tie": 1, "trajectory_stale": 2}
    assert found.counts()["batch/dropped_trajectory_stale"] == 2


def test_zero_keeps_only_the_parents_own_answers(tmp_path: Path) -> None:
    found = without_stale(batch("v9", "v8"), run_from("v9", tmp_path), tiny_config(max_staleness=0))
    assert [t.version for t in found.trajectories] == ["v9"]


def test_nothing_stale_leaves_the_counts_alone(tmp_path: Path) -> None:
    assert without_stale(batch("v9"), run_from("v9", tmp_path), tiny_config()).dropped == {"tie": 1}


def test_the_histogram_counts_each_answer_once() -> None:
    ages = [0, 0, 1, 2, 3, 4, 7, 8, 90, None]
    counts = histogram(ages)
    assert counts == {
        "behind_0": 2,
        "behind_1": 1,
        "behind_2_3": 2,
        "behind_4_7": 2,
        "behind_8_up": 2,
        "behind_unknown": 1,
    }
    assert sum(counts.values()) == len(ages)
