"""The real loop with a FAKE learner in a process of its own, which ends at a named point as if by kill -9.

python tests/support/trainer_child.py DATA URL DIE_AT
"""

import os
import sys
import time
from pathlib import Path

from plaudit_trainer.__main__ import _stop_on_signals
from plaudit_trainer.client import TrainerClient, connect
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job, Reporter, Sampler
from plaudit_trainer.lease import Stopped
from plaudit_trainer.loop import Trainer
from plaudit_trainer.progress import Lines
from plaudit_trainer.state import TrainerState
from tests.support.fake_learner import FakeLearner, fake_base
from tests.support.fake_server import KEY

KILLED = 137


def main(data: Path, url: str, die_at: str) -> int:
    """One turn, or death."""

    def die(step: str) -> None:
        if step == die_at:
            os._exit(KILLED)

    def work(job: Job, sampler: Sampler, reporter: Reporter) -> None:
        die("learning")
        if die_at == "never ends":
            sys.stdout.write("working\n")
            sys.stdout.flush()
            while True:
                reporter.step(1, {})
                time.sleep(0.02)

    config = TrainerConfig(data=data, url=url, min_records=4, max_records=8, lease_s=60)
    check_stop = _stop_on_signals()
    state = TrainerState(data)
    state.prepare()
    say = Lines(lambda line: None)
    with state.locked():
        client = TrainerClient(connect(url, KEY, say.say), state.worker(), check_stop)
        trainer = Trainer(
            client,
            config,
            base=fake_base(data / "base"),
            learn=FakeLearner(during=work),
            display=say,
            check_stop=check_stop,
            observe=die,
        )
        try:
            trainer.run(once=True)
        except Stopped:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
