"""What the paper published (Echterhoff et al. 2024, arXiv 2407.09435v2): its tables and settings as data.

Rates, accuracies and ROUGE are in percent and changes in points, as printed there; tasks have lm-eval's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muscle.update.alignment_settings import WeightName


@dataclass(frozen=True)
class UpdateRow:
    """One task and update of table 4, 5 or 6."""

    task: str
    update: str
    score_old: float
    """Accuracy, exact match or ROUGE-1, by task."""
    score_new: float
    score_compatible: float
    score_change: float
    """Compatible minus new."""
    nfr: float
    """Old to new."""
    nfr_change: float
    """dNFR_c = NFR_c - NFR."""
    nfr_change_percent: float
    """d%NFR_c = 100 dNFR_c / NFR."""
    mean_gain_change: float | None = None
    """d m_g; only ROUGE."""
    mean_regression_change: float | None = None
    """d m_r; only ROUGE."""


@dataclass(frozen=True)
class AblationRow:
    """One loss of table 7: PIQA, Llama 1->2."""

    loss: str
    """The paper's name for it."""
    weight: WeightName
    has_cross_entropy: bool
    nfr_change: float
    nfr_change_percent: float
    pfr_change: float
    score_change: float


TABLE_4 = (
    UpdateRow("hellaswag", "Llama 1->2", 72.74, 72.91, 79.53, +6.62, 10.27, -4.17, -40.60),
    UpdateRow("hellaswag", "Phi 1.5->2", 69.76, 78.02, 77.86, -0.16, 3.09, +0.24, +7.77),
    UpdateRow("hellaswag", "Phi 1->1.5", 32.38, 69.76, 69.86, +0.10, 2.47, -0.13, -5.26),
    UpdateRow("hellaswag", "Vicuna 1.3->1.5", 72.19, 71.54, 78.10, +6.56, 10.48, -4.06, -38.74),
    UpdateRow("piqa", "Llama 1->2", 74.86, 74.76, 79.27, +4.51, 11.59, -3.97, -34.25),
    UpdateRow("piqa", "Phi 1.5->2", 74.65, 78.78, 78.94, +0.16, 6.20, -0.11, -1.77),
    UpdateRow("piqa", "Phi 1->1.5", 59.03, 74.65, 74.70, +0.05, 7.78, -0.05, -0.64),
    UpdateRow("piqa", "Vicuna 1.3->1.5", 74.70, 75.52, 78.89, +3.37, 9.90, -2.88, -29.09),
)
"""Multiple choice: accuracy by the highest total log-likelihood."""

TABLE_5 = (
    UpdateRow("gsm8k", "Llama 1->2", 24.45, 33.09, 36.66, +3.57, 8.49, -0.91, -10.72),
    UpdateRow("gsm8k", "Phi 1.5->2", 30.02, 48.18, 50.68, +2.50, 5.88, -1.71, -29.08),
    UpdateRow("gsm8k", "Phi 1->1.5", 3.41, 30.02, 26.99, -3.03, 2.01, -0.04, -1.99),
    UpdateRow("gsm8k", "Vicuna 1.3->1.5", 26.72, 29.91, 31.84, +1.93, 11.60, -0.99, -8.53),
)
"""Exact match of the final number."""

TABLE_6 = (
    UpdateRow("samsum", "Llama 1->2", 32.06, 32.28, 34.79, +2.51, 48.96, -7.81, -15.95, +0.64, -1.13),
    UpdateRow("samsum", "Phi 1.5->2", 37.53, 36.15, 40.69, +4.54, 54.70, -15.02, -27.46, +0.24, -3.39),
    UpdateRow("samsum", "Phi 1->1.5", 30.92, 37.53, 38.76, +1.23, 32.60, -5.74, -17.61, -0.38, -0.59),
    UpdateRow("samsum", "Vicuna 1.3->1.5", 30.32, 30.88, 34.08, +3.20, 49.69, -10.98, -22.10, -0.02, -1.85),
)
"""ROUGE-1."""

TABLE_7_TASK, TABLE_7_UPDATE = "piqa", "Llama 1->2"
TABLE_7 = (
    AblationRow("mask: student wrong (the method)", "student_wrong", False, -3.97, -34.25, +0.54, +4.51),
    AblationRow("mask: v1 right", "old_right", False, -2.29, -19.76, -0.60, +1.68),
    AblationRow("a_v1 only", "always_old", False, -2.99, -25.80, -0.82, +2.17),
    AblationRow("CE + student wrong", "student_wrong", True, -3.10, -26.75, +0.38, +3.48),
    AblationRow("CE + token likelihood", "token_likelihood", True, -2.12, -18.29, -0.49, +1.63),
    AblationRow("CE + sequence likelihood", "sequence_likelihood", True, -1.96, -16.91, +0.05, +2.01),
)
"""Ablation of the masks."""

TABLE_8: Mapping[str, float | str] = {
    "lora.targets": "all-linear",
    "lora.rank": 128,
    "lora.alpha": 256,
    "lora.dropout": 0.0,
    "training.learning_rate": 1e-4,
    "training.epochs": 10,
    "training.accumulation": 8,
    "training.warmup_steps": 500,
    "training.weight_decay": 0.0,
    "training.tokens": "all",
    "training.select_by": "cross_entropy",
    "alignment.weight": "student_wrong",
    "alignment.temperature": 2.0,
    "tasks.validation_share": 0.2,
}
"""Settings by the key of a recipe that holds them, with those of sections 4 and 5 and appendix A.1. The share of
cross-entropy, batch size, optimiser and schedule are not published."""

TRAINED_UPDATES = ("Llama 1->2", "Phi 1.5->2", "Phi 1->1.5", "Vicuna 1.3->1.5")
MEASURED_UPDATES = (
    "Phi 1->2",
    "Llama 1->Vicuna 1.5",
    "Llama 1->Vicuna 1.3",
    "Vicuna 1.3->Llama 2",
    "Llama 2->Vicuna 1.5",
    "Llama 2->Llama 3",
    "Llama 1->Llama 3",
    "Vicuna 1.3->Llama 3",
    "Vicuna 1.5->Llama 3",
)
TABLE_9 = TRAINED_UPDATES + MEASURED_UPDATES
"""Pairs of models whose flips are measured; compatibility adapters were trained for the first four only."""

AUXILIARY_CROSS_ENTROPY = frozenset(
    {
        *((task, "Phi 1->1.5") for task in ("piqa", "samsum")),
        *((task, update) for task in ("gsm8k", "hellaswag") for update in ("Phi 1->1.5", "Phi 1.5->2")),
    }
)
"""Task and update with cross-entropy beside the divergences (appendix A.4)."""


def row_of(task: str, update: str | None) -> UpdateRow | None:
    """The row of table 4, 5 or 6 for a task and an update; None where the paper has none."""
    return next((row for row in (*TABLE_4, *TABLE_5, *TABLE_6) if (row.task, row.update) == (task, update)), None)


def ablation_of(task: str, update: str | None, weight: str | None, ce_share: float) -> AblationRow | None:
    """The row of table 7 for a loss; None where the paper has none, or table 7 is of another task or update."""
    if (task, update) != (TABLE_7_TASK, TABLE_7_UPDATE):
        return None
    return next((row for row in TABLE_7 if (row.weight, row.has_cross_entropy) == (weight, ce_share > 0)), None)
