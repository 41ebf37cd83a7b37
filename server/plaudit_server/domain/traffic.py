"""Which version answers a chat, and as which arm of a rollout."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from plaudit.wire.versions import VersionState
from plaudit_server.domain.records import Arm
from plaudit_server.errors import NotFound

_ALIASES = ("stable", "canary", "previous")


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers. `pinned` answers are left out of a rollout's statistics: their users chose for themselves.

    `segment` is the rollout's that drew the arm. It is None where nothing was drawn: then the answer is no sample.
    """

    version: str
    arm: Arm
    segment: int | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """A rollout that is under way: who is tried, on which share of the users, in which segment of constant share."""

    rollout: str
    segment: int
    candidate: str
    share: float
    stable: str


def resolve(
    model: str,
    *,
    aliases: Mapping[str, str],
    states: Mapping[str, VersionState],
    subject: str | None = None,
    split: Split | None = None,
) -> Route:
    """Find the version that a chat's `model` asks for.

    Args:
        model: `policy`, `policy@v42`, `policy@base`, `policy@stable`, `policy@canary` or `policy@previous`.
        aliases: where each alias points now; `stable` is always there.
        states: the state of every version that could be named.
        subject: hash of whom to assign stickily; None is always served by `stable`.
        split: the rollout that divides the users of plain `policy`. A candidate that is not ready answers nobody; who
            would have been its users are served by `stable`, and their answers are no sample of it.

    Raises:
        NotFound: there is no such model, alias or version, or it is not ready.
    """
    name, _, wanted = model.partition("@")
    if name != "policy" or (model != name and not wanted):
        raise NotFound(f"There is no model {model!r}. Try policy, policy@base or policy@v1.", code="model_not_found")
    if wanted:
        return Route(_ready(_target(wanted, aliases), states), "pinned")
    stable = _ready(_target("stable", aliases), states)
    if split is None or subject is None or split.stable != stable:
        return Route(stable, "stable")
    if not in_share(split.rollout, subject, split.share):
        return Route(stable, "stable", split.segment)
    if states.get(split.candidate) != "ready":
        return Route(stable, "stable")
    return Route(split.candidate, "canary", split.segment)


def in_share(lottery: str, subject: str, share: float) -> bool:
    """Whether a subject falls into a share; the same answer every time, and independent between lotteries."""
    digest = hashlib.sha256(f"{lottery}\x00{subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _target(wanted: str, aliases: Mapping[str, str]) -> str:
    if wanted not in _ALIASES:
        return wanted
    if wanted not in aliases:
        raise NotFound(f"No version is {wanted} now.", code="model_not_found", param="model")
    return aliases[wanted]


def _ready(version: str, states: Mapping[str, VersionState]) -> str:
    state = states.get(version)
    if state is None:
        raise NotFound(f"There is no version {version}.", code="model_not_found", param="model")
    if state != "ready":
        raise NotFound(f"Version {version} is {state} and cannot answer.", code="model_not_ready", param="model")
    return version
