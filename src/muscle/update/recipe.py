"""Settings of a model update, without the libraries that carry them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class LoraSettings:
    """Shape of an adapter; it sits on all linear layers, without dropout (the paper's table 8)."""

    rank: int
    alpha: int


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how fast to train: AdamW without weight decay, cosine schedule to zero."""

    epochs: int
    """With a validation set, the weights of the epoch with the lowest cross-entropy there are kept."""
    learning_rate: float
    batch_size: int = 64
    warmup_steps: int = 0
    seed: int = 0


@dataclass(frozen=True)
class AlignmentSettings:
    """What a compatibility adapter learns from (the paper's section 4 and appendix A.4)."""

    weight: Literal["student_wrong", "always_old"] | None
    """Which tokens the old teacher rules: a function of `muscle.update.weights`. None: no teachers, cross-entropy."""
    temperature: float = 1.0
    """T > 0 of both softmaxes."""
    ce_share: float = 0.0
    """1 - lambda, the share of cross-entropy, in [0, 1)."""
