"""Measuring: from evaluation logs to a Comparison. Needs no torch, and never imports `muscle.update`.

One way: logs -> pairing -> metrics and statistics -> measures -> comparison -> report, gate.
"""

from muscle.measure.comparison import compare
from muscle.measure.results import Alignment, Comparison, Estimate, Measures, Smooth, Update

__all__ = ["Alignment", "Comparison", "Estimate", "Measures", "Smooth", "Update", "compare"]
