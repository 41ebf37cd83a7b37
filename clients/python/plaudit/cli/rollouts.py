"""`plaudit rollouts`."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli._complete import rollout_ids, version_names
from plaudit.cli._session import (
    JsonFlag,
    figure,
    listing_group,
    print_facts,
    print_json,
    print_listing,
    print_table,
    session_of,
)

if TYPE_CHECKING:
    from plaudit import Plaudit
    from plaudit.wire.rollouts import ArmReport, GuardrailReport, Guardrails, Rollout, RolloutStep

RolloutId = Annotated[str | None, typer.Argument(help="Else the newest rollout.", autocompletion=rollout_ids)]
Reason = Annotated[str | None, typer.Option(help="Kept in the audit log.")]

GUARDRAILS = ("errors", "ttft", "length", "refusals")
"""The names of `plaudit.wire.rollouts.GuardrailName`; a test keeps the two alike."""


class Breach(StrEnum):
    """What a guardrail that fires does."""

    rollback = "rollback"
    hold = "hold"


def list_rollouts(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many to show.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """The newest rollouts."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        found = client.rollouts.list(limit=limit).data
    columns = ("rollout", "candidate", "against", "state", "share", "began", "reason")
    print_listing(session, found, columns, _row, empty="No rollouts yet. `plaudit rollouts start v2` begins one.")


rollouts = listing_group("Rollouts: a candidate on a share of users, judged by their votes.", list_rollouts)


@rollouts.command("start")
def start(
    ctx: typer.Context,
    candidate: Annotated[str, typer.Argument(help="A proven version, such as v42.", autocompletion=version_names)],
    *,
    step: Annotated[
        list[str] | None, typer.Option(help="Share of users, or SHARE:SECONDS for at least so long. May be repeated.")
    ] = None,
    guardrail: Annotated[
        list[str] | None, typer.Option(help="NAME=BOUND or NAME=off: errors, ttft, length, refusals. May be repeated.")
    ] = None,
    guardrail_users: Annotated[int | None, typer.Option(help="Users an arm before a guardrail is judged.")] = None,
    on_breach: Annotated[Breach | None, typer.Option(help="What a guardrail that fires does; else rollback.")] = None,
    min_raters: Annotated[int | None, typer.Option(help="Raters an arm before a promotion.")] = None,
    max_duration: Annotated[float | None, typer.Option(help="Seconds after which it ends undecided.")] = None,
    auto_promote: Annotated[bool, typer.Option(help="Promote without a person.")] = False,
    auto_rollback: Annotated[bool, typer.Option(help="Roll back without a person.")] = True,
    reason: Reason = None,
    as_json: JsonFlag = False,
) -> None:
    """Begin a rollout. Without --step: 5 %, 20 %, then 50 % of users, each for an hour at least."""
    steps = [_step(text) for text in step or ("0.05", "0.2", "0.5")]
    guardrails = _guardrails(guardrail or [], guardrail_users, on_breach)
    session = session_of(ctx, as_json)
    with session.client() as client:
        rollout = client.rollouts.start(
            candidate,
            steps,
            min_raters=min_raters,
            max_duration=max_duration,
            guardrails=guardrails,
            auto_promote=auto_promote,
            auto_rollback=auto_rollback,
            reason=reason,
        )
    _print(rollout, as_json=session.as_json)


