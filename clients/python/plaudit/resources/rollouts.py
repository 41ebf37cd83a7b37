"""Rollouts: a candidate on a growing share of users, judged by their votes."""

from collections.abc import Sequence

from plaudit._binding import D_co, Resource, endpoint, pages
from plaudit._core import Call, ask, get, post, segment
from plaudit.wire.base import Page
from plaudit.wire.rollouts import Guardrails, Rollout, RolloutAction, RolloutCreate, RolloutStep


class Rollouts(Resource[D_co]):
    """`client.rollouts`."""

    @endpoint
    def start(
        self,
        candidate: str,
        steps: Sequence[RolloutStep | float],
        *,
        min_raters: int | None = None,
        max_duration: float | None = None,
        guardrails: Guardrails | None = None,
        auto_promote: bool | None = None,
        auto_rollback: bool | None = None,
        reason: str | None = None,
    ) -> Call[Rollout]:
        """Begin a rollout: `candidate` serves the first step's share of users.

        Args:
            steps: shares of users, growing; a plain number is a step of an hour at least.
            min_raters: raters an arm before a promotion.
            max_duration: seconds after which it ends undecided.
            guardrails: what the candidate may cost.
            auto_promote: promote without a person where the evidence allows it.
            auto_rollback: roll back without a person where the evidence demands it.
            reason: kept in the audit log.

        Raises:
            ConflictError: the version is not ready or serves already, or a rollout is under way.
        """
        made = [step if isinstance(step, RolloutStep) else RolloutStep(weight=step) for step in steps]
        body = ask(
            RolloutCreate,
            candidate=candidate,
            steps=made,
            min_raters=min_raters,
            max_duration=max_duration,
            guardrails=guardrails,
            auto_promote=auto_promote,
            auto_rollback=auto_rollback,
            reason=reason,
        )
        return post("/v1/rollouts", Rollout, body)

    @endpoint
    def list(self, *, limit: int | None = None, after: str | None = None) -> Call[Page[Rollout]]:
        """Rollouts, newest first."""
        return get("/v1/rollouts", Page[Rollout], limit=limit, after=after)

    iterate = pages(list)

    @endpoint
    def get(self, rollout_id: str) -> Call[Rollout]:
        """One rollout: evidence, interval, guardrails, and the decision in words."""
        return get(f"/v1/rollouts/{segment(rollout_id)}", Rollout)

    @endpoint
    def promote(self, rollout_id: str, reason: str | None = None) -> Call[Rollout]:
        """Make its candidate stable, whatever the evidence says.

        Raises:
            PreconditionFailedError: somebody has moved `stable` since it began.
        """
        return _act(rollout_id, "promote", reason)

    @endpoint
    def pause(self, rollout_id: str, reason: str | None = None) -> Call[Rollout]:
        """Go no further by itself; a rollback still happens."""
        return _act(rollout_id, "pause", reason)

    @endpoint
    def resume(self, rollout_id: str, reason: str | None = None) -> Call[Rollout]:
        """Go on after a pause."""
        return _act(rollout_id, "resume", reason)

    @endpoint
    def abort(self, rollout_id: str, reason: str | None = None) -> Call[Rollout]:
        """End it; stable serves everybody."""
        return _act(rollout_id, "abort", reason)


def _act(rollout_id: str, verb: str, reason: str | None) -> Call[Rollout]:
    return post(f"/v1/rollouts/{segment(rollout_id)}/{verb}", Rollout, ask(RolloutAction, reason=reason))
