"""`python -m plaudit_trainer tune`: what it prints, how it ends, and that mistakes are told before anything heavy."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plaudit_trainer.tune.command import main
from tests.support.fake_server import KEY
from tests.support.tiny_models import save_tiny_base
from tests.support.tiny_seq2seq import save_tiny_t5, tiny_t5
from tests.support.tune_rows import write, zoo
from tests.support.tuning_server import TuningServer

QUICK = ("--epochs", "4", "--lr", "0.01", "--batch", "8", "--rank", "4", "--eval-tokens", "4", "--threads", "1")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine, and a data folder of its own."""
    for name in [name for name in os.environ if name.startswith("PLAUDIT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PLAUDIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PLAUDIT_TRAINER_PRECISION", "float32")
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # put back what the command sets
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return str(write(tmp_path / "zoo.jsonl", zoo()))


def tuned(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_it_tunes_prints_figures_and_says_where(
    capsys: pytest.CaptureFixture[str], base: Path, rows: str, tmp_path: Path
) -> None:
    code, out, _ = tuned(capsys, rows, "--base", base, *QUICK)
    assert code == 0, out
    assert "rows 21" in out
    assert "train " in out
    for measure in ("accuracy", "bleu", "chrf", "perplexity"):
        assert any(line.startswith(measure) for line in out.splitlines()), out
    (folder,) = [p for p in (tmp_path / "data" / "tuned").iterdir() if not p.name.startswith(".")]
    assert folder.name.startswith("tiny-")
    assert f"written to {folder}" in out
    assert "registered" not in out


def test_a_dry_run_counts_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], base: Path, rows: str, tmp_path: Path
) -> None:
    code, out, _ = tuned(capsys, rows, "--base", base, "--dry-run")
    assert code == 0
    assert "examples 32" in out
    assert "heldout " in out
    assert not (tmp_path / "data").exists()


def test_bad_lines_are_listed_or_left_out(capsys: pytest.CaptureFixture[str], base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ["x", *zoo()])
    code, _, err = tuned(capsys, path, "--base", base, "--dry-run")
    assert code == 2
    assert "d.jsonl:1: not JSON" in err
    code, out, _ = tuned(capsys, path, "--base", base, "--dry-run", "--skip-bad")
    assert code == 0
    assert "left out d.jsonl:1: not JSON" in out
    assert "bad 1" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--base", "/no/such/model"], "no such folder"),
        (["--register"], "no key in"),
        (["--url", "ftp://x"], "give an address such as"),
        (["--full", "--register"], "no key in"),
    ],
)
def test_wrong_settings_are_one_line_before_training(
    capsys: pytest.CaptureFixture[str], base: Path, rows: str, arguments: list[str], complaint: str
) -> None:
    given = arguments if "--base" in arguments else [*arguments, "--base", str(base)]
    code, _, err = tuned(capsys, rows, *given)
    assert code == 2
    assert complaint in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["--epochs", "0"], ["--lr", "-1"], ["--heldout", "1"], ["--batch", "0"], ["--epochs", "nan"]]
)
def test_values_out_of_range_are_usage_errors(rows: str, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([rows, *arguments])
    assert ended.value.code == 2


def test_an_output_in_the_way_is_told(
    capsys: pytest.CaptureFixture[str], base: Path, rows: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    code, _, err = tuned(capsys, rows, "--base", base, "--out", tmp_path / "out", *QUICK)
    assert code == 2
    assert "holds something else" in err


def test_with_a_key_at_hand_it_registers_once(
    capsys: pytest.CaptureFixture[str], base: Path, rows: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "trainer.key").write_text(KEY, encoding="utf-8")
    server = TuningServer()
    with server.serve() as url:
        code, out, _ = tuned(capsys, rows, "--base", base, "--url", url, *QUICK)
        assert code == 0, out
        assert f"registered at {url} as v1" in out
        assert (tmp_path / "data" / "versions" / "v1" / "manifest.json").is_file()
        code, out, _ = tuned(capsys, rows, "--base", base, "--url", url, *QUICK)
        assert code == 0
        assert f"registered before at {url} as v1" in out
    assert len(server.versions) == 1


def test_a_refusal_fails_only_where_registering_was_asked_for(
    capsys: pytest.CaptureFixture[str], base: Path, rows: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "trainer.key").write_text(KEY, encoding="utf-8")
    with TuningServer(knows_tuning=False).serve() as url:
        code, out, _ = tuned(capsys, rows, "--base", base, "--url", url, *QUICK)
        assert code == 0
        assert "not registered: " in out
        assert "the same command with --register tries again" in out
        code, _, err = tuned(capsys, rows, "--base", base, "--url", url, "--register", *QUICK)
        assert code == 1
        assert err.startswith("plaudit: not registered: ")


def test_a_whole_model_says_how_it_is_served(capsys: pytest.CaptureFixture[str], rows: str, tmp_path: Path) -> None:
    t5 = save_tiny_t5(tmp_path / "t5", tiny_t5(encoder=2, decoder=2))
    code, out, _ = tuned(capsys, rows, "--base", t5, "--out", tmp_path / "out", *QUICK)
    assert code == 0, out
    assert f"PLAUDIT_MODEL={tmp_path / 'out' / 'model'}" in out


def test_bad_data_is_told_without_importing_torch(base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ["x"])
    code = (
        "import sys\nfrom plaudit_trainer.__main__ import main\n"
        f"code = main(['tune', {str(path)!r}, '--base', {str(base)!r}])\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "d.jsonl:1: not JSON" in done.stderr


def test_a_signal_in_the_middle_leaves_nothing(base: Path, rows: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "plaudit_trainer",
        "tune",
        rows,
        "--base",
        str(base),
        "--out",
        str(tmp_path / "out"),
    ]
    child = subprocess.Popen(
        [*command, "--epochs", "100000", "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    assert child.stdout is not None
    while "train " not in child.stdout.readline():  # the counts come first, and speak of train too
        assert time.monotonic() < deadline
    while not list(tmp_path.glob(".tmp-out-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=240)
    assert child.returncode == 130, err
    assert "stopped; nothing was written" in err
    assert not list(tmp_path.glob(".tmp-*"))
    assert not (tmp_path / "out").exists()