@rollouts.command("show")
def show(ctx: typer.Context, rollout_id: RolloutId = None, as_json: JsonFlag = False) -> None:
    """One rollout: the verdict in words, and the figures behind it."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        rollout = client.rollouts.get(_chosen(client, rollout_id))
    _print(rollout, as_json=session.as_json)


@rollouts.command("promote")
def promote(ctx: typer.Context, rollout_id: RolloutId = None, reason: Reason = None, as_json: JsonFlag = False) -> None:
    """Make the candidate stable, whatever the evidence says."""
    _act(ctx, "promote", rollout_id, reason, as_json=as_json)


@rollouts.command("pause")
def pause(ctx: typer.Context, rollout_id: RolloutId = None, reason: Reason = None, as_json: JsonFlag = False) -> None:
    """Keep the arms as they are: no step and no promotion, but a rollback all the same."""
    _act(ctx, "pause", rollout_id, reason, as_json=as_json)


@rollouts.command("resume")
def resume(ctx: typer.Context, rollout_id: RolloutId = None, reason: Reason = None, as_json: JsonFlag = False) -> None:
    """Go on after a pause."""
    _act(ctx, "resume", rollout_id, reason, as_json=as_json)


@rollouts.command("abort")
def abort(ctx: typer.Context, rollout_id: RolloutId = None, reason: Reason = None, as_json: JsonFlag = False) -> None:
    """End it: stable serves everybody."""
    _act(ctx, "abort", rollout_id, reason, as_json=as_json)


def _act(ctx: typer.Context, verb: str, rollout_id: str | None, reason: str | None, *, as_json: bool) -> None:
    session = session_of(ctx, as_json)
    with session.client() as client:
        act = getattr(client.rollouts, verb)
        rollout: Rollout = act(_chosen(client, rollout_id), reason)
    _print(rollout, as_json=session.as_json)


def _chosen(client: "Plaudit", rollout_id: str | None) -> str:
    if rollout_id is not None:
        return rollout_id
    newest = client.rollouts.list(limit=1).data
    if not newest:
        raise typer.BadParameter("there is no rollout yet")
    return newest[0].id


def _step(text: str) -> "RolloutStep":
    from pydantic import ValidationError

    from plaudit.wire.rollouts import RolloutStep

    share, _, seconds = text.partition(":")
    try:
        return RolloutStep(weight=float(share), **({"min_seconds": float(seconds)} if seconds else {}))
    except (ValidationError, ValueError):
        raise typer.BadParameter(f"{text!r} is no step: a share up to 0.95, such as 0.2 or 0.2:3600") from None


def _guardrails(bounds: list[str], min_users: int | None, on_breach: Breach | None) -> "Guardrails | None":
    """What was given of them; the server knows the rest. None where nothing was."""
    from pydantic import ValidationError

    from plaudit.wire.rollouts import Guardrails

    given: dict[str, object] = {} if min_users is None else {"min_users": min_users}
    given |= {} if on_breach is None else {"on_breach": on_breach.value}
    for text in bounds:
        name, _, bound = text.partition("=")
        if name not in GUARDRAILS or not bound:
            raise typer.BadParameter(f"{text!r} is no guardrail: {', '.join(GUARDRAILS)}, each =BOUND or =off")
        given[name] = None if bound == "off" else bound
    try:
        return Guardrails.model_validate(given) if given else None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise typer.BadParameter(f"guardrail {problem['loc'][0]}: {problem['msg']}") from None


def _print(rollout: "Rollout", *, as_json: bool) -> None:
    if as_json:
        print_json(rollout)
        return
    print_facts(_facts(rollout))
    report = rollout.report
    if report is None:
        return
    typer.echo()
    columns = ("arm", "version", "users", "raters", "up", "down", "up-rate")
    print_table(columns, [_arm("stable", report.stable), _arm("canary", report.canary)], empty="")
    if report.guardrails:
        typer.echo()
        figures = ("guardrail", "state", "stable", "canary", "bound", "users")
        print_table(figures, map(_guardrail, report.guardrails), empty="")


def _facts(rollout: "Rollout") -> list[tuple[str, str]]:
    report = rollout.report
    facts = [
        ("rollout", rollout.id),
        ("candidate", f"{rollout.candidate} against {rollout.stable}"),
        ("state", rollout.state),
        ("share", f"{100 * rollout.weight:g} % (step {rollout.step + 1} of {len(rollout.steps)})"),
        ("guardrails", _bounds(rollout)),
        ("reason", rollout.reason or ""),
    ]
    if report is None:
        return facts
    low, difference = report.difference_low, report.difference
    points = "" if difference is None or low is None else f"{100 * difference:+.1f} points, at least {100 * low:+.1f}"
    ratio = "as the weights say" if report.sample_ratio_ok else "NOT as the weights say"
    return [
        *facts,
        ("verdict", report.words),
        ("evidence", f"{figure(report.e_value)} to 1 that it is worse (rolled back at {figure(report.e_bound)})"),
        ("difference", points),
        ("users fall", f"{ratio} ({figure(report.sample_ratio_e_value)} to 1)"),
    ]


def _bounds(rollout: "Rollout") -> str:
    """What its guardrails allow, and what happens where one fires."""
    guards = rollout.guardrails
    bounds = {name: getattr(guards, name) for name in GUARDRAILS}
    told = ", ".join(f"{name} {'off' if bound is None else f'{bound:g}'}" for name, bound in bounds.items())
    return f"{told}; from {guards.min_users} users an arm; {guards.on_breach} where one fires"


def _row(rollout: "Rollout") -> tuple[str, ...]:
    return (
        rollout.id,
        rollout.candidate,
        rollout.stable,
        rollout.state,
        f"{100 * rollout.weight:g} %",
        f"{rollout.created_at:%Y-%m-%d %H:%M}",
        rollout.reason or "",
    )


def _arm(name: str, arm: "ArmReport") -> tuple[str, ...]:
    rate = "" if arm.up_rate is None else f"{100 * arm.up_rate:.0f} %"
    return (name, arm.version, str(arm.exposed), str(arm.raters), str(arm.up), str(arm.down), rate)


def _guardrail(guard: "GuardrailReport") -> tuple[str, ...]:
    users = f"{guard.users_stable} and {guard.users_canary}"
    return (guard.name, guard.state, figure(guard.stable), figure(guard.canary), figure(guard.bound), users)
