"""Measuring: what changed for users between the evaluation logs of an old and a new model.

Logs are read (`logs`), paired by id (`pairing`), counted (`metrics`, `statistics`), gathered in one object
(`comparison`) and shown (`report`). Called `measure` because `muscle.compare` is the function itself.
"""

from muscle.measure.comparison import Alignment, Comparison, Estimate, Update, compare

__all__ = ["Alignment", "Comparison", "Estimate", "Update", "compare"]
