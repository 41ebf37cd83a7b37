"""The endpoints, in groups."""

from datetime import datetime

from plaudit._binding import D_co, Resource, endpoint, following
from plaudit._core import Call, Reply, ask, get, post, reader
from plaudit.resources.chat import Chat, Completions
from plaudit.resources.feedback import Comparisons, Events, FeedbackVotes
from plaudit.resources.governance import Audit, Keys
from plaudit.resources.replicas import Replicas
from plaudit.resources.rollouts import Rollouts
from plaudit.resources.training import Training
from plaudit.resources.versions import Aliases, Versions
from plaudit.wire.ops import Health
from plaudit.wire.overview import Overview, VoteStatistics
from plaudit.wire.versions import Alias, RollbackRequest

PROBE_TIMEOUT_S = 10.0


class Resources(Resource[D_co]):
    """What both clients offer."""

    def __init__(self, driver: D_co) -> None:
        super().__init__(driver)
        self.chat = Chat(driver)
        self.completions = Completions(driver)
        self.feedback = FeedbackVotes(driver)
        self.comparisons = Comparisons(driver)
        self.events = Events(driver)
        self.versions = Versions(driver)
        self.aliases = Aliases(driver)
        self.rollouts = Rollouts(driver)
        self.training = Training(driver)
        self.replicas = Replicas(driver)
        self.keys = Keys(driver)
        self.audit = Audit(driver)

    @endpoint
    def health(self) -> Call[Health]:
        """Whether the server's process answers. Not tried again."""
        return Call("GET", "/healthz", reader(Health), retries=False, timeout_s=PROBE_TIMEOUT_S)

    @endpoint
    def ready(self) -> Call[Health]:
        """Whether a chat would be answered: look at `status` and `engine`. A 503 that says so is an answer here."""
        return Call(
            "GET", "/readyz", reader(Health), retries=False, timeout_s=PROBE_TIMEOUT_S, accepts=frozenset({503})
        )

    @endpoint
    def metrics(self) -> Call[str]:
        """The server's figures in Prometheus' text format."""
        return Call("GET", "/metrics", lambda reply: reply.body.decode(), headers={"accept": "text/plain"})

    @endpoint
    def overview(self) -> Call[Overview]:
        """How the loop stands: who serves, what waits, the newest run, the last refusal, the rollout."""
        return get("/v1/overview", Overview)

    @following
    def live(self) -> Call[Reply]:
        """Each overview as it changes: the first at once, the others within seconds. Leave the loop to end it.

        Raises:
            AuthenticationError: the key was revoked meanwhile.
        """
        return Call("GET", "/v1/live", lambda reply: reply, headers={"accept": "text/event-stream"}, stream=True)

    @endpoint
    def vote_statistics(
        self,
        *,
        key: str | None = None,
        version: str | None = None,
        since: datetime | None = None,
        bucket_seconds: int | None = None,
    ) -> Call[VoteStatistics]:
        """Thumbs up and down by version over time, with 95 % intervals; of the last 30 days by days, unless told."""
        return get(
            "/v1/statistics/votes", VoteStatistics, key=key, version=version, since=since, bucket_seconds=bucket_seconds
        )

    @endpoint
    def rollback(self, to: str = "previous", reason: str | None = None) -> Call[Alias]:
        """Move `stable` back.

        Args:
            to: a version's name, or `previous`: what was stable before the last move.
            reason: kept in the audit log.
        """
        return post("/v1/rollback", Alias, ask(RollbackRequest, to=to, reason=reason))
