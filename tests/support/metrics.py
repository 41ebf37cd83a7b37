"""What the server exports, for tests of everything that names a metric."""

import re
from dataclasses import dataclass

from prometheus_client.metrics import MetricWrapperBase

from plaudit_server.telemetry import Telemetry

_SAMPLES = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("",), "gauge": ("",)}


@dataclass(frozen=True)
class Metric:
    """One family, under the name that its samples have."""

    name: str
    kind: str
    labels: tuple[str, ...]
    description: str

    @property
    def label_words(self) -> str:
        return ", ".join(f"`{label}`" for label in self.labels) or "—"

    @property
    def samples(self) -> set[str]:
        """Names that a query may use."""
        return {self.name + ending for ending in _SAMPLES[self.kind]}


def exported() -> list[Metric]:
    """Every family that `/metrics` has."""
    telemetry = Telemetry()
    ours = [each for each in vars(telemetry).values() if isinstance(each, MetricWrapperBase)]
    labels = {each._name: tuple(each._labelnames) for each in ours}
    return [
        Metric(
            name=family.name + ("_total" if family.type == "counter" else ""),
            kind=family.type,
            labels=labels.get(family.name, ()),
            description=family.documentation.rstrip("."),
        )
        for family in telemetry.registry.collect()
    ]


def labels_of_samples() -> dict[str, set[str]]:
    """Each name that a query may use, and the labels that it has."""
    return {
        sample: {*metric.labels, *(["le"] if sample.endswith("_bucket") else [])}
        for metric in exported()
        for sample in metric.samples
    }


def value(text: str, name: str, **labels: str) -> float | None:
    """One sample of a scraped page; None where there is none."""
    wanted = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
    line = re.escape(name + (f"{{{wanted}}}" if wanted else ""))
    found = re.search(rf"^{line} (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found.group(1))
