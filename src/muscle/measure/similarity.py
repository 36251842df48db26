"""Scores of an answer against reference texts, for logs that hold texts and no score. All lie in [0, 1], 1 is best."""

import difflib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cache, partial
from typing import TypeVar

from muscle.errors import MuscleError, quoted

TextScore = Callable[[str, Sequence[str]], float]
"""(answer, its references) -> score."""
_T = TypeVar("_T")

_MEMO_CHARACTERS = 1 << 22  # measured on texts of 20 to 4000 characters: a full memo takes up to 70 MB
_MEMO_LONGEST = 1 << 12
_MEMO_ENTRY = 64  # what an entry takes beside its text, in characters

_BLANKED = bytes(byte if bytes([byte]).isalnum() else ord(" ") for byte in range(256))
"""Each byte: itself where it is an ASCII letter or digit, else a space."""

_NUMBER = re.compile(
    r"(?P<sign>[-+−]?\$?|\$[-+−])"
    r"(?P<digits>(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?P<exponent>[eE][-+]?[0-9]{1,3})?"
    r"\.?"
)


class _Memo(dict[str, _T]):
    """What was made of each text, kept until the texts exceed a number of characters; then it starts anew.

    Threads may share one: at worst they make the same twice, or keep a few texts more.
    """

    def __init__(self, make: Callable[[str], _T]) -> None:
        super().__init__()
        self._make = make
        self._room = _MEMO_CHARACTERS

    def __missing__(self, text: str) -> _T:
        made = self._make(text)
        if len(text) <= _MEMO_LONGEST:  # what rougeL keeps of a text grows with its square
            self._room -= len(text) + _MEMO_ENTRY
            if self._room < 0:
                self.clear()
                self._room = _MEMO_CHARACTERS
            self[text] = made
        return made


def as_number(text: str) -> str | None:
    """Canonical text of a number, or None where the text as a whole is not one: 1,234 and $1234.0 both give "1234".

    Accepted besides ASCII digits: surrounding whitespace, a sign (-, + or U+2212), one $ before or after it, commas
    between thousands, a fraction, an exponent of at most 3 digits, and the full stop of a sentence. No number, hence
    None: other commas (1,5), percentages (50% may mean 50 or 0.5), units and words, NaN, Infinity, and longer exponents
    (1e999999999 would fill the memory).
    """
    found = _NUMBER.fullmatch(text.strip())
    if not found:
        return None
    sign = "-" if "-" in found["sign"] or "−" in found["sign"] else ""
    # Exact at any length: neither the constructor nor "f" without a precision rounds.
    number = Decimal(sign + found["digits"].replace(",", "") + (found["exponent"] or ""))
    if not number:
        return "0"  # also for -0
    plain = format(number, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def scorer(name: str, *, numeric: bool = False, stem: bool = False) -> TextScore:
    """A function (answer, references) -> score in [0, 1].

    Of several references the best one counts (exact_match, ROUGE, chrF), or all together (BLEU). The function remembers
    what it made of references: use one for all items, and score all models' answers to an item in turn.

    Args:
        name: One of TEXT_SCORES.
        numeric: For exact_match, also accept the same number written differently (see as_number).
        stem: For ROUGE, compare Porter stems of words, as lm-eval's cnn_dailymail does; `evaluate` does not by default.

    Raises:
        MuscleError: No score has that name, the option is not for it, or, from the function, there is no reference.
    """
    if name not in TEXT_SCORES:
        raise MuscleError(f"unknown text score {quoted(name)}; {_remedy(name)}")
    options = {option: True for option, given in (("numeric", numeric), ("stem", stem)) if given}
    for option in options:
        if name not in _SCORES_WITH[option]:
            others = _listed(_SCORES_WITH[option])
            raise MuscleError(f"{option} means nothing for {name}; leave it out, or choose {others}")
    score = TEXT_SCORES[name](**options)

    def checked(answer: str, references: Sequence[str]) -> float:
        if isinstance(references, str):  # type-checks as a sequence of its characters, which nobody means
            references = (references,)
        if not references:
            raise MuscleError(f"{name} of an answer without a reference text; leave the item unscored")
        return score(answer, references)

    return checked


def _exact_match(*, numeric: bool = False) -> TextScore:
    """1 where the answer equals a reference, surrounding whitespace aside (lm-eval's exact_match at its defaults)."""
    numbers = _Memo(as_number)

    def score(answer: str, references: Sequence[str]) -> float:
        text = answer.strip()
        if any(text == reference.strip() for reference in references):
            return 1.0
        number = as_number(text) if numeric else None
        return float(number is not None and any(number == numbers[reference] for reference in references))

    return score


def _rouge_n(n: int, *, stem: bool = False) -> TextScore:
    """ROUGE-N F-measure (Lin 2004, section 2), to the last bit rouge_score's."""
    tokenize = _tokenizer(stem)

    def grams(text: str) -> Sequence[Hashable]:
        tokens = tokenize(text)
        return tokens if n == 1 else [*zip(*[tokens[start:] for start in range(n)], strict=False)]

    def counted(text: str) -> tuple[dict[Hashable, int], int]:
        found = grams(text)
        counts: dict[Hashable, int] = {}
        for gram in found:  # faster than a Counter up to some 40 grams
            counts[gram] = counts.get(gram, 0) + 1
        return counts, len(found)

    known = _Memo(counted)

    def score(answer: str, references: Sequence[str]) -> float:
        own = grams(answer)
        best = 0.0
        for reference in references:
            counts, total = known[reference]
            best = max(best, _f_measure(_overlap(own, counts), len(own), total))
        return best

    return score


def _rouge_l(*, stem: bool = False) -> TextScore:
    """ROUGE-L F-measure of whole texts (Lin 2004, section 3.1), to the last bit rouge_score's."""
    tokenize = _tokenizer(stem)

    def positions(text: str) -> tuple[dict[str, int], int]:
        tokens = tokenize(text)
        bits: dict[str, int] = {}
        for place, token in enumerate(tokens):
            bits[token] = bits.get(token, 0) | 1 << place
        return bits, len(tokens)

    known = _Memo(positions)

    def score(answer: str, references: Sequence[str]) -> float:
        tokens = tokenize(answer)
        theirs = map(known.__getitem__, references)
        return max(_f_measure(_common_subsequence(tokens, bits, n), len(tokens), n) for bits, n in theirs)

    return score


def _bleu() -> TextScore:
    """Sentence BLEU (Papineni et al. 2002; Post 2018): sacrebleu.sentence_bleu at its defaults, over 100."""
    from sacrebleu.metrics.bleu import BLEU

    # One object for all sentences: its tokenizer remembers texts, where sentence_bleu makes a new one each time.
    metric = BLEU(effective_order=True)

    def score(answer: str, references: Sequence[str]) -> float:
        # sacrebleu gives 100.00000000000004 for a text against itself.
        return min(metric.sentence_score(answer, references).score / 100, 1.0)

    return score


def _chrf() -> TextScore:
    """Sentence chrF2 (Popović 2015): sacrebleu.sentence_chrf at its defaults, over 100."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()

    def score(answer: str, references: Sequence[str]) -> float:
        return min(float(metric.sentence_score(answer, references).score) / 100, 1.0)

    return score


def _tokenizer(stem: bool) -> Callable[[str], list[str]]:
    """rouge_score's tokenizer, which stems words of more than 3 letters; each distinct word is stemmed once."""
    if not stem:
        return _words
    stem_of = _stems().__getitem__
    return lambda text: [*map(stem_of, _words(text))]


def _words(text: str) -> list[str]:
    """Lower-cased runs of ASCII letters and digits, as re.findall("[a-z0-9]+") but twice as fast."""
    return text.lower().encode("ascii", "replace").translate(_BLANKED).decode("ascii").split()


@cache
def _stems() -> _Memo[str]:
    """Stems by word, of all scorers: the models and slices of a comparison have their words in common."""
    from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]  # 1.6 s

    stemmed = PorterStemmer().stem
    return _Memo(lambda word: word if len(word) <= 3 or word.isdecimal() else stemmed(word))


