"""`plaudit chat` and `plaudit rate`."""

import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli._session import (
    REFUSED,
    JsonFlag,
    Session,
    complain,
    json_line,
    one_line,
    print_json,
    printable,
    session_of,
)

if TYPE_CHECKING:
    from plaudit import ChatCompletion, ChatStream, Plaudit
    from plaudit.wire.feedback import Feedback

HELP = (
    "/up or /down rates the last answer, a comment may follow · /tags wrong,long · /correct what it should have said"
    " · /retract · /new starts afresh · /quit or Ctrl-D leaves"
)


class Thumb(StrEnum):
    """What can be said of an answer."""

    up = "up"
    down = "down"
    retract = "retract"


@dataclass(slots=True)
class Conversation:
    """What was said so far, and how to go on.

    Attributes:
        word: what was said of the last answer: the server keeps the newest word as a whole.
        failed: whether a turn did.
    """

    client: "Plaudit"
    options: dict[str, Any]
    end_user: str | None
    opening: list[dict[str, str]] = field(default_factory=list)
    as_json: bool = False
    said: list[dict[str, str]] = field(default_factory=list)
    last_id: str | None = None
    word: dict[str, Any] = field(default_factory=dict)
    failed: bool = False

    def ask(self, text: str) -> "ChatStream":
        """Send the next message; the answer as it is spoken."""
        question = {"role": "user", "content": text}
        stream = self.client.chat.stream([*self.opening, *self.said, question], **self.options)
        self.said.append(question)
        return stream

    def ask_whole(self, text: str) -> "ChatCompletion":
        """The same, waiting for the whole answer."""
        options = {name: value for name, value in self.options.items() if value is not None}
        question = {"role": "user", "content": text}
        answer = self.client.chat.create([*self.opening, *self.said, question], **options)
        self.said.append(question)
        self.heard(answer.text, answer.response_id)
        return answer

    def heard(self, text: str, response_id: str | None) -> None:
        """Remember an answer, whole or cut short."""
        self.said.append({"role": "assistant", "content": text})
        self.last_id, self.word = response_id, {}

    def restart(self) -> None:
        """Forget what was said."""
        self.said, self.last_id, self.word = [], None, {}

    def rate(self, **said: Any) -> "Feedback | None":
        """Add to the word on the last answer. Another thumb than before begins it anew. None: there is no answer."""
        if self.last_id is None:
            return None
        if "value" in said and said["value"] != self.word.get("value", said["value"]):
            self.word = {}
        self.word |= said
        return self.client.feedback.create(self.last_id, **self.word, end_user=self.end_user)


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
        talk = Conversation(client, options, user, opening, session.as_json)
        if asked:
            _ask_once(session, talk, asked)
        if converse:
            _converse(talk)
    if talk.failed and not sys.stdin.isatty():
        raise typer.Exit(REFUSED)  # a script is to know; a person was told


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
        print_json(talk.ask_whole(question))
        return
    with talk.ask(question) as stream:
        _speak(stream)
        talk.heard(stream.text, stream.response_id)
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
    if sys.stdin.isatty():
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
    return input().strip()


def _turn(talk: Conversation, line: str) -> None:
    """One line of the user: a command, a rating or a message. A failure ends the turn, not the conversation."""
    from plaudit import AuthenticationError, ConfigurationError, PermissionDeniedError, PlauditError

    try:
        if line[0] == "/":
            _obey(talk, *_split(line))
        elif line[0] in "+-" and line[1:2] in ("", " "):
            _obey(talk, "/up" if line[0] == "+" else "/down", line[1:].strip())
        else:
            _answer(talk, line)
    except (AuthenticationError, PermissionDeniedError, ConfigurationError):
        raise  # the next turn would fail alike
    except PlauditError as error:
        _fail(talk, one_line(error))


def _split(line: str) -> tuple[str, str]:
    command, _, rest = line.partition(" ")
    return command, rest.strip()


def _answer(talk: Conversation, line: str) -> None:
    if talk.as_json:
        typer.echo(json_line(talk.ask_whole(line)))
        return
    with talk.ask(line) as stream:
        try:
            _speak(stream)
        except KeyboardInterrupt:
            typer.echo(" … stopped")
        finally:
            talk.heard(stream.text, stream.response_id)
    typer.echo(_signature(stream), err=True)


def _obey(talk: Conversation, command: str, rest: str) -> None:
    """What begins with a slash."""
    if command == "/new":
        talk.restart()
    elif command == "/help":
        typer.echo(HELP, err=True)
    elif command in ("/tags", "/correct") and not rest:
        _fail(talk, f"{command}: say what")
    elif (said := _said(command, rest)) is None:
        _fail(talk, f"there is no {command}; /help lists what there is")
    elif (kept := talk.rate(**said)) is None:
        _fail(talk, "there is no answer to rate yet")
    else:
        typer.echo(json_line(kept) if talk.as_json else _receipt(kept), err=not talk.as_json)


def _said(command: str, rest: str) -> dict[str, Any] | None:
    """A rating as `feedback.create` takes it; None for a command that is none."""
    comment = {"comment": rest} if rest else {}
    ratings: dict[str, dict[str, Any]] = {
        "/up": {"value": "up", **comment},
        "/down": {"value": "down", **comment},
        "/retract": {"value": None},
        "/tags": {"tags": rest.replace(",", " ").split()},
        "/correct": {"correction": rest},
    }
    return ratings.get(command)


def _fail(talk: Conversation, why: str) -> None:
    talk.failed = True
    complain(why)


def _receipt(kept: "Feedback") -> str:
    if kept.retracted:
        return f"retracted ({kept.id})"
    said = "comment" if kept.value is None else "up" if kept.value > 0 else "down" if kept.value < 0 else "neutral"
    spoke = f" for {kept.version}" if kept.version else ""
    learnt = "" if kept.trainable else " · will not be learnt from"
    return f"{said}{spoke} ({kept.id}{', replaces the earlier one' if kept.revision > 1 else ''}){learnt}"
