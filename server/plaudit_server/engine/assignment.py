"""Which replica shall hold which whole model. Pure."""

from collections.abc import Sequence

Held = Sequence[str | None]
"""The whole model that each replica holds; None: none that it may answer with."""


def goals(held: Held, wanted: Sequence[str]) -> list[tuple[int, str]]:
    """Replicas by place, and what each shall hold.

    Each wanted one but the first gets one replica, that which has it where there is one; the first gets the others.
    Replicas that need not change come first, so that they are known to be right before others are touched.

    Args:
        held: at least one.
        wanted: most needed first; at least one.
    """
    left, chosen = list(range(len(held))), []
    for name in wanted[1 : len(held)]:
        has_it = next((place for place in left if held[place] == name), None)
        idle = next((place for place in reversed(left) if held[place] not in wanted), left[-1])
        place = idle if has_it is None else has_it
        left.remove(place)
        chosen.append((place, name))
    chosen += [(place, wanted[0]) for place in left]
    return sorted(chosen, key=lambda pair: held[pair[0]] != pair[1])


def spare(held: Held, loads: Sequence[int], wanted: Sequence[str]) -> int:
    """The replica that a new version is tried on: what it holds is needed least, or is held by others too."""

    def cost(place: int) -> tuple[bool, bool, int, int]:
        name = held[place]
        rank = wanted.index(name) if name in wanted else len(wanted)
        return name in wanted, held.count(name) == 1, -rank, loads[place]

    return min(range(len(held)), key=cost)
