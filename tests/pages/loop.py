"""The loop's other parts, played through the real API: raters, a trainer that trains nothing, versions."""

from typing import Any

import httpx

from tests.pages.conftest import Site
from tests.support.server import version_body
from tests.support.stack import wait_for

Json = dict[str, Any]


def check(name: str, value: float, half: float, bound: str, *, passed: bool = True) -> Json:
    """One line of a gate."""
    told = {"name": name, "passed": passed, "value": value, "low": value - half, "high": value + half}
    return told | {"n": 64, "bound": bound}


def gate(win_rate: float, *, passed: bool = True) -> Json:
    """A gate as the trainer's; its win rate decides."""
    checks = [
        check("reward_auroc", 0.71, 0.06, "AUROC on unseen votes ≥ 0.55"),
        check("win_rate", win_rate, 0.09, "lower end of the 95 % interval ≥ 0.48", passed=passed),
        check("kl", 1.4 + win_rate, 0.4, "nats an answer ≤ 8"),
        check("length_growth", 0.04, 0.05, "mean length grows by ≤ 20%"),
    ]
    return {"passed": passed, "checks": checks}


class Loop:
    """Raters and trainer of one site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.workers = 0

    def call(self, method: str, path: str, body: Json | None = None) -> Any:
        """What the server answers; fails where it refuses."""
        answer: httpx.Response = self.site.admin.request(method, path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def ask(self, text: str = "Say hello.", **fields: Any) -> Json:
        """One answered chat."""
        body = {"messages": [{"role": "user", "content": text}], "train": True} | fields
        found: Json = self.call("POST", "/v1/chat/completions", body)
        return found

    def rate(self, votes: list[bool], *, model: str = "policy", user: str = "rater") -> list[str]:
        """An answer and a vote for each of the values, each by a user of their own."""
        ids = []
        for number, value in enumerate(votes):
            name = f"{user}-{number}"
            ids.append(self.ask(f"Question {number} of {user}?", user=name, model=model)["id"])
            self.call("POST", "/v1/feedback", {"response_id": ids[-1], "value": value, "end_user": name})
        return ids

    def run(self, votes: int = 4) -> tuple[Json, Json]:
        """A batch of fresh votes and the run begun on it."""
        self.workers += 1
        worker = f"worker-{self.workers}"
        self.rate([number % 2 == 0 for number in range(votes)], user=worker)
        batch = self.call("POST", "/v1/batches:lease", {"worker": worker, "min_records": votes, "max_records": 1000})
        assert batch["state"] == "leased", batch
        return batch, self.call("POST", "/v1/training/runs", {"batch_id": batch["id"], "worker": worker})

    def report(self, run: Json, **said: Any) -> None:
        """What a trainer tells of a run."""
        self.call("POST", f"/v1/training/runs/{run['id']}/metrics", said)

    def register(self, batch: Json, run: Json, report: Json) -> str:
        """Register what the run would have published; wait for its proof where the gate passed it."""
        name: str = run["version"]
        outcome = "candidate" if report["passed"] else "rejected"
        body = version_body(self.site.settings, run, batch) | {"gate": report, "outcome": outcome}
        self.call("POST", "/v1/versions", body | {"metrics": {"ppo/kl": 1.9, "reward/heldout_auroc": 0.71}})
        self.until(lambda: self.call("GET", f"/v1/versions/{name}")["state"] in ("ready", "rejected"))
        return name

    def publish(self, win_rate: float = 0.6, *, passed: bool = True) -> str:
        """A version with everything that a trainer tells of it."""
        batch, run = self.run()
        for step in range(1, 7):
            metrics = {"ppo/kl": 0.3 * step, "ppo/reward": 0.1 * step - 0.2, "ppo/length": 30.0 + step}
            self.report(run, stage="policy", step=step, progress=step / 6, metrics=metrics)
        return self.register(batch, run, gate(win_rate, passed=passed))

    def stable(self) -> str:
        """Who serves."""
        found: str = next(a["version"] for a in self.call("GET", "/v1/aliases")["data"] if a["name"] == "stable")
        return found

    def audited(self) -> list[Json]:
        """The newest entries of the audit log."""
        found: list[Json] = self.call("GET", "/v1/audit")["data"]
        return found

    def until(self, look: Any) -> None:
        """Wait for what happens in the background."""
        wait_for("the server", look, seconds=15, pause=0.05)
