"""Chainlit's thumbs and comments, forwarded to the answer that they were given to.

    import chainlit as cl
    from plaudit import AsyncPlaudit
    from plaudit.integrations.chainlit import PlauditDataLayer, answer

    client = AsyncPlaudit()

    @cl.data_layer
    def data_layer():
        return PlauditDataLayer(client)  # nothing else is kept

    @cl.on_message
    async def on_message(message: cl.Message):
        await answer(client, cl.chat_context.to_openai())

Over a data layer that keeps threads, the mixin goes before it:

    class DataLayer(PlauditFeedback, SQLAlchemyDataLayer):
        pass

    layer = DataLayer(conninfo="…")
    layer.plaudit = client

Which answer a message is, its metadata says; so votes find it after a restart too, where the layer below keeps steps.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Unpack

import chainlit as cl
from chainlit.data.base import BaseDataLayer
from chainlit.types import Feedback, PageInfo, PaginatedResponse
from chainlit.user import PersistedUser

from plaudit import AsyncPlaudit
from plaudit.resources.chat import ChatOptions

logger = logging.getLogger(__name__)

METADATA = "plaudit"
"""The key of a message's metadata under which it says which answer it is."""
REMEMBERED = 10_000
"""How many messages are remembered without asking the layer below."""

Tie = Mapping[str, Any]
"""`response_id` and `end_user` of a message."""


def session_user() -> str:
    """Who is asking: the identifier that was logged in with, else this session."""
    user = cl.user_session.get("user")
    return str(user.identifier if user else cl.user_session.get("id"))


def tie(message: cl.Message, response_id: str, end_user: str | None = None) -> cl.Message:
    """Say which answer a message is; before it is sent, or updated.

    Args:
        response_id: the answer's id.
        end_user: whom the chat named as its user; a vote has to name the same.
    """
    tied = {METADATA: {"response_id": response_id, "end_user": end_user}}
    message.metadata = {**(message.metadata or {}), **tied}
    run = cl.context.current_run  # Chainlit's thumbs rate the run that a message is in
    if run is not None:
        run.metadata = {**(run.metadata or {}), **tied}
    return message


async def answer(
    client: AsyncPlaudit, messages: Sequence[Mapping[str, Any]] | str, **options: Unpack[ChatOptions]
) -> cl.Message:
    """Ask Plaudit, stream the answer into a message, tie the two and send it.

    Args:
        client: of the server that answers.
        messages: the conversation, such as `cl.chat_context.to_openai()`.
        options: as for `AsyncPlaudit.chat.stream`. Without `user`, `session_user()` is.

    Raises:
        PlauditError: there was no answer, or not all of it.
    """
    asked: ChatOptions = {"user": session_user(), **options}
    message = cl.Message(content="")
    async with await client.chat.stream(messages, **asked) as stream:
        async for chunk in stream:
            await message.stream_token(chunk.text)
    if stream.response_id is not None:
        tie(message, stream.response_id, asked["user"])
    await message.send()
    return message


