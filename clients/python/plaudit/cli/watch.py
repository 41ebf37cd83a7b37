"""`plaudit watch`: the loop at a glance: who serves, what is learnt, what users say."""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli import runs, versions
from plaudit.cli._session import JsonFlag, Session, complain, figure, make_table, one_line, printable, session_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from plaudit import Plaudit
    from plaudit.wire.feedback import Feedback
    from plaudit.wire.ops import Health
    from plaudit.wire.rollouts import Rollout
    from plaudit.wire.training import Run
    from plaudit.wire.versions import Alias, Version

VOTES_COUNTED = 100
VOTES_SHOWN = 8
CUT = 60
"""Characters of a comment that are shown."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at the server. `votes` are the newest ones, `rollout` the newest one."""

    at: datetime
    address: str
    health: "Health"
    aliases: "list[Alias]"
    versions: "list[Version]"
    runs: "list[Run]"
    votes: "list[Feedback]"
    rollout: "Rollout | None"

    def json(self) -> str:
        """On one line."""
        lists = {name: getattr(self, name) for name in ("aliases", "versions", "runs", "votes")}
        shown: dict[str, Any] = {"at": self.at.isoformat(), "health": self.health.model_dump(mode="json")}
        shown |= {name: [each.model_dump(mode="json") for each in found] for name, found in lists.items()}
        return json.dumps(shown | {"rollout": self.rollout and self.rollout.model_dump(mode="json")})


def watch(
    ctx: typer.Context,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between two looks.")] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look once and leave; so it does where stdout is no terminal.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Watch the loop: versions, runs, votes, the rollout. Ctrl-C ends it. With --json, a line a look."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        if once or not (session.as_json or sys.stdout.isatty()):
            _show_once(session, look(client))
            return
        try:
            _follow(session, client, every)
        except KeyboardInterrupt:
            return


def look(client: "Plaudit") -> Snapshot:
    """Ask the server for everything that is shown; six or seven short requests."""
    rollout = next(iter(client.rollouts.list(limit=1).data), None)
    if rollout is not None and rollout.ended_at is None:
        rollout = client.rollouts.get(rollout.id)
    return Snapshot(
        at=datetime.now(UTC),
        address=client.endpoint.base_url,
        health=client.ready(),
        aliases=client.aliases.list().data,
        versions=client.versions.list(limit=6).data,
        runs=client.training.runs(limit=4).data,
        votes=client.feedback.list(limit=VOTES_COUNTED).data,
        rollout=rollout,
    )


def _show_once(session: Session, seen: Snapshot) -> None:
    from rich.console import Console

    if session.as_json:
        typer.echo(seen.json())
    else:
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(render(seen))


def _follow(session: Session, client: "Plaudit", every: float) -> None:
    """Look again and again. A server that goes away is waited for; one that refuses the key is not."""
    from rich.console import Console
    from rich.live import Live

    from plaudit import APIConnectionError, RateLimitError, ServiceUnavailableError

    seen, trouble = look(client), None
    with Live(console=Console(file=sys.stdout), auto_refresh=False, screen=not session.as_json) as live:
        while True:
            if not session.as_json:
                live.update(render(seen, trouble), refresh=True)
            elif trouble is None:
                live.console.out(seen.json(), highlight=False)
            else:
                complain(trouble)
            session.sleep(every)
            try:
                seen, trouble = look(client), None
            except (APIConnectionError, ServiceUnavailableError, RateLimitError) as error:
                trouble = one_line(error)


def render(seen: Snapshot, trouble: str | None = None) -> "RenderableType":
    """A look, for a terminal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(_headline(seen), style="bold")]
    if trouble is not None:
        parts.append(Text(f"not answered: {printable(trouble)}; shown is what was seen last", style="red"))
    counted = _counted(seen.votes)
    rows = [_version(each, counted) for each in seen.versions]
    columns = ("version", "state", "aliases", "gate", "slope", "votes*", "created", "reason")
    parts += [_title("versions"), make_table(columns, rows)]
    columns = ("run", "version", "parent", "state", "stage", "progress", "updated", "reason")
    parts += [_title("runs"), make_table(columns, map(runs.row, seen.runs))]
    if seen.rollout is not None:
        parts += [_title("rollout"), Text(_rollout(seen.rollout))]
    votes = [_vote(each) for each in seen.votes[:VOTES_SHOWN]]
    parts += [_title("votes"), make_table(("at", "version", "key", "said", "tags", "comment"), votes)]
    return Group(*parts, Text(f"* up and down among the newest {len(seen.votes)} pieces of feedback", style="dim"))


def _title(text: str) -> "RenderableType":
    from rich.text import Text

    return Text(f"\n{text}", style="bold")


def _headline(seen: Snapshot) -> str:
    health = seen.health
    heard = health.trainer_seen_at
    now = health.now or seen.at
    trainer = (
        "trainer silent" if heard is None else f"trainer heard {max(0.0, (now - heard).total_seconds()):.0f} s ago"
    )
    points = ", ".join(f"{alias.name} {alias.version}" for alias in seen.aliases) or "base serves"
    fake = " (FAKE)" if health.fake_engine else ""
    parts = (seen.address, f"{seen.at:%H:%M:%S} UTC", health.status, f"engine {health.engine}{fake}", trainer, points)
    return printable(" · ".join(parts))


def _counted(votes: "list[Feedback]") -> "Counter[tuple[str | None, bool]]":
    return Counter((vote.version, vote.value > 0) for vote in votes if vote.value)


def _version(version: "Version", counted: "Counter[tuple[str | None, bool]]") -> tuple[str, ...]:
    name, state, _, aliases, gate, slope, _, created, reason = versions.row(version)
    votes = f"+{counted[version.name, True]} -{counted[version.name, False]}"
    return (name, state, aliases, gate, slope, votes, created, reason)


def _rollout(rollout: "Rollout") -> str:
    share = f"{100 * rollout.weight:g} %"
    told = f"{rollout.candidate} against {rollout.stable}: {rollout.state}, {share} of users. {rollout.reason or ''}"
    if rollout.report is not None:
        report = rollout.report
        evidence = f"{figure(report.e_value)} to 1 that it is worse (rolled back at {figure(report.e_bound)})"
        told += f"\n{report.words}\n{evidence}"
    return printable(told)


def _vote(vote: "Feedback") -> tuple[str, ...]:
    said = "retracted" if vote.retracted else "" if vote.value is None else f"{vote.value:+g}"
    written = vote.comment or vote.correction or ""
    comment = " ".join(written.split())
    shown = comment if len(comment) <= CUT else f"{comment[:CUT]}…"
    return (f"{vote.received_at:%H:%M:%S}", vote.version or "", vote.key, said, ", ".join(vote.tags), shown)
