"""Publishing: what a version's folder holds, that it appears whole or not at all, and what verify notices."""

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from plaudit.wire.fingerprint import base_fingerprint, file_sha256
from plaudit.wire.versions import GateReport, LoraShape, Manifest
from plaudit_trainer import publish as publishing
from plaudit_trainer.publish import (
    ADAPTER_TENSORS,
    BadVersion,
    Origin,
    PublishedOutcome,
    publish,
    registration,
    set_aside,
    sweep,
    tensor_digests,
    verify,
    workspace,
)
from tests.support.fake_learner import fake_base, fill_workspace

ORIGIN = Origin(version="v1", parent="base", run_id="run-1", batch_ids=["batch-1"], base_model="fake")
OUTCOME = PublishedOutcome(outcome="candidate", gate=GateReport(passed=True, checks=[]), metrics={"kl": 1.5})


class Place:
    """A data folder with a finished workspace in it."""

    def __init__(self, data: Path) -> None:
        self.base = fake_base(data / "base")
        self.versions = data / "versions"
        self.folder = workspace(self.versions, "v1")
        fill_workspace(self.folder)

    def publish(self, **options: object) -> Path:
        lora = LoraShape(rank=1, alpha=2.0, target_modules=["a"])
        return publish(
            self.folder,
            self.versions,
            origin=ORIGIN,
            lora=lora,
            outcome=OUTCOME,
            base=self.base,
            **options,  # type: ignore[arg-type]
        )

    def visible(self) -> list[str]:
        return sorted(path.name for path in self.versions.iterdir() if not path.name.startswith("."))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_manifest_tells_every_byte_and_where_it_comes_from(place: Place) -> None:
    folder = place.publish()
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert manifest.files.keys() == on_disk
    assert "reward/head.safetensors" in on_disk
    for name, digest in manifest.files.items():
        assert digest.sha256 == file_sha256(folder / name)
        assert digest.bytes == (folder / name).stat().st_size
    assert (manifest.version, manifest.parent, manifest.run_id, manifest.batch_ids) == (
        "v1",
        "base",
        "run-1",
        ["batch-1"],
    )
    assert manifest.base_fingerprint == base_fingerprint(place.base)
    assert {"python", "plaudit", "torch"} <= manifest.software.keys()
    assert verify(folder) == manifest


def test_tensor_digests_are_of_the_bytes_that_a_reader_gets(place: Place) -> None:
    path = place.folder / ADAPTER_TENSORS
    digests = tensor_digests(path)
    tensors = load_file(path)
    assert digests.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert digests[name].sha256 == hashlib.sha256(tensor.tobytes()).hexdigest()
        assert digests[name].shape == list(tensor.shape)
        assert digests[name].dtype == "F32"


def test_files_are_readable_by_all_and_writable_by_none(place: Place) -> None:
    folder = place.publish()
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o444), path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_nothing_is_visible_before_the_rename_and_all_of_it_after(place: Place) -> None:
    seen: dict[str, list[str]] = {}
    place.publish(observe=lambda step: seen.__setitem__(step, place.visible()))
    assert list(seen) == ["outcome_written", "files_synced", "manifest_written", "renamed"]
    assert seen == {"outcome_written": [], "files_synced": [], "manifest_written": [], "renamed": ["v1"]}


def test_everything_is_synced_before_the_rename_and_the_parent_after(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    place.publish()
    before = events[: events.index("rename")]
    wanted = {"adapter_model.safetensors", "adapter_config.json", "probe.json", "outcome.json", "head.safetensors"}
    assert wanted | {"adapter", "reward", "manifest.json", place.folder.name} <= set(before)
    assert before.index("manifest.json") > max(before.index(name) for name in wanted)
    assert events[events.index("rename") + 1 :] == ["versions"]


@pytest.mark.parametrize("failing", ["outcome.json", "adapter_model.safetensors", "manifest.json"])
def test_a_full_disk_makes_nothing_visible(place: Place, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        place.publish()
    assert place.visible() == []


def test_a_folder_in_the_way_is_put_aside_whole(place: Place) -> None:
    old = place.versions / "v1"
    old.mkdir()
    (old / "half").write_text("x", encoding="utf-8")
    verify(place.publish())
    (aside,) = place.versions.glob(".lost-v1-*")
    assert (aside / "half").read_text(encoding="utf-8") == "x"


@pytest.mark.parametrize("missing", [ADAPTER_TENSORS, "adapter/adapter_config.json", "probe.json"])
def test_a_workspace_without_its_parts_is_no_version(place: Place, missing: str) -> None:
    (place.folder / missing).unlink()
    with pytest.raises(BadVersion, match=missing):
        place.publish()
    assert place.visible() == []


def test_a_link_is_never_published(place: Place) -> None:
    (place.folder / "adapter" / "evil").symlink_to("/etc/passwd")
    with pytest.raises(BadVersion, match="neither a plain file nor a folder"):
        place.publish()
    assert place.visible() == []


def _flip(folder: Path) -> None:
    path = folder / ADAPTER_TENSORS
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _grow(folder: Path) -> None:
    (folder / "extra").write_text("x", encoding="utf-8")


def _shrink(folder: Path) -> None:
    (folder / "probe.json").unlink()


def _forget(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _garble(folder: Path) -> None:
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_text("{", encoding="utf-8")


def _link(folder: Path) -> None:
    (folder / "probe.json").rename(folder.parent / "elsewhere.json")
    (folder / "probe.json").symlink_to(folder.parent / "elsewhere.json")


@pytest.mark.parametrize("harm", [_flip, _grow, _shrink, _forget, _garble, _link])
def test_verify_notices(place: Place, harm: object) -> None:
    folder = place.publish()
    verify(folder)
    harm(folder)  # type: ignore[operator]
    with pytest.raises(BadVersion):
        verify(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\x01", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{]", b"PK\x03\x04" * 9]
)
def test_what_is_not_safetensors_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadVersion, match="not a safetensors file"):
        tensor_digests(path)


def test_the_registration_is_the_folders_own_and_always_the_same(place: Place) -> None:
    folder = place.publish()
    first = registration(folder, verify(folder))
    assert first == registration(folder, verify(folder))
    assert first.manifest_sha256 == file_sha256(folder / "manifest.json")
    assert first.location == str(folder.resolve())
    assert (first.outcome, first.metrics) == ("candidate", {"kl": 1.5})


def test_sweeping_takes_leftovers_and_old_losses_and_leaves_versions(place: Place) -> None:
    folder = place.publish()
    leftover = workspace(place.versions, "v2")
    (leftover / "half").write_text("x", encoding="utf-8")
    lost = []
    for number in range(publishing.KEPT_LOST + 2):
        gone = place.versions / f"v{number + 5}"
        gone.mkdir()
        lost.append(set_aside(gone))
        os.utime(lost[-1], (number, number))
    assert sweep(place.versions) == [leftover.name]
    assert [path for path in lost if path.exists()] == lost[2:]
    verify(folder)
    assert sweep(place.versions / "nowhere") == []