class PlauditFeedback:
    """A mixin for a `BaseDataLayer`: put it before one, and set `plaudit`.

    A vote is given to Plaudit first and kept below only when Plaudit has it, so that what the page shows as voted is.
    Votes on messages that are not tied go to the layer below alone.

    Attributes:
        plaudit: a client whose key has the role feedback.
    """

    plaudit: AsyncPlaudit

    async def create_step(self, step_dict: Any) -> Any:
        """Note the tie of a new message."""
        self._note(step_dict)
        return await super().create_step(step_dict)  # type: ignore[misc]  # the layer that this is mixed into

    async def update_step(self, step_dict: Any) -> Any:
        """Note the tie of a changed message."""
        self._note(step_dict)
        return await super().update_step(step_dict)  # type: ignore[misc]

    async def upsert_feedback(self, feedback: Feedback) -> str:
        """Forward a vote: 1 is up, 0 is down.

        Raises:
            PlauditError: Plaudit did not take it; the page says that it failed.
        """
        # What is rated has one vote, so its id can be the vote's: what retracts a vote is told nothing else.
        feedback.id = feedback.id or feedback.forId
        tied = await self._tie_of(feedback.forId, feedback.threadId)
        if tied is None:
            logger.info("message %s is not tied to an answer: its vote is not forwarded", feedback.forId)
        else:
            await self.plaudit.feedback.create(
                tied["response_id"],
                bool(feedback.value),
                comment=feedback.comment or None,
                end_user=tied.get("end_user"),
            )
        return str(await super().upsert_feedback(feedback))  # type: ignore[misc]

    async def delete_feedback(self, feedback_id: str) -> bool:
        """Retract a vote.

        Raises:
            PlauditError: Plaudit did not take it back.
        """
        # DynamoDB's layer names votes THREAD#…::STEP#…; for the others the vote has the message's name.
        thread, _, message = feedback_id.rpartition("::STEP#")
        tied = await self._tie_of(message, thread.removeprefix("THREAD#") or None)
        if tied is None:
            logger.warning("no answer is known for the vote %s: it is not retracted at Plaudit", feedback_id)
        else:
            await self.plaudit.feedback.create(tied["response_id"], None, end_user=tied.get("end_user"))
        return bool(await super().delete_feedback(feedback_id))  # type: ignore[misc]

    @property
    def _ties(self) -> OrderedDict[str, Tie]:
        """Ties by message, the oldest first. Made when first used: the layer's constructor knows nothing of it."""
        found: OrderedDict[str, Tie] = self.__dict__.setdefault("_plaudit_ties", OrderedDict())
        return found

    def _note(self, step: Mapping[str, Any]) -> None:
        tied = _read(step)
        if tied is None:
            return
        for each in (step["id"], step.get("parentId")):  # the run, where there is one, is what thumbs rate
            if each:
                self._ties[each] = tied
        while len(self._ties) > REMEMBERED:
            self._ties.popitem(last=False)

    async def _tie_of(self, message: str, thread: str | None) -> Tie | None:
        return self._ties.get(message) or await self._stored(message, thread)

    async def _stored(self, message: str, thread: str | None) -> Tie | None:
        """The tie that the layer below keeps, read in the ways that Chainlit's own layers offer."""
        one: Any = getattr(self, "get_step", None)
        if one is not None:
            step = await one(message) or {}
            if (tied := _read(step)) is not None:
                return tied
            thread = thread or step.get("threadId")
        held = await self.get_thread(thread) if thread else None  # type: ignore[attr-defined]  # BaseDataLayer's
        steps = (held or {}).get("steps", ())
        # Chainlit stores a run's beginning and its end by two tasks, and where the first ends last the run has lost its
        # tie. Its messages have theirs: the newest is the one that thumbs rate.
        itself = [step for step in steps if step["id"] == message]
        within = [step for step in reversed(steps) if step.get("parentId") == message]
        return next((tied for step in (*itself, *within) if (tied := _read(step)) is not None), None)


def _read(step: Mapping[str, Any]) -> Tie | None:
    """The tie in a step's metadata."""
    metadata = step.get("metadata")
    if isinstance(metadata, str):  # as SQLite has it
        metadata = json.loads(metadata)
    found = metadata.get(METADATA) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, Mapping) and "response_id" in found else None


class _Nothing(BaseDataLayer):
    """A data layer that keeps nothing; with it Chainlit shows its thumbs."""

    async def get_user(self, identifier: str) -> PersistedUser | None:
        return _known(identifier, {})

    async def create_user(self, user: Any) -> PersistedUser | None:
        return _known(user.identifier, user.metadata)

    async def upsert_feedback(self, feedback: Feedback) -> str:
        return str(feedback.id)

    async def delete_feedback(self, feedback_id: str) -> bool:
        return True

    async def create_element(self, element: Any) -> None: ...

    async def get_element(self, thread_id: str, element_id: str) -> None: ...

    async def delete_element(self, element_id: str, thread_id: str | None = None) -> None: ...

    async def create_step(self, step_dict: Any) -> None: ...

    async def update_step(self, step_dict: Any) -> None: ...

    async def delete_step(self, step_id: str) -> None: ...

    async def get_thread_author(self, thread_id: str) -> str:
        return ""

    async def delete_thread(self, thread_id: str) -> None: ...

    async def list_threads(self, pagination: Any, filters: Any) -> Any:
        return PaginatedResponse(pageInfo=PageInfo(hasNextPage=False, startCursor=None, endCursor=None), data=[])

    async def get_thread(self, thread_id: str) -> None: ...

    async def update_thread(self, thread_id: str, *_: Any, **__: Any) -> None: ...

    async def build_debug_url(self) -> str:
        return ""

    async def close(self) -> None: ...

    async def get_favorite_steps(self, user_id: str) -> list[Any]:
        return []


class PlauditDataLayer(PlauditFeedback, _Nothing):
    """A data layer for applications without one: thumbs go to Plaudit, nothing else is kept.

    Args:
        plaudit: a client whose key has the role feedback.
    """

    def __init__(self, plaudit: AsyncPlaudit) -> None:
        self.plaudit = plaudit


def _known(identifier: str, metadata: dict[str, Any]) -> PersistedUser:
    return PersistedUser(
        id=identifier, identifier=identifier, createdAt=datetime.now(UTC).isoformat(), metadata=metadata
    )
