"""A tuned adapter becomes a version: published whole, registered once, taken back where the server refuses."""

import shutil
from pathlib import Path

import httpx
import pytest

from plaudit.wire.fingerprint import file_sha256
from plaudit_server.engine.base import AdapterRef
from plaudit_server.engine.whole_model import check_whole_model
from plaudit_trainer.client import Link
from plaudit_trainer.publish import verify
from plaudit_trainer.tune import register as module
from plaudit_trainer.tune.register import NotRegistered, register
from plaudit_trainer.tune.result import TuneReport, read_registered, read_report
from plaudit_trainer.tune.run import Plan, prepare, tune
from plaudit_trainer.tune.text import read_language
from tests.support.fake_server import KEY, Refusal
from tests.support.tiny_models import save_tiny_base, tiny_config
from tests.support.tune_rows import write, zoo
from tests.support.tuning_server import TuningServer


class Silent:
    def say(self, line: str) -> None: ...
    def stage(self, name: str, total: int | None) -> None: ...
    def step(self, step: int, metrics: object) -> None: ...
    def close(self) -> None: ...


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and a finished tuning `out` of it."""
    folder = tmp_path_factory.mktemp("made")
    base = save_tiny_base(folder / "base")
    plan = Plan((write(folder / "zoo.jsonl", zoo()),), base, epochs=6, lr=0.01, batch=8, rank=4, answer_tokens=4)
    tune(plan, folder / "out", prepare(plan, read_language(base)), tiny_config(), Silent())
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of the tuning; its gate passed, whatever a tiny model learnt."""
    out = Path(shutil.copytree(made / "out", tmp_path / "out"))
    report = told(out)
    report.gate.passed = True
    for check in report.gate.checks:
        check.passed = True
    (out / "tune.json").write_text(report.model_dump_json(), encoding="utf-8")
    return out


def told(out: Path) -> TuneReport:
    report = read_report(out)
    assert report is not None
    return report


def go(out: Path, made: Path, server: TuningServer, monkeypatch: pytest.MonkeyPatch) -> str:
    def connect(url: str, key: str, say: object) -> Link:
        return Link(server.client(), lambda line: None)

    monkeypatch.setattr(module, "connect", connect)
    return register(
        out, told(out), base=made / "base", data=out.parent / "data", url="http://fake", key=KEY, say=lambda line: None
    )


def test_it_is_published_whole_and_registered_with_its_figures(
    made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TuningServer()
    assert go(out, made, server, monkeypatch) == "v1"
    folder = out.parent / "data" / "versions" / "v1"
    manifest = verify(folder)
    assert (manifest.parent, manifest.base_model, manifest.batch_ids) == ("base", "base", ["batch-0"])
    assert manifest.lora == told(out).lora
    assert {"probe.json", "tune.json", "outcome.json", "adapter/adapter_model.safetensors"} <= manifest.files.keys()
    sent = server.versions["v1"]
    assert sent.location == str(folder)
    assert sent.outcome == "candidate"
    assert sent.gate == told(out).gate
    assert sent.metrics["tune/perplexity_after"] == told(out).figures["perplexity"].after.value
    assert sent.metrics["tune/perplexity_n"] == told(out).counts["heldout"]
    assert server.asked[0]["parent"] == "base"
    assert server.asked[0]["config"]["epochs"] == 6
    assert server.runs["run-1"].state == "published"
    registered = read_registered(out)
    assert registered is not None
    assert (registered.url, registered.version) == ("http://fake", "v1")


def test_a_tuning_that_its_gate_refused_is_registered_as_rejected(
    made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = told(out)
    report.gate.passed = report.gate.checks[0].passed = False
    (out / "tune.json").write_text(report.model_dump_json(), encoding="utf-8")
    server = TuningServer()
    go(out, made, server, monkeypatch)
    assert server.versions["v1"].outcome == "rejected"
    assert report.gate.checks[0].name in (server.versions["v1"].reason or "")


def test_a_server_that_wants_a_batch_refuses_and_nothing_is_published(
    made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotRegistered, match="refuses it: batch_id"):
        go(out, made, TuningServer(knows_tuning=False), monkeypatch)
    assert not (out.parent / "data").exists()
    assert read_registered(out) is None


def test_a_refused_registration_frees_the_name_and_ends_the_run(
    made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TuningServer()
    server.script["/v1/versions"] = [Refusal(409, "another was registered")]
    with pytest.raises(NotRegistered, match="another was registered"):
        go(out, made, server, monkeypatch)
    versions = out.parent / "data" / "versions"
    assert [p.name.startswith(".lost-v1-") for p in versions.iterdir()] == [True]
    assert server.runs["run-1"].state == "failed"
    assert go(out, made, server, monkeypatch) == "v2"


def test_a_server_that_stays_away_is_given_up_on(made: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    server = TuningServer()
    server.script["/runs"] = [httpx.ConnectError("nobody there")] * 3
    with pytest.raises(NotRegistered, match="no answer from http://fake within"):
        go(out, made, server, monkeypatch)


def test_where_the_answer_was_lost_the_folder_stays(made: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may have registered it: a folder that it will load must not go."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    server = TuningServer()
    server.after["/v1/versions"] = [httpx.ReadTimeout("late")] * 50
    with pytest.raises(NotRegistered, match="no answer"):
        go(out, made, server, monkeypatch)
    verify(out.parent / "data" / "versions" / "v1")
    assert server.versions.keys() == {"v1"}


def test_a_folder_that_cannot_be_written_is_told(made: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out.parent / "data").write_text("a file, not a folder", encoding="utf-8")
    server = TuningServer()
    with pytest.raises(NotRegistered, match="cannot take it"):
        go(out, made, server, monkeypatch)
    assert server.runs["run-1"].state == "failed"


def test_a_model_without_a_probe_is_not_registered(made: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "probe.json").unlink()
    report = told(out).model_copy(update={"lora": None, "kind": "model"})
    (out / "tune.json").write_text(report.model_dump_json(), encoding="utf-8")
    with pytest.raises(NotRegistered, match="PLAUDIT_MODEL"):
        go(out, made, TuningServer(), monkeypatch)


def test_a_whole_model_is_published_as_the_server_accepts_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out, server = made / "base", tmp_path / "full", TuningServer()
    plan = Plan((write(tmp_path / "zoo.jsonl", zoo()),), base, full=True, epochs=1, lr=0.01, batch=8, answer_tokens=4)
    tune(plan, out, prepare(plan, read_language(base)), tiny_config(), Silent())
    report = told(out)
    assert report.lora is None and report.metrics["probe/mean_change"] > 0

    go(out, made, server, monkeypatch)

    assert server.versions["v1"].kind == "full"
    (folder,) = (tmp_path / "data" / "versions").iterdir()
    manifest = verify(folder)
    assert manifest.kind == "full" and manifest.lora is None
    ref = AdapterRef(manifest.version, manifest.parent, str(folder), file_sha256(folder / "manifest.json"), "full")
    model = check_whole_model(ref, base)
    assert model.probe is not None and len(model.probe.sequences) == report.metrics["probe/sequences"]
