"""What a replica holds, compared with what we believe of it. Pure."""

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

BASE = "base"


@dataclass(frozen=True, slots=True)
class Held:
    """What a replica says: the names a request may ask for, and the adapters' numbers in each worker.

    `workers` is None where they were not asked.
    """

    names: AbstractSet[str]
    workers: Sequence[AbstractSet[int]] | None = None


@dataclass(frozen=True, slots=True)
class Believed:
    """What we think of one version there: the name it was loaded under, and its number in the workers."""

    lora_name: str
    numbers: AbstractSet[int]


@dataclass(frozen=True, slots=True)
class Difference:
    """What does not agree.

    `lost`: our versions that are not there whole, and why. `strange_…` is there and not ours. `restarted`: no name of
    ours is left, as after a restart that nobody told us of.
    """

    lost: dict[str, str] = field(default_factory=dict)
    strange_names: frozenset[str] = frozenset()
    strange_numbers: frozenset[int] = frozenset()
    restarted: bool = False


_NAMELESS = "its name is gone"


def compare(believed: Mapping[str, Believed], held: Held) -> Difference:
    """Versions that were lost, with the reason, and what nobody here loaded."""
    lost = {}
    for version, one in believed.items():
        if one.lora_name not in held.names:
            lost[version] = _NAMELESS
        elif held.workers is not None and not all(one.numbers <= worker for worker in held.workers):
            # vLLM would load it again by itself, from whatever lies in the folder by then, unproven.
            lost[version] = "a worker no longer holds it"
    sound = [one for version, one in believed.items() if version not in lost]
    return Difference(
        lost,
        frozenset(held.names - {BASE} - {one.lora_name for one in sound}),
        frozenset(_union(held.workers or ()) - _union([one.numbers for one in sound])),
        restarted=bool(believed) and not any(one.lora_name in held.names for one in believed.values()),
    )


def version_of(lora_name: str) -> str:
    """The version in a name of ours, `v42-<sha8>-<random>`; another's name is its own."""
    return lora_name.partition("-")[0]


def removable(
    names: Collection[str],
    *,
    ours: bool,
    claimed: AbstractSet[str],
    first_seen: Mapping[str, float],
    now: float,
    grace_s: float,
) -> frozenset[str]:
    """Strange names that may be taken away.

    Args:
        names: as `Difference.strange_names`.
        ours: whether this is the only gateway on the replica: then nothing strange is of use to anybody.
        claimed: versions that other gateways use.
        first_seen: when each name was first strange, seconds.
        now: the time, seconds.
        grace_s: how long another gateway may take from loading to claiming.
    """
    if ours:
        return frozenset(names)
    return frozenset(
        name for name in names if version_of(name) not in claimed and now - first_seen.get(name, now) >= grace_s
    )


def _union(sets: Collection[AbstractSet[int]]) -> set[int]:
    return set().union(*sets)
