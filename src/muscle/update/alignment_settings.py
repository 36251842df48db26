"""What a compatibility adapter learns from, as settings: the defaults are the paper's, and what goes together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from muscle.update.settings import Positive, Settings, Share, SideName, TargetTokens

CacheDtype = Literal["auto", "float32", "bfloat16"]
WeightName = Literal[
    "student_wrong",
    "old_right",
    "always_old",
    "token_likelihood",
    "sequence_likelihood",
    "mixture",
    "old_right_else_mixture",
    "old_right_item_else_mixture",
    "likelier",
]
MIXTURES = ("mixture", "old_right_else_mixture", "old_right_item_else_mixture")
"""The weights that are 1 everywhere with an old_share of 1."""
Across = Literal["combined", "likelihood", "texts", "shared", "projected", "ranks"]
EmphasisName = Literal["focal", "constrained", "old_likelihood"]

PLAIN = {"texts": "gold", "unlabelled": False, "level": "token", "distance": "divergence", "emphasis": None}
"""Keys of `alignment` that the trained controls and the mixtures of a search do not take over from a recipe."""
KNOWN_METHODS: Mapping[str, Mapping[str, Any]] = {"auto": {"search": {}}, "muscle": {}}
"""Methods that `align` knows beside the recipe's: the search, and the alignment as given, by default the paper's."""


class SearchSettings(Settings, frozen=True, kw_only=True):
    """How `--method auto` chooses a compatibility adapter on the validation items."""

    budget: Annotated[float, msgspec.Meta(ge=1, le=1e6)] = 4.0
    """Training tokens of the whole search, in units of one alignment with the settings at hand on gold texts. The
    alignment as given is the last candidate, which a small budget does not reach."""
    aim: Literal["nfr", "relative_nfr"] = "nfr"
    """What is to be small: the negative flip rate, or that in proportion to what independent errors would give."""
    floor: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)] = 1.0
    """By how many standard errors of the paired difference the accuracy may lie below the new task model's."""
    old_shares: tuple[Share, ...] = (0.8, 0.6, 0.4, 1.0)
    """Candidates of old_share. Without any, only the alignment as given is left; so it is without ce_shares."""
    ce_shares: tuple[Share, ...] = (0.0, 0.3)
    """Candidates of ce_share."""
    lengths: tuple[Share, ...] = (0.25, 0.5, 1.0)
    """Of the full training, rising to 1: many candidates are trained for the first, the best of them for the next."""


class AlignmentSettings(Settings, frozen=True, kw_only=True):
    """What a compatibility adapter learns from (the paper's section 4, appendix A.4 and table 7)."""

    weight: WeightName | None = "student_wrong"
    """Which tokens the old teacher rules: a function of `muscle.update.weights`. null: no teachers, cross-entropy."""
    old_share: Share = 0.5
    """a of the mixtures, whose teacher is softmax(a z_old + (1 - a) z_new); of likelier, the share before the text is
    seen."""
    texts: Literal["gold", "choices"] = "gold"
    """What is learnt from an item of multiple choice: the text with its gold choice, or those of all its choices."""
    unlabelled: bool = False
    """Learn also from the inputs without labels that the task's `unlabelled` names: from all choices, or else from what
    both teachers together answer. They have no cross-entropy."""
    level: Literal["token", "choice"] = "token"
    """What is compared with the teacher: each token's distribution, or, of multiple choice, the distribution over an
    item's choices by their total log-likelihoods (which needs texts: choices)."""
    distance: Literal["divergence", "logits"] = "divergence"
    """From the teacher: the KL divergence, or half the mean squared difference of its ten largest logits, centred
    (logit-difference inhibition)."""
    emphasis: EmphasisName | None = None
    """How many times a token's distance from the teacher counts: a function of `muscle.update.weights`; null: once."""
    focal_beta: Positive = 5.0
    """beta of the emphasis focal: the distance counts 1 + beta times where the old model is right."""
    across: Across | None = None
    """How an old model with another tokenizer is heard. likelihood: by how likely it finds stretches of text between
    boundaries that both tokenizations have (ALM); texts: by how likely it finds each whole text; and, on tokens that
    both have alone, shared: by its probabilities of tokens that both vocabularies hold, projected: of all tokens, each
    as the student would begin it, ranks: by sorted probabilities (ULD); combined: there as shared, elsewhere by
    likelihood. null: token by token if the tokenizers agree on all texts, else combined, or with level: choice
    likelihood."""
    chunk_temperature: Positive | None = 100.0
    """tau of ALM, which compares likelihoods to the power 1/tau; null: its limit."""
    boundary_threshold: Share = 0.1
    """A stretch of text ends only where the old model finds the start of a new word likelier than this; 0: at every
    common boundary."""
    temperature: Positive = 2.0
    """T of both softmaxes."""
    squared_temperature: bool = False
    """Multiply the divergence by T^2, which keeps the size of its gradient; the paper does not."""
    ce_share: Share = 0.0
    """1 - lambda, the share of cross-entropy."""
    teacher_cache: Literal["memory", "disk", "off"] = "memory"
    """Where the teachers' final hidden states over the training texts are kept, computed once; off: teachers run beside
    the student, which takes no space and computes them again each epoch. What an old one with another tokenizer says is
    then in memory."""
    cache_dtype: CacheDtype = "auto"
    """Of the kept states; auto is the teacher's own, so that nothing is lost."""
    search: SearchSettings | None = None
    """Choose weight, old_share, ce_share, texts and the length of training on the validation items, in place of what
    these keys say: what `--method auto` does."""

    @property
    def teachers(self) -> tuple[SideName, ...]:
        """The task models that are ever read."""
        if self.weight is None:
            return ()
        if self.weight == "always_old" or (self.weight in MIXTURES and self.old_share == 1):
            return ("old",)
        if self.weight == "mixture" and self.old_share == 0 and self.emphasis is None:
            return ("new",)
        return ("old", "new")


