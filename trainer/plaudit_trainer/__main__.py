"""`python -m plaudit_trainer`: the sidecar that turns feedback into versions.

Arguments are parsed before anything heavy is imported, and torch is imported when the first batch is there.

Exit status: 0 stopped on request (or, with --once, one turn done) · 2 it cannot work as it is set.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plaudit_trainer.config import TrainerConfig
    from plaudit_trainer.learner import Job, Outcome, Reporter, Sampler
    from plaudit_trainer.loop import Learn
    from plaudit_trainer.progress import Display

EXIT_SETTING = 2
BUNDLED = Path("models") / "smollm2-135m-instruct"
STOP_WITHIN_S = 60.0
"""A step that does not end by then is cut off; that is as safe as a kill at any other moment."""


class SettingError(Exception):
    """The trainer cannot work as it is set; the message names the mend."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainer, or with `tune` as the first word the tuning. Returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["tune"]:
        from plaudit_trainer.tune.command import main as tune

        return tune(words[1:])
    given = vars(_parser().parse_args(arguments))
    once = given.pop("once")
    try:
        config = _config({name: value for name, value in given.items() if value is not None})
        if int(os.environ.get("RANK", "0")) > 0:
            return _follow(config)
        return _serve(config, once=once)
    except SettingError as error:
        sys.stderr.write(f"plaudit: {error}\n")
        return EXIT_SETTING


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m plaudit_trainer",
        description="Lease feedback from a Plaudit server, learn from it, publish versions. "
        "With `tune` as the first word: fine-tune on demonstrations (`tune --help`).",
        epilog="Every setting can also be given as PLAUDIT_TRAINER_<NAME>; see docs/reference/settings.md.",
    )
    parser.add_argument("--once", action="store_true", help="one turn of the loop, then exit")
    parser.add_argument("--url", help="address of the server (http://127.0.0.1:8000)")
    parser.add_argument("--data", type=Path, help="folder shared with the server (PLAUDIT_DATA, else ./data)")
    parser.add_argument("--key-file", type=Path, help="file with a trainer's key (<data>/trainer.key)")
    parser.add_argument("--model", help="Hugging Face id or folder of the base model, as the server has it")
    parser.add_argument("--worker", help="name of this trainer (made once, kept in <data>/trainer)")
    parser.add_argument("--min-records", type=int, help="voted answers to wait for before a run")
    parser.add_argument("--max-records", type=int, help="voted answers in a run at most")
    parser.add_argument("--poll", type=float, dest="poll_s", help="seconds between two looks for new feedback")
    parser.add_argument("--lease", type=float, dest="lease_s", help="seconds until a silent trainer loses its batch")
    parser.add_argument("--niceness", type=int, help="0 to 19, how far to step back for the server's sake")
    parser.add_argument("--threads", type=int, help="CPU threads the learner may use")
    return parser


