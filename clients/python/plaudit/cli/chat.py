"""`plaudit chat` and `plaudit rate`."""

import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli._session import (
    JsonFlag,
    Session,
    complain,
    one_line,
    print_json,
    printable,
    session_of,
)

if TYPE_CHECKING:
    from plaudit import ChatStream, Plaudit
    from plaudit.wire.feedback import Feedback

HELP = "+ or - rates the last answer (`+ so clear` adds a comment) · /new starts afresh · /quit or Ctrl-D leaves"


class Thumb(StrEnum):
    """What can be said of an answer."""

    up = "up"
    down = "down"
    retract = "retract"


@dataclass(slots=True)
class Conversation:
    """What was said so far, and how to go on."""

    client: "Plaudit"
    options: dict[str, Any]
    end_user: str | None
    opening: list[dict[str, str]] = field(default_factory=list)
    said: list[dict[str, str]] = field(default_factory=list)
    last_id: str | None = None

    def ask(self, text: str) -> "ChatStream":
        """Send the next message; the answer as it is spoken."""
        question = {"role": "user", "content": text}
        stream = self.client.chat.stream([*self.opening, *self.said, question], **self.options)
        self.said.append(question)
        return stream

    def heard(self, stream: "ChatStream") -> None:
        """Remember an answer, whole or cut short."""
        self.said.append({"role": "assistant", "content": stream.text})
        self.last_id = stream.response_id

    def restart(self) -> None:
        """Forget what was said."""
        self.said, self.last_id = [], None


def chat(
    ctx: typer.Context,
    question: Annotated[
        list[str] | None, typer.Argument(help="Ask this and leave; without it, read a pipe or converse.")
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="policy, policy@v42, policy@canary, policy@base")] = "policy",
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    user: Annotated[str | None, typer.Option(help="Who asks and rates; kept as a keyed hash.")] = None,
    train: Annotated[bool | None, typer.Option(help="May this be learnt from? Default: the server's setting.")] = None,
    store: Annotated[bool | None, typer.Option(help="--no-store: not logged, not learnt from, not rated.")] = None,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Converse, even through a pipe.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask a question, or converse and rate the answers as you go."""
    session = session_of(ctx, as_json)
    options = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "user": user,
        "train": train,
        "store": store,
    }
    opening = [{"role": "system", "content": system}] if system else []
    asked = " ".join(question or [])
    converse = interactive or (not asked and sys.stdin.isatty())
    if not asked and not converse:
        asked = sys.stdin.read().strip()
    if not asked and not converse:
        raise typer.BadParameter("nothing to ask: give a question, pipe one in, or use --interactive")
    with session.client() as client:
        talk = Conversation(client, options, user, opening)
        if asked:
            _ask_once(session, talk, asked)
        if converse:
            _converse(talk)


def rate(
    ctx: typer.Context,
    response_id: Annotated[str, typer.Argument(help="The answer's id: chatcmpl-…")],
    value: Annotated[Thumb, typer.Argument(help="up, down, or retract an earlier word")],
    *,
    comment: Annotated[str | None, typer.Option(help="Why.")] = None,
    correction: Annotated[str | None, typer.Option(help="The answer as it should have been.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A short label; may be repeated.")] = None,
    end_user: Annotated[str | None, typer.Option(help="Whose word it is; kept as a keyed hash.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Rate an answer. A second word from the same user replaces the first."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        kept = client.feedback.create(
            response_id,
            None if value is Thumb.retract else value.value,
            comment=comment,
            correction=correction,
            tags=tag,
            end_user=end_user,
        )
    if session.as_json:
        print_json(kept)
    else:
        typer.echo(_receipt(kept))


def _ask_once(session: Session, talk: Conversation, question: str) -> None:
    if session.as_json:
        options = {name: value for name, value in talk.options.items() if value is not None}
        asked = [*talk.opening, {"role": "user", "content": question}]
        print_json(talk.client.chat.create(asked, **options))
        return
    with talk.ask(question) as stream:
        _speak(stream)
    typer.echo(_signature(stream), err=True)


def _speak(stream: "ChatStream") -> None:
    for chunk in stream:
        typer.echo(printable(chunk.text), nl=False)
    typer.echo()


def _signature(stream: "ChatStream") -> str:
    arm = f", {stream.arm}" if stream.arm else ""
    cut = " · cut at its length limit" if stream.finish_reason == "length" else ""
    return f"({stream.version or 'unknown version'}{arm} · {stream.response_id}{cut})"


def _converse(talk: Conversation) -> None:
    typer.echo(HELP, err=True)
    while True:
        try:
            line = _next_line()
        except (EOFError, KeyboardInterrupt):
            typer.echo(err=True)
            return
        if line in ("/quit", "/exit"):
            return
        if line:
            _turn(talk, line)


def _next_line() -> str:
    if sys.stdin.isatty():
        import readline  # noqa: F401  # line editing and history for input()

    return input("> ").strip()


def _turn(talk: Conversation, line: str) -> None:
    """One line of the user: a command, a rating or a message. A failure ends the turn, not the conversation."""
    from plaudit import AuthenticationError, ConfigurationError, PermissionDeniedError, PlauditError

    try:
        if line == "/new":
            talk.restart()
        elif line[0] in "+-" and line[1:2] in ("", " "):
            _rate_last(talk, line)
        else:
            _answer(talk, line)
    except (AuthenticationError, PermissionDeniedError, ConfigurationError):
        raise  # the next turn would fail alike
    except PlauditError as error:
        complain(one_line(error))


def _answer(talk: Conversation, line: str) -> None:
    with talk.ask(line) as stream:
        try:
            _speak(stream)
        except KeyboardInterrupt:
            typer.echo(" … stopped")
        finally:
            talk.heard(stream)
    typer.echo(_signature(stream), err=True)


def _rate_last(talk: Conversation, line: str) -> None:
    if talk.last_id is None:
        complain("there is no answer to rate yet")
        return
    thumb, comment = "up" if line[0] == "+" else "down", line[1:].strip() or None
    kept = talk.client.feedback.create(talk.last_id, thumb, comment=comment, end_user=talk.end_user)
    typer.echo(_receipt(kept), err=True)


def _receipt(kept: "Feedback") -> str:
    if kept.retracted:
        return f"retracted ({kept.id})"
    said = "comment" if kept.value is None else "up" if kept.value > 0 else "down" if kept.value < 0 else "neutral"
    spoke = f" for {kept.version}" if kept.version else ""
    learnt = "" if kept.trainable else " · will not be learnt from"
    return f"{said}{spoke} ({kept.id}{', replaces the earlier one' if kept.revision > 1 else ''}){learnt}"
