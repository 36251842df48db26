"""Scores of text against rouge_score, sacrebleu and published values, on made-up and on real texts."""

import csv
import json
import math
import random
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from muscle.errors import MuscleError
from muscle.measure import similarity
from muscle.measure.similarity import TEXT_SCORES, TextScore, as_number, scorer

ROUGE = ("rouge1", "rouge2", "rougeL")
Pair = tuple[str, list[str]]

many = settings(max_examples=150, deadline=None)
# Few words, so that they repeat and match; their stems, cases and separators differ. İ and K lower to an ASCII letter.
words = st.sampled_from(
    [*"abcdy", "Run", "running", "runs", "RUNNER", "skies", "dying", "x1", "2", "İi", "\u212a", "né", "\u0660"]
)
separators = st.sampled_from([" ", "  ", "\n", "-", "_", "\u3000", ", ", "\x00", "' "])
sentences = st.lists(st.tuples(words, separators), max_size=25).map(lambda parts: "".join(map("".join, parts)))
texts = st.one_of(sentences, st.text(max_size=40), st.sampled_from(["", " ", "/"]))
pairs = st.tuples(texts, st.lists(texts, min_size=1, max_size=4))


@cache
def ours(name: str, stem: bool = False) -> TextScore:
    """One scorer for all examples, so that what it remembers of earlier ones is tested too."""
    return scorer(name, stem=stem)


@cache
def rouge_scorer(stem: bool) -> RougeScorer:
    return RougeScorer(list(ROUGE), use_stemmer=stem)


def assert_is_rouge_score(answer: str, references: list[str], stem: bool) -> None:
    theirs = rouge_scorer(stem).score_multi(references, answer)
    assert {name: ours(name, stem)(answer, references) for name in ROUGE} == {n: theirs[n].fmeasure for n in ROUGE}


def assert_is_sacrebleu(answer: str, references: list[str]) -> None:
    assert ours("bleu")(answer, references) == min(sacrebleu.sentence_bleu(answer, references).score / 100, 1)
    assert ours("chrf")(answer, references) == sacrebleu.sentence_chrf(answer, references).score / 100