NEED_GOLD = ("old_right", "token_likelihood", "sequence_likelihood", "constrained")
"""Weights and emphases that take every text for a right one."""
NEED_ANSWERS = ("old_right_else_mixture", "old_right_item_else_mixture", "likelier", "focal")
"""Those that treat a right text and others of its item differently, and so the context with which all of them begin."""

NEED_WHOLE = ("sequence_likelihood", "old_right_item_else_mixture", "likelier", "old_likelihood")
"""Those that read a text's likelihood."""
BY_LIKELIHOOD = ("likelihood", "texts")
"""Ways across tokenizers that know the likelihood of the gold text alone."""
BY_TOKEN = ("shared", "projected", "ranks")
"""Those that know distributions over tokens alone, put into other tokens; combined knows both."""
LOGITS_ACROSS = (
    "distance: logits compares tokens, and an old model with another tokenizer is heard by likelihoods, too; set "
    "distance to divergence, or across to shared or projected"
)


def default_across(level: str) -> Across:
    """How an old model with another tokenizer is heard where the settings do not say it."""
    return "likelihood" if level == "choice" else "combined"


def check_alignment(settings: AlignmentSettings, tokens: TargetTokens) -> str | None:
    """What settings that are in order one by one make no sense together, and what to do; None: they do.

    The first word is the key at fault.

    Args:
        settings: What to learn from.
        tokens: Which of the texts' tokens are targets.
    """
    if settings.weight is None:
        for key in ("emphasis", "level", "distance"):
            if getattr(settings, key) != getattr(AlignmentSettings(), key):
                return f"{key} is about teachers, and weight: null has none; name a weight, or leave {key} out"
        return None
    if settings.level == "choice":
        if settings.texts == "gold":
            return "level: choice compares the choices of an item, and texts: gold is one of them; set texts to choices"
        if settings.emphasis:
            return "emphasis is of tokens, and level: choice compares choices; leave one of them out"
        if settings.distance == "logits":
            return "distance: logits is of tokens, and level: choice compares choices; leave one of them out"
    for key, name in (("weight", settings.weight), ("emphasis", settings.emphasis)):
        if name in NEED_GOLD and (settings.texts == "choices" or settings.unlabelled):
            return f"{key}: {name} takes each text for a right one; set texts to gold and unlabelled to false"
        if name in NEED_ANSWERS and settings.texts == "choices" and tokens == "all":
            return f"{key}: {name} would rule one context in several ways; set tokens of alignment_training to answer"
    if settings.across and settings.across not in BY_TOKEN and settings.distance == "logits":
        return LOGITS_ACROSS
    if settings.across and settings.across not in BY_LIKELIHOOD and settings.level == "choice":
        return f"across: {settings.across} is of tokens, and level: choice compares choices; leave one of them out"
    if settings.across in BY_TOKEN:
        if settings.across == "ranks" and settings.distance == "logits":
            return "across: ranks has a distance of its own; leave distance: logits out"
        for key, name in (("weight", settings.weight), ("emphasis", settings.emphasis)):
            if name in NEED_WHOLE:
                return (
                    f"{key}: {name} reads whole texts, and across: {settings.across} single tokens; set across to "
                    "likelihood"
                )
    if settings.distance == "logits" and settings.squared_temperature:
        return "squared_temperature is of the divergence, and distance: logits has no temperature; leave one out"
    return None
