"""What feedback is about: an answer that exists, is its user's own, and whose row may still be on its way."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from plaudit_server.answer_log import WINDOW_S
from plaudit_server.domain.feedback import check_rater, check_target, may_be_on_its_way
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.privacy import SealedText, seal_text
from plaudit_server.errors import NotFound, PlauditError
from plaudit_server.routes.shared import EndUser
from plaudit_server.services import Services
from plaudit_server.store import Connection, interactions

T = TypeVar("T")


async def with_answers(services: Services, op: Callable[[Connection], Awaitable[T]], *response_ids: str) -> T:
    """Write something about answers whose rows may still be on their way, from here or from another gateway process."""
    touching = [each for each in response_ids if each]
    await services.answering.written(*touching)
    try:
        return await services.database.write(op, touching=touching)
    except NotFound:
        if not any(may_be_on_its_way(each, now_ms=now_ms()) for each in response_ids):
            raise
    await asyncio.sleep(2 * WINDOW_S)
    return await services.database.write(op, touching=touching)


async def check_known(
    conn: Connection, response_id: str, param: str, services: Services, *, rater: EndUser | None = None
) -> None:
    """Let an answer pass that feedback may be given on.

    Args:
        param: the request's field that names it.
        rater: whose own answer it must be, where the chat named its user.

    Raises:
        NotFound: there is none, or it is another user's.
        Conflict: it is being given.
        Gone: it was erased.
    """
    try:
        fate = await interactions.fate(conn, response_id)
        check_target(response_id, fate, in_flight=services.answering.is_speaking(response_id))
        if rater is not None and fate == "stored":
            await check_own(conn, response_id, rater, services)
    except PlauditError as error:
        error.param = param
        raise


async def check_own(conn: Connection, response_id: str, rater: EndUser, services: Services) -> None:
    """Let a stored answer pass that the rater asked for. Nobody named, on either side: the key speaks for all.

    Raises:
        NotFound: it is another user's; said as of one that does not exist.
    """
    if not rater.named:
        return
    asker, key_id = await interactions.asked_by(conn, response_id)
    nobody = key_id is not None and asker == services.hash_key(key_id)
    check_rater(response_id, rater.hashed, None if nobody else asker)


def sealed(text: str | None, services: Services) -> SealedText | None:
    """A text as it is kept: redacted and sealed."""
    return None if text is None else seal_text(text, services.redactor, services.cipher)[0]
