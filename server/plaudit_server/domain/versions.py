"""The life of a version.

    (register) ──▶ loading ──▶ ready ──▶ failed
        │             └──────────────────▶ failed
        └────────▶ rejected

`ready → failed` happens when an engine comes back and the version can no longer be proven on it (its files were
damaged): it must not be named again. Nothing leaves `rejected` or `failed`: versions are immutable, so what was wrong
once stays wrong; a mended one gets a new number.
"""

from plaudit.wire.versions import VersionKind, VersionState
from plaudit_server.errors import Conflict

BASE = "base"

_ALLOWED: dict[VersionState, frozenset[VersionState]] = {
    "loading": frozenset({"ready", "failed"}),
    "ready": frozenset({"failed"}),
    "rejected": frozenset(),
    "failed": frozenset(),
}


def version_name(number: int) -> str:
    """`base` for 0, else `v<number>`."""
    return BASE if number == 0 else f"v{number}"


def version_number(name: str) -> int:
    """The inverse of `version_name`."""
    return 0 if name == BASE else int(name[1:])


def fingerprint(name: str, manifest_sha256: str | None) -> str:
    """`v42-<first 8 of the manifest's sha256>`; `base` has no manifest and is its own fingerprint."""
    return name if manifest_sha256 is None else f"{name}-{manifest_sha256[:8]}"


def check_transition(name: str, now: VersionState, wanted: VersionState) -> None:
    """Let a change of state pass, or raise. Staying is always allowed, so that a repeated report is harmless.

    Raises:
        Conflict: the version may not go there.
    """
    if now != wanted and wanted not in _ALLOWED[now]:
        raise Conflict(f"Version {name} is {now} and cannot become {wanted}.", code="version_state")


def foundation(name: str, kind: VersionKind) -> str:
    """The whole model that a version is computed with: itself, or base where it is an adapter."""
    return name if kind == "full" else BASE


def check_parent(kind: VersionKind, parent: str, parent_kind: VersionKind) -> None:
    """Let a version of this kind have this parent, or raise.

    Raises:
        Conflict: the two would never be live together, or not on what the version was trained on.
    """
    if kind == "adapter" and parent_kind == "full" and parent != BASE:
        raise Conflict(
            f"{parent} is a whole model, and adapters are trained on the base model: train from base, or serve "
            f"{parent} as the base model (PLAUDIT_MODEL).",
            code="parent_is_full",
        )
    if kind == "full" and parent_kind == "adapter":
        raise Conflict(
            f"{parent} is an adapter: a whole model is compared with base or with another whole model.",
            code="parent_is_adapter",
        )


def check_servable(name: str, state: VersionState, *, tainted: bool) -> None:
    """Let a version have an alias, or raise.

    Raises:
        Conflict: it is not proven, or a source of it was erased.
    """
    if state != "ready":
        raise Conflict(f"Version {name} is {state}; only a ready one can serve.", code="version_not_ready")
    if tainted:
        raise Conflict(
            f"Version {name} learned from something that was erased since; train a new one.", code="version_tainted"
        )
