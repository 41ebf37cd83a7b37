"""The endpoints, in groups."""

from plaudit._binding import D_co, Resource, endpoint
from plaudit._core import Call, ask, post, reader
from plaudit.resources.chat import Chat, Completions
from plaudit.resources.feedback import Comparisons, Events, FeedbackVotes
from plaudit.resources.governance import Audit, Keys
from plaudit.resources.replicas import Replicas
from plaudit.resources.rollouts import Rollouts
from plaudit.resources.training import Training
from plaudit.resources.versions import Aliases, Versions
from plaudit.wire.ops import Health
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
    def rollback(self, to: str = "previous", reason: str | None = None) -> Call[Alias]:
        """Move `stable` back.

        Args:
            to: a version's name, or `previous`: what was stable before the last move.
            reason: kept in the audit log.
        """
        return post("/v1/rollback", Alias, ask(RollbackRequest, to=to, reason=reason))
