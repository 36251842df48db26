"""Which stages keep what teachers say on disk, by what an alignment asks of them: equal demands share a folder."""

from __future__ import annotations

from muscle.update.alignment_settings import BY_LIKELIHOOD, Across, AlignmentSettings
from muscle.update.settings import SideName


def states_folder(task: str, side: SideName, alignment: AlignmentSettings) -> str:
    """Name of the stage that keeps what a teacher says: of which texts, where they are not just the gold ones, and how.

    An old teacher that is heard across tokenizers leaves likelihoods or states; where the tokenizers decide, the level
    tells which of the two.
    """
    kind: list[str] = [alignment.texts] * (alignment.texts != "gold")
    kind += ["unlabelled"] * alignment.unlabelled
    if side == "old":
        if across := kept_across(alignment):
            kind += ["likelihoods" if across == "texts" else "states"]
        elif alignment.level != "token":
            kind += [alignment.level]
    dtype = [alignment.cache_dtype] * (alignment.cache_dtype != "auto")
    return "-".join([f"teachers/{task}/{side}", *kind, *dtype])


def kept_across(alignment: AlignmentSettings) -> Across | None:
    """One of the ways to hear an old teacher that read what the given way does; None: the tokenizers decide."""
    if not alignment.across:
        return None
    return "texts" if alignment.across in BY_LIKELIHOOD else "combined"


def reads_answers(alignment: AlignmentSettings) -> bool:
    """Whether texts of inputs without labels are what both task models answer."""
    return alignment.weight is not None and alignment.unlabelled and alignment.texts == "gold"


def answers_folder(task: str, alignment: AlignmentSettings) -> dict[str, str]:
    """Keyword and name of the stage that keeps what both models answer, where that is learnt from."""
    return {"answers": f"teachers/{task}/answers"} if reads_answers(alignment) else {}
