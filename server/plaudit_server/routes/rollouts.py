"""Rollouts: a candidate on a growing share of users, judged by their votes."""

from plaudit.wire.base import Page
from plaudit.wire.rollouts import Rollout, RolloutAction, RolloutCreate
from plaudit_server import views
from plaudit_server.routes.shared import After, Limit, Operator, S, Viewer, errors, guarded_router, page
from plaudit_server.services import Services
from plaudit_server.store import rollouts

router = guarded_router("rollouts")

_NOTHING = RolloutAction()


@router.post("/v1/rollouts", status_code=201, responses=errors(404, 409), summary="Begin a rollout")
async def create_rollout(given: RolloutCreate, services: S, principal: Operator) -> Rollout:
    """The candidate serves the first step's share of users when this answers. There is one rollout at a time."""
    row = await services.rollouts.begin(given, actor=principal.name)
    return await _shown(services, row.id)


@router.get("/v1/rollouts", summary="List rollouts")
async def list_rollouts(services: S, principal: Viewer, after: After = None, limit: Limit = 20) -> Page[Rollout]:
    """Rollouts, newest first. The report of one that is under way is in `GET /v1/rollouts/{id}`."""
    rows = await services.database.read(lambda conn: rollouts.page(conn, after=after, limit=limit))
    items = [views.rollout(row) for row in rows.items]
    return page(items, has_more=rows.has_more, last_id=items[-1].id if items else None)


@router.get("/v1/rollouts/{rollout_id}", responses=errors(404), summary="One rollout")
async def get_rollout(rollout_id: str, services: S, principal: Viewer) -> Rollout:
    """Evidence, interval, sample-ratio check, guardrails, and the decision in words."""
    return await _shown(services, rollout_id)


@router.post("/v1/rollouts/{rollout_id}/promote", responses=errors(404, 409, 412), summary="Promote the candidate")
async def promote_rollout(
    rollout_id: str, services: S, principal: Operator, given: RolloutAction = _NOTHING
) -> Rollout:
    """A person decides: the candidate is stable for new requests when this answers, whatever the evidence says."""
    await services.rollouts.promote(rollout_id, actor=principal.name, reason=given.reason)
    return await _shown(services, rollout_id)


@router.post("/v1/rollouts/{rollout_id}/pause", responses=errors(404, 409), summary="Pause a rollout")
async def pause_rollout(rollout_id: str, services: S, principal: Operator, given: RolloutAction = _NOTHING) -> Rollout:
    """The arms stay as they are and votes count; no step and no promotion, but a rollback all the same."""
    await services.rollouts.pause(rollout_id, actor=principal.name, reason=given.reason)
    return await _shown(services, rollout_id)


@router.post("/v1/rollouts/{rollout_id}/resume", responses=errors(404, 409), summary="Go on after a pause")
async def resume_rollout(rollout_id: str, services: S, principal: Operator, given: RolloutAction = _NOTHING) -> Rollout:
    """The pause does not count against the rollout's duration."""
    await services.rollouts.resume(rollout_id, actor=principal.name, reason=given.reason)
    return await _shown(services, rollout_id)


@router.post("/v1/rollouts/{rollout_id}/abort", responses=errors(404, 409), summary="End a rollout")
async def abort_rollout(rollout_id: str, services: S, principal: Operator, given: RolloutAction = _NOTHING) -> Rollout:
    """Stable serves everybody when this answers."""
    await services.rollouts.abort(rollout_id, actor=principal.name, reason=given.reason)
    return await _shown(services, rollout_id)


async def _shown(services: Services, rollout_id: str) -> Rollout:
    return views.rollout(*await services.rollouts.look(rollout_id))
