"""A FAKE of the server for the tuning's registration: `FakeServer`, and a run without a batch. It proves nothing."""

import json
from typing import Any

from pydantic import BaseModel

from plaudit.wire.training import Run
from tests.support.fake_server import NOW, FakeServer, Refusal


class TuningServer(FakeServer):
    """Takes `POST /v1/training/runs` with `batch_id: null`, for which it makes an empty batch.

    Args:
        knows_tuning: False plays a server that wants a batch.
    """

    def __init__(self, *, knows_tuning: bool = True) -> None:
        super().__init__()
        self.knows_tuning = knows_tuning
        self.asked: list[dict[str, Any]] = []

    def _answer(self, path: str, body: bytes) -> BaseModel:
        asked = json.loads(body) if body else {}
        if path != "/v1/training/runs" or asked.get("batch_id", "") is not None:
            return super()._answer(path, body)
        if not self.knows_tuning:
            raise Refusal(422, "batch_id: Input should be a valid string", code="invalid_request")
        self.asked.append(asked)
        batch_id, number = f"batch-{len(self.batches)}", len(self.runs) + 1
        self.batches[batch_id] = {"worker": asked["worker"], "state": "leased", "records": [], "until": 1e12}
        run = Run(
            id=f"run-{number}",
            batch_id=batch_id,
            version=f"v{number}",
            parent=asked["parent"],
            state="running",
            created_at=NOW,
            updated_at=NOW,
        )
        self.runs[run.id] = run
        return run