@pytest.fixture(scope="module")
def human_pairs(data: Path) -> list[Pair]:
    """E2E: one description of each restaurant against all the others of it."""
    described: dict[str, list[str]] = {}
    with (data / "tasks" / "e2e" / "testset_w_refs.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            described.setdefault(row["mr"], []).append(row["ref"])
    rng = random.Random(0)
    found = []
    for references in described.values():
        answer = references.pop(rng.randrange(len(references)))
        if references:
            found.append((answer, references))
    assert len(found) > 600
    return found


@pytest.mark.parametrize("stem", [False, True])
@given(pair=pairs)
@many
def test_rouge_is_bit_equal_to_rouge_score(stem: bool, pair: Pair) -> None:
    assert_is_rouge_score(*pair, stem)


def test_rouge_is_bit_equal_to_rouge_score_on_real_texts(human_pairs: list[Pair]) -> None:
    for answer, references in human_pairs:
        assert_is_rouge_score(answer, references[:3], stem=False)
    for answer, references in human_pairs[::6]:
        assert_is_rouge_score(answer, references[:3], stem=True)


def test_words_are_rouge_score_s_whatever_character_parts_them() -> None:
    text = "".join(f"x{chr(code)}Y1 " for code in range(sys.maxunicode + 1))  # half surrogate pairs too: JSON has them
    assert similarity._words(text) == tokenize(text, None)


@pytest.mark.parametrize("stem", [False, True])
def test_rouge_of_texts_longer_than_a_machine_word_and_than_what_is_remembered(stem: bool) -> None:
    rng = random.Random(1)
    vocabulary = [f"{letter}{ending}" for letter in "abcdefgh" for ending in ("ing", "ed", "s", "ation", "")]
    for size in (63, 64, 65, 130, 900):
        answer, reference = (" ".join(rng.choices(vocabulary, k=size)) for _ in range(2))
        assert_is_rouge_score(answer, [reference, answer[: size // 2]], stem)


@given(pair=pairs)
@many
def test_bleu_and_chrf_are_sacrebleu_s(pair: Pair) -> None:
    assert_is_sacrebleu(*pair)


def test_bleu_and_chrf_are_sacrebleu_s_on_real_texts(human_pairs: list[Pair]) -> None:
    for answer, references in human_pairs[::3]:
        assert_is_sacrebleu(answer, references[:3])


@pytest.mark.parametrize(
    ("name", "answer", "references", "score"),
    [
        # Lin 2004, section 3.1: S1 is the reference, S2 to S4 the answers; all have 4 words, so that F is recall.
        ("rougeL", "police kill the gunman", ["police killed the gunman"], 3 / 4),
        ("rougeL", "the gunman kill police", ["police killed the gunman"], 2 / 4),
        ("rougeL", "the gunman police killed", ["police killed the gunman"], 2 / 4),
        ("rouge2", "police kill the gunman", ["police killed the gunman"], 1 / 3),
        ("rouge2", "the gunman kill police", ["police killed the gunman"], 1 / 3),
        # rouge_score's own tests (rouge_scorer_test.py).
        ("rouge1", "testing", ["testing one two"], 1 / 2),
        ("rouge2", "testing one", ["testing one two"], 2 / 3),
        ("rougeL", "testing two", ["testing one two"], 4 / 5),
        ("rouge1", "text first", ["first text", "first something"], 1),
        ("rouge2", "text first", ["first text", "first something"], 0),
        ("rougeL", "text first", ["first text", "first something"], 1 / 2),
        # sacrebleu's own tests: test_sentence_bleu.py (its issue 98 and 141) and test_chrf.py (at the default order).
        (
            "bleu",
            "Producția de zahăr primă va fi exprimată în ceea ce privește zahărul alb;",
            ["producţia de zahăr brut se exprimă în zahăr alb;"],
            0.08493,
        ),
        ("bleu", "this is a cat", ["okay thanks"], 0),
        ("chrf", "a b c", ["abc"], 1),
        ("chrf", "aa", ["ab"], 0.25),
        ("chrf", "a", ["a"], 1),
    ],
)
def test_published_values(name: str, answer: str, references: list[str], score: float) -> None:
    assert scorer(name)(answer, references) == pytest.approx(score, abs=1e-5)


def test_stemming_is_a_choice() -> None:
    assert scorer("rouge1")("dogs running", ["dog runs"]) == 0
    assert scorer("rouge1", stem=True)("dogs running", ["dog runs"]) == 1


@pytest.mark.parametrize("name", TEXT_SCORES)
@given(pair=pairs)
@settings(max_examples=50, deadline=None)
def test_scores_lie_between_0_and_1_and_several_references_never_harm(name: str, pair: Pair) -> None:
    answer, references = pair
    score = ours(name)(answer, references)
    assert 0 <= score <= 1
    assert score == ours(name)(answer, references)
    if name != "bleu":  # which lets each n-gram match in another reference, and compares lengths with the nearest one
        assert score == max(ours(name)(answer, [reference]) for reference in references)
    assert score == pytest.approx(ours(name)(answer, references[::-1]))


@pytest.mark.parametrize("name", TEXT_SCORES)
def test_the_ends_of_the_scale(name: str) -> None:
    text = "The dog bit the man twice, in 1999."
    assert scorer(name)(text, [text]) == pytest.approx(1)
    assert scorer(name)(text, [text]) <= 1
    assert scorer(name)("", [text]) == 0
    assert scorer(name)(text, [""]) == 0


@pytest.mark.parametrize("name", TEXT_SCORES)
def test_references_as_one_text_or_none_at_all(name: str) -> None:
    score = scorer(name)
    assert score("a dog", "a dog barks") == score("a dog", ["a dog barks"])
    with pytest.raises(MuscleError, match=f"{name} of an answer without a reference text"):
        score("a dog", [])


def test_exact_match_ignores_only_surrounding_whitespace() -> None:
    score = scorer("exact_match")
    assert score(" Paris\n", ["London", "Paris "]) == 1
    assert score("", [" "]) == 1
    assert score("paris", ["Paris"]) == 0
    assert score("Pa ris", ["Paris"]) == 0
    assert score("1234", ["1,234"]) == 0


def test_exact_match_of_numbers() -> None:
    score = scorer("exact_match", numeric=True)
    for same in ("1,234", "$1234.0", " 1.234e3 ", "+1234."):
        assert score(same, ["7", "1234"]) == score("1234", [same]) == 1
    assert score("1235", ["1234"]) == 0
    assert score("so 1234", ["1234"]) == 0
    assert score("Paris", ["Paris"]) == 1  # what is no number is compared as text
    assert score("NaN", ["nan"]) == 0
    assert score("", ["0"]) == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"),
        ("18.0", "18"),
        (" 18.\n", "18"),
        ("18.50.", "18.5"),
        ("0018", "18"),
        ("100", "100"),
        ("1,234,567.80", "1234567.8"),
        (".5", "0.5"),
        ("-0.0", "0"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("\u22125", "-5"),
        ("+5", "5"),
        ("1.5e3", "1500"),
        ("15E-1", "1.5"),
        ("0e999", "0"),
        ("9007199254740993", "9007199254740993"),  # 2^53 + 1, which no float is
    ],
)
def test_numbers(text: str, number: str) -> None:
    assert as_number(text) == number
    assert as_number(number) == number


def test_the_longest_exponent() -> None:
    assert as_number("1e999") == "1" + 999 * "0"
    assert as_number("1e-999") == "0." + 998 * "0" + "1"


@pytest.mark.parametrize("text", ["", ".", "$", "-", "--5", "-$-5", "$$5", "5$", "50%", "5 km", "five", "5 5", "5\n5"])
def test_texts_with_more_or_less_than_a_number(text: str) -> None:
    assert as_number(text) is None


spellings = ["1,23", "1234,567", ",123", "1,234,", "1.5,000", "1_000", "1/2", "18..", "1e", "e5", "1e1000"]
spellings += ["1e999999999", "nan", "NaN", "inf", "-Infinity", "0x10", "\u0661\u0662", "\u00b2"]


@pytest.mark.parametrize("text", spellings)
def test_spellings_that_are_no_numbers(text: str) -> None:
    assert as_number(text) is None


def test_numbers_of_any_length() -> None:
    """More digits than int() reads, or than a float or a Decimal's context keeps; a million cost next to nothing."""
    for digits in (30, 5000, 10**6):
        number = digits * "7"
        assert as_number(number) == number
        assert as_number(f"{number}.{number}0") == f"{number}.{number}"
        assert as_number(f"1e{number}") is None


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30), st.integers(0, 5))
@many
def test_a_number_is_the_same_however_it_is_written(value: Decimal, zeros: int) -> None:
    plain = format(value, "f")
    canonical = as_number(plain)
    assert canonical is not None
    assert Fraction(canonical) == Fraction(value)
    padded = plain + ("" if "." in plain else ".") + zeros * "0"
    for spelling in (str(value), padded, format(value, ",f"), f"{value:E}", f" {plain}. "):
        assert as_number(spelling) == canonical, spelling


def test_numbers_judge_gsm8k_as_its_authors_did(data: Path) -> None:
    (file,) = (data / "logs" / "gsm8k_openai_solutions").glob("*.jsonl")
    score = scorer("exact_match", numeric=True)
    judged = 0
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        target = row["ground_truth"].split("A:")[-1]
        for system in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            _, found, answer = row[system]["solution"].rpartition("A:")
            assert score(answer if found else "", [target]) == row[system]["is_correct"]
            judged += 1
    assert judged == 4 * 1319


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("ROUGE-L", "rougeL"), ("rouge_1", "rouge1"), ("exactmatch", "exact_match"), ("chrF", "chrf"), ("blue", "bleu")],
)
def test_an_unknown_score_suggests_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(MuscleError, match=f"unknown text score '{wrong}'; did you mean {right}\\?$"):
        scorer(wrong)