def _config(given: dict[str, Any]) -> "TrainerConfig":
    from pydantic import ValidationError

    from plaudit.environment import unknown_variable
    from plaudit_trainer.config import TrainerConfig

    known = {name.upper() for name in TrainerConfig.model_fields}
    if refusal := unknown_variable(os.environ, "PLAUDIT_TRAINER_", known):
        raise SettingError(refusal)
    try:
        return TrainerConfig(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"])
        setting = name if name.startswith("PLAUDIT") else f"PLAUDIT_TRAINER_{name.upper()}"
        raise SettingError(f"{setting}: {first['msg']} (it is {first['input']!r})") from error


def _serve(config: "TrainerConfig", *, once: bool) -> int:
    from rich.console import Console

    from plaudit.errors import AuthenticationError, PermissionDeniedError
    from plaudit.lifeline import watch
    from plaudit_trainer.lease import Stopped
    from plaudit_trainer.progress import display_for
    from plaudit_trainer.state import AlreadyRunning, TrainerState

    check_stop = _stop_on_signals()
    watch()
    display = display_for(Console())
    state = TrainerState(config.data)
    try:
        state.prepare()
        with state.locked():
            return _work(config, state, display, check_stop, once=once)
    except Stopped:
        display.say("stopped")
        return 0
    except AlreadyRunning as error:
        raise SettingError(f"{config.data} is in use: {error}; stop it, or give this one its own --data") from error
    except (AuthenticationError, PermissionDeniedError) as error:
        raise SettingError(
            f"the server at {config.url} refuses the key ({error.message}): "
            "give it one with the role trainer, as PLAUDIT_TRAINER_KEY or --key-file"
        ) from error
    except OSError as error:
        raise SettingError(f"cannot work in {config.data}: {error}; set PLAUDIT_DATA to a writable folder") from error


def _work(
    config: "TrainerConfig", state: Any, display: "Display", check_stop: Callable[[], None], *, once: bool
) -> int:
    from plaudit_trainer.client import TrainerClient, connect
    from plaudit_trainer.loop import Trainer

    base = find_base(config)
    link = connect(_checked_url(config.url), find_key(config), display.say)
    worker = config.worker or state.worker()
    _be_modest(config)
    display.say(f"{worker} learns for {config.url} from {base.name}, at least {config.min_records} records a run")
    client = TrainerClient(link, worker, check_stop)
    with _learners() as learn:
        Trainer(client, config, base=base, learn=learn, display=display, check_stop=check_stop).run(once=once)
    return 0


@contextmanager
def _learners() -> Iterator["Learn"]:
    """What learns: this process, or this one leading those that a launcher started (docs/howto/scale-out.md)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield _learn
        return
    from plaudit_trainer import distributed

    crew = distributed.join()
    try:
        yield distributed.leading(crew, _learn)
    finally:
        distributed.dismiss(crew)


def _follow(config: "TrainerConfig") -> int:
    """Learn along with the leader; only that one knows the server, and tells the others when to end."""
    _be_modest(config)
    from plaudit_trainer import distributed

    distributed.follow(distributed.join(), _learn)
    return 0


def find_base(config: "TrainerConfig") -> Path:
    """Folder of the base model.

    Raises:
        SettingError: there is none.
    """
    if config.model is None:
        folder = config.data / BUNDLED
        if not (folder / "config.json").is_file():
            raise SettingError(f"no model in {folder}: start the server once, which unpacks it, or give --model")
        return folder.resolve()
    folder = Path(config.model).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    if folder.is_dir():
        raise SettingError(f"--model {folder}: no config.json there, so it is not a Hugging Face model folder")
    if folder.is_absolute() or config.model.startswith((".", "~")):
        raise SettingError(f"--model {folder}: no such folder")
    return _from_hub(config.model)


def find_key(config: "TrainerConfig") -> str:
    """The trainer's key.

    Raises:
        SettingError: there is none.
    """
    if config.key is not None:
        return config.key.get_secret_value().strip()
    path = config.key_file or config.data / "trainer.key"
    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingError(
            f"no key in {path} ({error.strerror}): start the server first, which writes it, or set PLAUDIT_TRAINER_KEY"
        ) from error
    if not key:
        raise SettingError(f"{path} is empty: put a key with the role trainer there")
    return key


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingError(f"--model {name}: neither a folder here nor to be had from the hub ({reason})") from error


def _checked_url(url: str) -> str:
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingError(f"--url {url}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingError(f"--url {url}: give an address such as http://127.0.0.1:8000")
    return url


def _be_modest(config: "TrainerConfig") -> None:
    """Leave the processor to the server: it answers people, we do not. Must come before torch is imported."""
    if hasattr(os, "nice"):
        os.nice(config.niceness)
        _be_modest_as_a_session(config.niceness)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(config.threads)
    # Threads that wait by spinning would fight the engine's for the same cores, and lose by niceness.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _be_modest_as_a_session(niceness: int) -> None:
    """Linux shares the processor among sessions first (autogroups); niceness counts only among processes of one.

    `up` starts the trainer in a session of its own, where niceness alone changes nothing against the engine's.
    """
    autogroup = Path("/proc/self/autogroup")
    if os.getsid(0) == os.getpid() and autogroup.exists():
        with contextlib.suppress(OSError):  # some containers mount /proc read-only: then it stays as it was
            autogroup.write_text(str(niceness), encoding="ascii")


def _learn(job: "Job", sampler: "Sampler", reporter: "Reporter", config: "TrainerConfig") -> "Outcome":
    import torch

    from plaudit_trainer.learner import learn

    torch.set_num_threads(config.threads)
    return learn(job, sampler, reporter, config)


def _stop_on_signals() -> Callable[[], None]:
    """From now on SIGTERM and SIGINT ask to stop; the returned check raises Stopped once they did.

    A second signal ends the process at once, as does a step that takes too long to notice the first.
    """
    from plaudit_trainer.lease import Stopped

    asked = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            os._exit(128 + number)
        asked.set()
        last_resort = threading.Timer(STOP_WITHIN_S, os._exit, (128 + number,))
        last_resort.daemon = True
        last_resort.start()

    def check() -> None:
        if asked.is_set():
            raise Stopped

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return check


if __name__ == "__main__":
    sys.exit(main())
