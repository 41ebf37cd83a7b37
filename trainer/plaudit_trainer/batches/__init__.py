"""From votes to a preference batch: singles, pairs and trajectories, weighted, capped, split, every drop counted.

No model here: text is turned into tokens by the `Encoder` that the caller brings.
"""

from plaudit_trainer.batches.building import build, remember
from plaudit_trainer.batches.bursts import PhraseHistory
from plaudit_trainer.batches.examples import (
    Encoder,
    Example,
    Pair,
    PreferenceBatch,
    Single,
    Tokens,
    Trajectory,
    cluster_of,
)
from plaudit_trainer.batches.signals import unusable_sampling
from plaudit_trainer.batches.splits import Split, Splits, heldout_clusters, splits_of

__all__ = [
    "Encoder",
    "Example",
    "Pair",
    "PhraseHistory",
    "PreferenceBatch",
    "Single",
    "Split",
    "Splits",
    "Tokens",
    "Trajectory",
    "build",
    "cluster_of",
    "heldout_clusters",
    "remember",
    "splits_of",
    "unusable_sampling",
]
