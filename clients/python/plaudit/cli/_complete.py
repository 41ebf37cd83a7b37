"""What shells are offered behind a command: names that the server knows. A server that does not answer offers none."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from plaudit.cli._session import Session

if TYPE_CHECKING:
    from plaudit import Plaudit

PATIENCE_S = 2.0


def version_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Versions, newest first."""
    return _offered(ctx, incomplete, lambda client: [each.name for each in client.versions.list(limit=100).data])


def run_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Runs, newest first."""
    return _offered(ctx, incomplete, lambda client: [each.id for each in client.training.runs(limit=100).data])


def rollout_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Rollouts, newest first."""
    return _offered(ctx, incomplete, lambda client: [each.id for each in client.rollouts.list(limit=100).data])


def replica_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Replicas."""
    return _offered(ctx, incomplete, lambda client: [each.name for each in client.replicas.list().data])


def _offered(ctx: typer.Context, incomplete: str, names: "Callable[[Plaudit], list[str]]") -> list[str]:
    from plaudit import PlauditError

    root = ctx.find_root()
    given = root.obj if isinstance(root.obj, Session) else Session()
    session = Session(root.params.get("url"), root.params.get("key"), transport=given.transport, clock=given.clock)
    with suppress(PlauditError), session.client(max_retries=0, timeout=PATIENCE_S) as client:
        return [name for name in names(client) if name.startswith(incomplete)]
    return []
