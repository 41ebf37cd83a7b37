"""`plaudit versions`, `promote`, `rollback`."""

from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli._complete import version_names
from plaudit.cli._session import (
    JsonFlag,
    figure,
    listing_group,
    print_done,
    print_facts,
    print_json,
    print_listing,
    print_table,
    session_of,
)

if TYPE_CHECKING:
    from plaudit.wire.versions import Alias, GateCheck, ReplicaProof, Version

Limit = Annotated[int, typer.Option(min=1, max=100, help="How many to show.")]
Name = Annotated[str, typer.Argument(help="Such as v42.", autocompletion=version_names)]


def list_versions(ctx: typer.Context, limit: Limit = 20, as_json: JsonFlag = False) -> None:
    """The newest versions, those that were refused included."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        found = client.versions.list(limit=limit).data
    columns = ("version", "state", "parent", "aliases", "gate", "slope", "records", "created", "reason")
    print_listing(session, found, columns, row, empty="No versions yet. The base model serves until one is published.")


versions = listing_group("Policy versions: why they may serve, or may not.", list_versions)


@versions.command("show")
def show_version(ctx: typer.Context, name: Name, as_json: JsonFlag = False) -> None:
    """One version: its gate, line by line, and its proof, replica by replica."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        version = client.versions.get(name)
    if session.as_json:
        print_json(version)
        return
    print_facts(_facts(version))
    if version.gate is not None:
        typer.echo()
        columns = ("gate", "passed", "value", "95 % interval", "n", "bound")
        print_table(columns, map(_check_row, version.gate.checks), empty="No gate checks.")
    if version.proof is not None:
        typer.echo()
        replicas = ("replica", "passed", "slope", "95 % interval", "probe tokens", "tensors", "reason")
        print_table(replicas, map(_proof_row, version.proof.replicas), empty="No replica was probed.")


def promote(
    ctx: typer.Context,
    version: Annotated[str, typer.Argument(help="A proven version, such as v42.", autocompletion=version_names)],
    reason: Annotated[str | None, typer.Option(help="Kept in the audit log.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a proven version the stable one."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        alias = client.versions.promote(version, reason)
    print_done(session, alias, _moved(alias))


def rollback(
    ctx: typer.Context,
    to: Annotated[
        str,
        typer.Option(
            help="A version, or previous: what was stable before the last move.", autocompletion=version_names
        ),
    ] = "previous",
    reason: Annotated[str | None, typer.Option(help="Kept in the audit log.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Move stable back; new requests follow within a second."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        if not yes:
            points = {alias.name: alias.version for alias in client.aliases.list().data}
            target = points.get("previous", "previous") if to == "previous" else to
            typer.confirm(f"Move stable from {points.get('stable', 'base')} back to {target}?", abort=True, err=True)
        alias = client.rollback(to, reason)
    print_done(session, alias, _moved(alias))


def _moved(alias: "Alias") -> str:
    return f"{alias.name} is {alias.version}"


def row(version: "Version") -> tuple[str, ...]:
    """A version as a line of a table."""
    return (
        version.name,
        version.state + (" (tainted)" if version.tainted else ""),
        version.parent or "",
        ", ".join(version.aliases),
        _gate(version),
        _slope(version),
        str(version.records),
        f"{version.created_at:%Y-%m-%d %H:%M}",
        version.reason or "",
    )


def _facts(version: "Version") -> list[tuple[str, str]]:
    return [
        ("version", version.name),
        ("kind", version.kind),
        ("state", version.state),
        ("reason", version.reason or ""),
        ("aliases", ", ".join(version.aliases)),
        ("parent", version.parent or ""),
        ("fingerprint", version.fingerprint),
        ("records", str(version.records)),
        ("batches", ", ".join(version.batch_ids)),
        ("run", version.run_id or ""),
        ("folder", version.location or ""),
        ("created", version.created_at.isoformat()),
        ("proof", "" if version.proof is None else version.proof.reason or f"{version.proof.seconds:.1f} s"),
    ]


def _gate(version: "Version") -> str:
    if version.gate is None:
        return ""
    failed = [check.name for check in version.gate.checks if not check.passed]
    return f"fails {', '.join(failed)}" if failed else f"{len(version.gate.checks)} passed"


def _slope(version: "Version") -> str:
    """The replica furthest from 1: the proof is as good as its worst one."""
    if version.proof is None:
        return ""
    known = [proof for proof in version.proof.replicas if proof.slope is not None]
    if not known:
        return "none"
    worst = max(known, key=lambda proof: abs((proof.slope or 0.0) - 1))
    return f"{figure(worst.slope)} {_interval(worst.low, worst.high)}".strip()


def _check_row(check: "GateCheck") -> tuple[str, ...]:
    interval = _interval(check.low, check.high)
    return (check.name, _yes_no(check.passed), figure(check.value), interval, str(check.n), check.bound)


def _proof_row(proof: "ReplicaProof") -> tuple[str, ...]:
    interval, tensors = _interval(proof.low, proof.high), f"{proof.tensors_matched}/{proof.tensors_expected}"
    passed, slope = _yes_no(proof.passed), figure(proof.slope)
    return (proof.replica, passed, slope, interval, str(proof.tokens), tensors, proof.reason or "")


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None and high is None else f"[{figure(low) or '−∞'}, {figure(high) or '∞'}]"


def _yes_no(passed: bool) -> str:
    return "yes" if passed else "NO"
