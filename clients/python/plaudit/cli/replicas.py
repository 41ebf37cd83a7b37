"""`plaudit replicas`."""

from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli._complete import replica_names
from plaudit.cli._session import JsonFlag, listing_group, print_done, print_listing, session_of

if TYPE_CHECKING:
    from plaudit.wire.ops import Replica

Name = Annotated[str, typer.Argument(help="Such as engine-1.", autocompletion=replica_names)]


def list_replicas(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """All replicas, as the server sees them."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        found = client.replicas.list().data
    columns = ("name", "state", "holds", "in flight", "address", "detail")
    print_listing(session, found, columns, _row, empty="No replicas.")


replicas = listing_group("Engine replicas.", list_replicas)


@replicas.command("add")
def add_replica(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(help="Of a vLLM server that only Plaudit can reach.")],
    as_json: JsonFlag = False,
) -> None:
    """Put a replica on the list; it answers once everything that serves was proven on it."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        added = client.replicas.add(url)
    print_done(session, added, f"{added.name} is on the list: {added.url}")


@replicas.command("drain")
def drain_replica(ctx: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Give a replica nothing new."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        draining = client.replicas.drain(name)
    told = f"{draining.name} is draining, {draining.in_flight} in flight; `plaudit replicas` says when it is drained"
    print_done(session, draining, told)


@replicas.command("remove")
def remove_replica(ctx: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """Take a replica off the list."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        gone = client.replicas.remove(name)
    print_done(session, gone, f"{gone.name} is off the list")


def _row(one: "Replica") -> tuple[str, ...]:
    state = "draining" if one.draining else one.state
    breaker = "" if one.breaker == "closed" else f"breaker {one.breaker}"
    holds = ", ".join(one.resident)
    return (one.name, state, holds, str(one.in_flight), one.url or "child", one.detail or breaker)
