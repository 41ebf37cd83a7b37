"""Engine replicas."""

from plaudit._binding import D_co, Resource, endpoint
from plaudit._core import Call, ask, delete, get, post, segment
from plaudit.wire.base import Page
from plaudit.wire.ops import Replica, ReplicaAdd


class Replicas(Resource[D_co]):
    """`client.replicas`."""

    @endpoint
    def list(self) -> Call[Page[Replica]]:
        """All of them, with their health as the answering server sees it."""
        return get("/v1/replicas", Page[Replica])

    @endpoint
    def add(self, url: str) -> Call[Replica]:
        """Put a vLLM server on the fleet's list, or a drained or removed one back on it."""
        return post("/v1/replicas", Replica, ask(ReplicaAdd, url=url))

    @endpoint
    def drain(self, name: str) -> Call[Replica]:
        """Give it nothing new; `detail` says `drained` when its last answer has ended."""
        return post(f"/v1/replicas/{segment(name)}/drain", Replica)

    @endpoint
    def remove(self, name: str) -> Call[Replica]:
        """Take it off the list; answers that it has begun end by themselves."""
        return delete(f"/v1/replicas/{segment(name)}", Replica)
