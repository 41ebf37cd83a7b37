"""A chat from end to end: asked, rated, taken back, erased. What `plaudit doctor` does to a server, not only asks it.

Nothing of it is learnt from (`train: false`), the vote is under a key of its own and retracted, and where the key
allows it the answer is erased again.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plaudit import Plaudit, PlauditError
    from plaudit.wire.feedback import Feedback

NAME = "plaudit-doctor"
VOTE_KEY = "doctor"

Timer = Callable[[], float]


@dataclass(slots=True)
class Trial:
    """How far it came. Where a step failed, its error; steps behind it were not tried.

    Attributes:
        first_token_s: seconds until the first piece of text; None where none came.
        seconds: seconds until the answer's end.
        vote: as the server kept it; `vote_s` is how long it took to be durable.
        read_back: the retracted vote, as read from the store afterwards.
        erased: whether answer and vote are gone again.
    """

    version: str | None = None
    response_id: str | None = None
    first_token_s: float | None = None
    seconds: float = 0.0
    vote: "Feedback | None" = None
    vote_s: float = 0.0
    retracted: bool = False
    read_back: "Feedback | None" = None
    erased: bool = False
    errors: "dict[str, PlauditError]" = field(default_factory=dict)


def attempt(client: "Plaudit", timer: Timer = time.perf_counter) -> Trial:
    """Do it all, as far as the server and the key allow."""
    from plaudit import PlauditError

    trial = Trial()
    steps = {"chat": _chat, "vote": _vote, "store": _read_back}
    try:
        for name, step in steps.items():
            try:
                step(client, trial, timer)
            except PlauditError as error:
                trial.errors[name] = error
                break
    finally:
        _erase(client, trial)
    return trial


def _chat(client: "Plaudit", trial: Trial, timer: Timer) -> None:
    began = timer()
    asked = client.chat.stream(
        "Say that you are ready.", user=NAME, max_tokens=16, temperature=0.0, train=False, metadata={"from": NAME}
    )
    with asked as stream:
        for chunk in stream:
            if chunk.text and trial.first_token_s is None:
                trial.first_token_s = timer() - began
        trial.response_id, trial.version = stream.response_id, stream.version
    trial.seconds = timer() - began


def _vote(client: "Plaudit", trial: Trial, timer: Timer) -> None:
    assert trial.response_id is not None
    began = timer()
    trial.vote = client.feedback.create(trial.response_id, "up", key=VOTE_KEY, end_user=NAME, source="system")
    trial.vote_s = timer() - began
    taken_back = client.feedback.create(trial.response_id, None, key=VOTE_KEY, end_user=NAME, source="system")
    trial.retracted = taken_back.retracted


def _read_back(client: "Plaudit", trial: Trial, _timer: Timer) -> None:
    assert trial.vote is not None
    trial.read_back = client.feedback.get(trial.vote.id)


def _erase(client: "Plaudit", trial: Trial) -> None:
    from plaudit import PlauditError

    if trial.response_id is not None:
        with contextlib.suppress(PlauditError):  # the key may not: the answer stays, and is never learnt from
            if trial.vote is not None:
                client.feedback.delete(trial.vote.id)
            client.completions.delete(trial.response_id)
            trial.erased = True