def _overlap(grams: Iterable[Hashable], counts: dict[Hashable, int]) -> int:
    """Size of the intersection of two multisets, the second as counts (faster than & of two Counters)."""
    left = counts.copy()
    common = 0
    for gram in grams:
        if count := left.get(gram):
            left[gram] = count - 1
            common += 1
    return common


def _common_subsequence(tokens: Iterable[str], bits: Mapping[str, int], length: int) -> int:
    """Length of the longest common subsequence, each row of its table one integer (Hyyrö 2004).

    Args:
        tokens: The one sequence.
        bits: The other: for each token, its places as bits.
        length: The other's length.
    """
    full = (1 << length) - 1
    row = full
    for token in tokens:
        places = bits.get(token)
        if places:
            met = row & places
            row = (row + met | row - met) & full
    return length - row.bit_count()


def _f_measure(common: int, answer: int, reference: int) -> float:
    """Harmonic mean of precision and recall from counts, in rouge_score's order of operations; 0 without a match."""
    if not common:
        return 0.0
    precision, recall = common / answer, common / reference
    return 2 * precision * recall / (precision + recall)


def _remedy(name: str) -> str:
    """The name that was meant, as far as its letters and digits tell (ROUGE-L is rougeL), or all of them."""
    by_letters = {_letters(known): known for known in TEXT_SCORES}
    near = difflib.get_close_matches(_letters(name), by_letters, n=1)
    return f"did you mean {by_letters[near[0]]}?" if near else f"choose {_listed(list(TEXT_SCORES))}"


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


TEXT_SCORES: Mapping[str, Callable[..., TextScore]] = {
    "exact_match": _exact_match,
    "rouge1": partial(_rouge_n, 1),
    "rouge2": partial(_rouge_n, 2),
    "rougeL": _rouge_l,
    "bleu": _bleu,
    "chrf": _chrf,
}
"""Name -> maker of the score; `scorer` calls it."""
_SCORES_WITH = {"numeric": ["exact_match"], "stem": ["rouge1", "rouge2", "rougeL"]}
