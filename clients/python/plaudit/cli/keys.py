"""`plaudit keys`."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli._session import JsonFlag, listing_group, print_done, print_json, print_listing, session_of

if TYPE_CHECKING:
    from plaudit.wire.ops import Key


class RoleName(StrEnum):
    """The roles of `plaudit.wire.ops.Role`; a test keeps the two alike."""

    chat = "chat"
    feedback = "feedback"
    viewer = "viewer"
    operator = "operator"
    trainer = "trainer"
    admin = "admin"


def list_keys(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """All keys, without their secrets."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        found = list(client.keys.iterate(limit=100))
    print_listing(session, found, ("id", "name", "roles", "begins with", "created", "revoked"), _row, empty="No keys.")


keys = listing_group("API keys.", list_keys)


@keys.command("create")
def create_key(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for.")],
    role: Annotated[list[RoleName], typer.Option(help="What it may do; may be repeated.")],
    as_json: JsonFlag = False,
) -> None:
    """Make a key. Its secret is printed this once, alone on stdout."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        made = client.keys.create(name, [each.value for each in role])
    if session.as_json:
        print_json(made)
        return
    typer.echo(f"{made.id} ({', '.join(made.roles)}): keep the secret, it is not shown again", err=True)
    typer.echo(made.secret)


@keys.command("revoke")
def revoke_key(ctx: typer.Context, key_id: str, as_json: JsonFlag = False) -> None:
    """End a key's power, at once."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        gone = client.keys.revoke(key_id)
    print_done(session, gone, f"{gone.id} is revoked")


def _row(key: "Key") -> tuple[str, ...]:
    revoked = "" if key.revoked_at is None else f"{key.revoked_at:%Y-%m-%d %H:%M}"
    return (key.id, key.name, ", ".join(key.roles), key.hint, f"{key.created_at:%Y-%m-%d %H:%M}", revoked)
