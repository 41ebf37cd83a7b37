"""Users of a rollout, as rows: answers that an arm was drawn for, and votes on them."""

from dataclasses import dataclass, field
from typing import Any

from plaudit_server.domain.ids import new_completion_id
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.traffic import in_share
from plaudit_server.store import Connection, feedback, interactions, rollouts
from plaudit_server.store.database import Database
from tests.support.store_rows import a_vote, an_interaction


@dataclass
class Crowd:
    """Users who come, ask once and vote once, each on the arm that the server would give them."""

    database: Database
    came: int = 0
    answers: dict[str, list[str]] = field(default_factory=dict)

    async def visit(
        self,
        *,
        stable: tuple[int, int] = (0, 0),
        canary: tuple[int, int] = (0, 0),
        silent: tuple[int, int] = (0, 0),
        on_canary: dict[str, Any] | None = None,
        on_stable: dict[str, Any] | None = None,
    ) -> None:
        """Seed users: (up, down) voters of each arm, and `silent` ones of (stable, canary) who only ask."""
        wanted = {
            "stable": [1.0] * stable[0] + [-1.0] * stable[1] + [0.0] * silent[0],
            "canary": [1.0] * canary[0] + [-1.0] * canary[1] + [0.0] * silent[1],
        }
        changes = {"stable": on_stable or {}, "canary": on_canary or {}}
        await self.database.write(lambda conn: self._seed(conn, wanted, changes))

    async def _seed(self, conn: Connection, wanted: dict[str, list[float]], changes: dict[str, Any]) -> None:
        row = await rollouts.live(conn)
        assert row is not None
        while any(wanted.values()):
            self.came += 1
            user = f"eu_{self.came}"
            arm = "canary" if in_share(row.id, user, row.weight) else "stable"
            if not wanted[arm]:
                continue
            version = row.candidate if arm == "canary" else row.stable
            given = {"arm": arm, "version": version, "segment": row.segment, "end_user": user, "ttft_ms": 200.0}
            given |= {"created_at_ms": now_ms(), "refused": False, "completion_tokens": 90} | changes[arm]
            answer = an_interaction(new_completion_id(), **given)
            await interactions.add(conn, answer)
            self.answers.setdefault(arm, []).append(answer.id)
            value = wanted[arm].pop()
            if value:
                await feedback.put(conn, a_vote(answer.id, value, end_user=user, received_at_ms=now_ms()))
