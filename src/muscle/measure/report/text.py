"""What several reports say in the same words: numbers with their units and intervals, the sentence, the signature."""

import hashlib

from muscle import __version__
from muscle.measure.results import Comparison, Estimate, Measures


def percent(estimate: Estimate) -> str:
    """A share in percent with its interval."""
    return _with_interval(estimate, scale=100, unit=" %")


def change(estimate: Estimate, *, scale: float = 100, unit: str = " pp") -> str:
    """A difference, in percentage points unless said otherwise; always with its sign."""
    return _with_interval(estimate, scale=scale, unit=unit, sign="+")


def number(estimate: Estimate) -> str:
    """A graded score or a size of change, in the score's own unit."""
    return _with_interval(estimate, scale=1, unit="", digits=4)


def _with_interval(estimate: Estimate, *, scale: float, unit: str, sign: str = "", digits: int = 2) -> str:
    if estimate.value is None:
        return "undefined"
    value = f"{scale * estimate.value:{sign}.{digits}f}{unit}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{scale * estimate.low:{sign}.{digits}f}, {scale * estimate.high:{sign}.{digits}f}]"


def points(estimate: Estimate) -> str:
    """A share in percent, bare, for tables by task."""
    return "-" if estimate.value is None else f"{100 * estimate.value:.2f}"


def p_value(p: float | None) -> str:
    """Four digits, or one and the power of ten."""
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 0.0001 else f"{p:.1e}"


def sentence(measures: Measures) -> str:
    """The result in plain words."""
    update = measures.update
    if update.n == 0:
        smooth = update.smooth
        if smooth is None or smooth.n == 0:
            return "No item is scored in every log, so nothing can be said."
        return f"Of {smooth.n} graded answers {smooth.gains} became better and {smooth.regressions} worse."
    old_right = update.both_right + update.negative_flips
    if old_right:
        lost = f"{update.negative_flips} became wrong ({100 * update.negative_flips / old_right:.1f} %)"
        text = f"Of {old_right} answers that were right, {lost}; {update.positive_flips} wrong ones became right."
    else:
        text = f"No answer was right before; {update.positive_flips} wrong ones became right."
    if measures.compatible and measures.alignment:
        fixed, made = measures.alignment.fixed, measures.alignment.made
        text += (
            f" With the compatible model {measures.compatible.negative_flips} became wrong:"
            f" {fixed} of the {update.negative_flips} are fixed, {made} newly made."
        )
    return text


def signature(comparison: Comparison) -> str:
    """What it takes to get the same numbers again, on one line (after sacrebleu's)."""
    hashes = "|".join(f"{role}:{source.sha256[:8]}" for role, source in comparison.inputs.items())
    update = comparison.update
    settings = hashlib.sha256(repr(sorted(comparison.settings.items())).encode(errors="backslashreplace")).hexdigest()
    return (
        f"muscle:{__version__}|{hashes}|n:{update.n}|unscored:{update.unscored}|confidence:{comparison.confidence:g}"
        f"|seed:{comparison.seed}|resamples:{comparison.resamples}|settings:{settings[:8]}"
    )