def test_an_unknown_score_like_no_other_lists_all() -> None:
    with pytest.raises(MuscleError) as error:
        scorer("perplexity")
    message = "unknown text score 'perplexity'; choose exact_match, rouge1, rouge2, rougeL, bleu or chrf"
    assert str(error.value) == message


def test_an_option_of_another_score_is_refused() -> None:
    with pytest.raises(MuscleError, match="numeric means nothing for bleu; leave it out, or choose exact_match"):
        scorer("bleu", numeric=True)
    with pytest.raises(MuscleError, match=r"stem means nothing for exact_match; .* choose rouge1, rouge2 or rougeL"):
        scorer("exact_match", stem=True)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(text: str) -> int:
        made.append(text)
        return len(text)

    monkeypatch.setattr(similarity, "_MEMO_CHARACTERS", 1000)
    memo = similarity._Memo(make)
    assert [memo["a"], memo["a"]] == [1, 1]
    assert made == ["a"]
    for number in range(100):
        assert memo[f"{number:100}"] == 100
        assert sum(map(len, memo)) <= 1000
    assert memo["x" * 5000] == 5000
    assert "x" * 5000 not in memo


def test_each_word_is_stemmed_once_for_all_scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    from nltk.stem.porter import PorterStemmer

    stem, stemmed = PorterStemmer.stem, []

    def counting(self: PorterStemmer, word: str) -> str:
        stemmed.append(word)
        return str(stem(self, word))

    monkeypatch.setattr(PorterStemmer, "stem", counting)
    similarity._stems.cache_clear()
    try:
        for name in ROUGE:
            assert scorer(name, stem=True)("The dogs running", ["the dog runs", "dogs running 1999"]) == 1
    finally:
        similarity._stems.cache_clear()
    assert sorted(stemmed) == ["dogs", "running", "runs"]


def test_long_texts_take_little_time() -> None:
    """rouge_score fills a table of 400 million cells here."""
    rng = random.Random(2)
    answer, reference = (" ".join(str(rng.randrange(5000)) for _ in range(20_000)) for _ in range(2))
    start = time.perf_counter()
    assert 0 < scorer("rougeL")(answer, [reference]) < 1
    assert scorer("rougeL")(reference, [reference]) == 1
    assert time.perf_counter() - start < 5


def test_rouge_needs_no_nltk_and_the_module_no_library() -> None:
    code = (
        "import sys; from muscle.measure.similarity import scorer; libraries = {'nltk', 'sacrebleu', 'rouge_score'};"
        "scorer('rougeL')('a', ['a']); assert not libraries & sys.modules.keys();"
        "scorer('bleu')('a', ['a']); assert 'nltk' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scores_are_finite_floats() -> None:
    for name in TEXT_SCORES:
        for answer in ("", "a", "a b"):
            score = scorer(name)(answer, ["a"])
            assert type(score) is float
            assert math.isfinite(score)
