"""Chunks: the finest stretches of text that two tokenizations share; tokenizers and texts of all kinds."""

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate, groupby, pairwise, permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from muscle.errors import MuscleError
from muscle.measure.statistics import IntArray
from muscle.update.across.chunks import NONE, Chunks, Piece, common_pieces, cut
from muscle.update.prompts import Example
from muscle.update.scratch import train_tokenizer
from muscle.update.spans import Spans
from muscle.update.tokenized import TokenizedExamples

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
CORPUS = [
    "Question: Janet's ducks lay 16 eggs per day. She eats 3 for breakfast.\nAnswer: 16 - 3 = 13",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72",
    "naïve café, Zürich, déjà vu; 東京は日本の首都です。 Привет, мир! مرحبا",
    "def f(x):\n    if x:\n        return  x + 1\n\treturn 1234567",
    "Hello world, hello  world   again and again 👩‍🚀 🙂",
] * 4
# What GPT-2 and Llama 3 cut words by: digits as long as they come, or three at a time.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)

TEXTS = [
    "Hello world",
    " Hello  world ",
    "naïve",
    "👩‍🚀",
    " 👩‍🚀👩‍🚀 !",
    "1234567 + 89 = 1234656",
    "  leading and trailing  ",
    "\n\n\tx\r\n y\n",
    "東京は日本の首都です。",
    "Привет, мир! مرحبا بالعالم שלום",
    "e\u0301 and é, ﬁ and fi, Å and \u212b, ½",
    "\x00\x01 control \x7f\u200b\u202e\ufeff characters",
    "def f(x):\n    if x:\n        return  x\n",
    "▁Hello Ġthere <0x0A>",
    "a",
    " ",
    "",
]


# --- tokenizers


def fast(tokenizer: Tokenizer, before: bool, after: bool, trim: bool | None = None) -> PreTrainedTokenizerFast:
    """Tokens put before or after each text by a post-processor, which may leave spaces out of the offsets."""
    special = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    single = " ".join([*[BOS] * before, "$A", *[EOS] * after])
    steps = [] if trim is None else [processors.ByteLevel(trim_offsets=trim)]
    tokenizer.post_processor = processors.Sequence(
        [*steps, processors.TemplateProcessing(single=single, special_tokens=special)]
    )
    bos = {"bos_token": BOS} if before else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, unk_token=UNK, **bos)


def byte_level(size: int, pattern: str | None, trim: bool, before: bool = False, after: bool = False, **more: bool):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **more)
    if pattern:
        words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[UNK, BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return fast(tokenizer, before, after, trim)


SPECIAL = [UNK, BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256))]


def metaspace_bpe(legacy: bool, after: bool) -> PreTrainedTokenizerFast:
    """As of Llama 2 and Mistral: spaces are letters, and what is not known is said byte by byte."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    latin = [text for text in CORPUS if text.isascii()]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([line for text in latin for line in text.split("\n")], trainer)
    return fast(tokenizer, True, after)


def unigram() -> PreTrainedTokenizerFast:
    """As of T5 and Gemma: a text is normalised first, so that some of its characters become several."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token=UNK, initial_alphabet=[], show_progress=False
    )
    tokenizer.train_from_iterator([text for text in CORPUS if text.isascii()], trainer)
    state = json.loads(tokenizer.to_str())
    state["model"]["byte_fallback"] = True
    return fast(Tokenizer.from_str(json.dumps(state)), False, True)


def words(drop: bool) -> PreTrainedTokenizerFast:
    """Whole words and <unk>, with what is between them dropped; or, as of BERT, parts of words without accents."""
    known = {word: number for number, word in enumerate([UNK, BOS, EOS, *sorted({*" ".join(CORPUS).split()})])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if drop:
        tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)  # drops control characters too
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=[UNK, BOS, EOS], show_progress=False)
        tokenizer.train_from_iterator(CORPUS, trainer)
    return fast(tokenizer, drop, drop)


BYTE_LEVEL: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": partial(byte_level, 300, None, trim=True),
    "gpt2, large": partial(byte_level, 600, None, trim=False, before=True),
    "llama3": partial(byte_level, 500, LLAMA3, trim=True, before=True),
    "across words": partial(byte_level, 500, None, trim=True, after=True, use_regex=False),
}
# Offsets of the others leave something out: some of what is normalised; of words, what is between them.
LOSSLESS = BYTE_LEVEL | {
    "llama2": partial(metaspace_bpe, legacy=True, after=True),
    "mistral": partial(metaspace_bpe, legacy=False, after=False),
}
ALL = LOSSLESS | {
    "qwen": partial(train_tokenizer, CORPUS, 400),
    "unigram": unigram,
    "words": partial(words, drop=False),
    "bert": partial(words, drop=True),
}
PAIRS = [*permutations(ALL, 2)]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return ALL[name]()


def read(name: str, texts: Sequence[str], tokens: str = "all") -> TokenizedExamples:
    return TokenizedExamples([Example("", text) for text in texts], tokenizer_of(name), tokens)  # type: ignore[arg-type]


def spans_of(data: TokenizedExamples) -> list[Spans]:
    assert data.spans is not None
    return data.spans


PARTS = [
    *("Hello", " world", "hello", " ", "  ", "\n", "\t", "1", "12", "3456", "####", "=", "<<", "'s", ".", "return"),
    *("naïve", "é", "e\u0301", "👩‍🚀", "🙂", "東京", "Привет", "مرحبا", "ﬁ", "½", "\x00", "\u200b", "\u00a0", "▁", "Ġ"),
]
mixed = st.lists(
    st.sampled_from(PARTS) | st.text(max_size=3),
    max_size=12,
).map("".join)


# --- what chunks are


def held(spans: Spans, numbers: IntArray) -> list[set[int]]:
    """Characters of each chunk's tokens, but for the last, the end of the text."""
    found: list[set[int]] = [set() for _ in range(int(numbers[-1]))]
    for (begin, end), number in zip(spans[:-1].tolist(), numbers[:-1].tolist(), strict=True):
        if number != NONE:
            found[number].update(range(begin, end))
    return found


def check(student: Spans, old: Spans, pieces: Sequence[Piece]) -> tuple[IntArray, IntArray]:
    """All that is promised of the chunks of one text, whatever its spans."""
    pair = cut(student, old, pieces)
    turned = cut(old, student, [Piece(piece.old, piece.student, piece.length) for piece in pieces])
    for one, other in zip(pair, reversed(turned), strict=True):
        assert one.tolist() == other.tolist()
    count = int(pair[0][-1])
    for spans, numbers in zip((student, old), pair, strict=True):
        assert len(numbers) == len(spans)
        inside = numbers[numbers != NONE]
        assert inside.tolist() == sorted(inside)
        assert set(inside) == set(range(count + 1))
        assert int((numbers == count).sum()) == 1  # the end-of-text token
        found = held(spans, numbers)
        assert len(set().union(*found)) == sum(map(len, found))
    return pair


def boundaries(spans: Spans) -> dict[int, tuple[int, int]]:
    """Of each token that a text can be cut before, from where to where."""
    ends = [0, *accumulate(spans[:, 1].tolist(), max)]
    begins = [*accumulate(spans[::-1, 0].tolist(), min)][::-1]
    return {token: room for token, room in enumerate(zip(ends, begins, strict=False)) if room[0] <= room[1]}


def check_whole(text: str, student: Spans, old: Spans) -> tuple[IntArray, IntArray]:
    """And of two tokenizations of the same text."""
    pair = check(student, old, [Piece(0, 0, len(text))])
    sides = [*zip((student, old), pair, strict=True)]
    # Nothing in between is left out.
    for _, numbers in sides:
        inside = np.flatnonzero(numbers[:-1] != NONE)
        assert len(inside) == 0 or (numbers[inside[0] : inside[-1] + 1] != NONE).all()
    # What both hold is in the same chunk, and but for what one tokenizer drops the text of a chunk is equal.
    everything = [{place for begin, end in spans[:-1].tolist() for place in range(begin, end)} for spans, _ in sides]
    for chunk, (mine, theirs) in enumerate(zip(*(held(*side) for side in sides), strict=True)):
        assert mine & everything[1] == theirs & everything[0]
        assert mine or theirs or chunk == 0  # what both begin texts with
    # No chunk could be cut further.
    inner: list[dict[int, list[tuple[int, int]]]] = [{}, {}]
    for (spans, numbers), found in zip(sides, inner, strict=True):
        rooms = boundaries(spans)
        for token in range(1, len(spans)):
            if token in rooms and numbers[token - 1] == numbers[token] != NONE:
                found.setdefault(int(numbers[token]), []).append(rooms[token])
    for chunk in {*inner[0]} & {*inner[1]}:
        assert not [1 for (a, b), (c, d) in product(*(each[chunk] for each in inner)) if max(a, c) <= min(b, d)]
    return pair


def check_lossless(text: str, student: Spans, old: Spans) -> None:
    """And where offsets leave nothing out on either side: all is in chunks, of the very same text."""
    pair = check_whole(text, student, old)
    parts = [held(*side) for side in zip((student, old), pair, strict=True)]
    assert parts[0] == parts[1]
    assert [place for part in parts[0] for place in sorted(part)] == [*range(len(text))]


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_chunks_of_all_tokenizers(pair: tuple[str, str]) -> None:
    sides = [spans_of(read(name, TEXTS)) for name in pair]
    for text, *spans in zip(TEXTS, *sides, strict=True):
        (check_lossless if {*pair} <= {*LOSSLESS} else check_whole)(text, *spans)


@settings(max_examples=300)
@given(text=mixed, pair=st.sampled_from([pair for pair in PAIRS if {*pair} <= {*LOSSLESS}]))
def test_chunks_of_any_text(text: str, pair: tuple[str, str]) -> None:
    check_lossless(text, *(spans_of(read(name, [text]))[0] for name in pair))


@settings(max_examples=200)
@given(text=mixed, pair=st.sampled_from([pair for pair in PAIRS if not {*pair} <= {*LOSSLESS}]))
def test_chunks_of_any_text_where_some_is_dropped(text: str, pair: tuple[str, str]) -> None:
    check_whole(text, *(spans_of(read(name, [text]))[0] for name in pair))


some_spans = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=8).map(
    lambda spans: np.array([*((begin, begin + more) for begin, more in spans), (16, 16)], np.int32)
)


@settings(max_examples=300)
@given(student=some_spans, old=some_spans, first=st.integers(0, 8), second=st.integers(9, 16), shift=st.integers(0, 3))
def test_any_spans_whatsoever_give_chunks_that_rise(
    student: Spans, old: Spans, first: int, second: int, shift: int
) -> None:
    """Tokens out of order, with gaps or of no length; pieces that begin and end anywhere."""
    check(student, old, [Piece(first, max(0, first - shift), 3), Piece(second, second - 1, 16 - second)])


def bytes_of(name: str, ids: Sequence[int]) -> list[bytes]:
    """What byte-level tokens say, from the vocabulary alone."""
    letters = dict(zip(byte_letters(), range(256), strict=True))
    tokens = tokenizer_of(name).convert_ids_to_tokens(list(ids))
    return [b"" if token in (BOS, EOS) else bytes(letters[letter] for letter in token) for token in tokens]


@cache
def byte_letters() -> list[str]:
    """The letter that byte-level vocabularies write for each byte (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


def byte_ends(name: str, ids: Sequence[int]) -> list[int]:
    return np.cumsum([len(said) for said in bytes_of(name, ids)]).tolist()


def check_bytes(text: str, pair: tuple[str, str]) -> None:
    """Chunks as they follow from the bytes that tokens stand for, without offsets."""
    data = [read(name, [text]) for name in pair]
    numbers = cut(*(spans_of(side)[0] for side in data), [Piece(0, 0, len(text))])
    ends = [byte_ends(name, side.ids[0]) for name, side in zip(pair, data, strict=True)]
    letters = np.cumsum([0, *(len(letter.encode("utf-8", "surrogatepass")) for letter in text)]).tolist()
    common = sorted({0, *ends[0]} & {0, *ends[1]} & {*letters})
    expected = [(begin, end) for begin, end in pairwise(common)]
    for side, chunks in zip(ends, numbers, strict=True):
        tokens = [[*same] for _, same in groupby(range(len(chunks) - 1), key=chunks.__getitem__)]
        found = [(side[same[0] - 1] if same[0] else 0, side[same[-1]]) for same in tokens]
        assert [span for span in found if span[0] < span[1]] == expected
    said = [[b""] * int(numbers[0][-1]) for _ in pair]
    for name, side, chunks, parts in zip(pair, data, numbers, said, strict=True):
        for part, chunk in zip(bytes_of(name, side.ids[0])[:-1], chunks[:-1], strict=True):
            if chunk != NONE:  # what begins one side's empty text
                parts[chunk] += part
    assert said[0] == said[1]
    assert b"".join(said[0]) == text.encode()


@pytest.mark.parametrize("pair", [*permutations(BYTE_LEVEL, 2)], ids="/".join)
def test_both_sides_say_the_same_bytes(pair: tuple[str, str]) -> None:
    for text in TEXTS:
        check_bytes(text, pair)


@settings(max_examples=300)
@given(text=mixed | st.text("ab \n", max_size=12), pair=st.sampled_from([*permutations(BYTE_LEVEL, 2)]))
def test_both_sides_say_the_same_bytes_of_any_text(text: str, pair: tuple[str, str]) -> None:
    check_bytes(text, pair)


@pytest.mark.parametrize("name", ALL)
def test_equal_tokenizers_have_chunks_of_one_token(name: str) -> None:
    for spans in spans_of(read(name, TEXTS)):
        numbers, others = cut(spans, spans, [Piece(0, 0, 1000)])
        assert numbers.tolist() == others.tolist()
        assert NONE not in numbers
        for (begin, end), (first, last), here, there in zip(spans[:-1], spans[1:], numbers, numbers[1:], strict=False):
            shares = begin < end and first < last and first < end  # both hold some of one character
            assert (here == there) == shares
    if name == "gpt2":
        plain = "Hello world, she eats 3 eggs  \n"
        assert cut(*(spans_of(read(name, [plain]))[0],) * 2, [Piece(0, 0, len(plain))])[0].tolist() == [
            *range(len(read(name, [plain]).ids[0]))
        ]


# --- by hand


def laid(*pieces: str) -> Spans:
    """Spans of tokens that follow each other; the last ends the text."""
    ends = np.cumsum([len(piece) for piece in pieces])
    return np.stack([ends - [len(piece) for piece in pieces], ends], 1).astype(np.int32)


@pytest.mark.parametrize(
    ("student", "old", "expected"),
    [
        (["Hello", " world"], ["Hel", "lo", " wor", "ld"], ["Hello", " world"]),
        (["1234", "5"], ["1", "2", "3", "4", "5"], ["1234", "5"]),
        (["123", "45"], ["12", "345"], ["12345"]),
        (["na", "ï", "ve"], ["naï", "ve"], ["naï", "ve"]),
        (["a", " b", " c"], ["a ", "b ", "c"], ["a b c"]),
        (["a b", " c"], ["a", " b", " c"], ["a b", " c"]),
        (["x", "\n", "\n"], ["x", "\n\n"], ["x", "\n\n"]),
        ([], [], []),
    ],
)
def test_chunks_by_hand(student: list[str], old: list[str], expected: list[str]) -> None:
    text = "".join(student)
    sides = laid(*student, ""), laid(*old, "")
    for spans, numbers in zip(sides, check_whole(text, *sides), strict=True):
        found = ["".join(text[begin:end] for begin, end in spans[numbers == chunk]) for chunk in range(len(expected))]
        assert found == expected
        assert numbers[-1] == len(expected)


def test_bytes_of_one_character_stay_together() -> None:
    """👩‍🚀 is three characters of 4, 3 and 4 bytes: as one token, and as bytes that some tokens cut across."""
    whole = laid("👩\u200d🚀", "!", "")
    split = np.array([[0, 1], [0, 1], [0, 2], [1, 2], [2, 3], [2, 3], [3, 4], [4, 4]], np.int32)
    assert [side.tolist() for side in check_whole("👩\u200d🚀!", whole, split)] == [[0, 1, 2], [0] * 6 + [1, 2]]
    assert cut(split, split, [Piece(0, 0, 4)])[0].tolist() == [0, 0, 0, 0, 1, 1, 2, 3]


def test_spaces_that_one_side_drops() -> None:
    dropped = np.array([[0, 5], [6, 11], [13, 14], [14, 14]], np.int32)
    for old, expected in [
        (laid("Hello", " world", "  !", ""), [0, 1, 2, 3]),
        (laid("Hello ", "world  ", "!", ""), [0, 1, 2, 3]),
        (laid("Hello", " ", "world", " ", " ", "!", ""), [0, 1, 1, 2, 2, 2, 3]),
        (laid("Hello w", "orld  !", ""), [0, 0, 1]),
    ]:
        assert check_whole("Hello world  !", dropped, old)[1].tolist() == expected


def test_a_piece_that_begins_and_ends_where_spaces_are_dropped() -> None:
    dropped, old = np.array([[0, 1], [3, 4], [6, 7], [7, 7]], np.int32), laid("??", " ", "b", " ", "!!!", "")
    numbers = check(dropped, old, [Piece(2, 2, 3)])  # " b " of "a  b  c" and of "?? b !!!"
    assert [side.tolist() for side in numbers] == [[NONE, 0, NONE, 1], [NONE, 0, 0, NONE, NONE, 1]]


def test_pieces_that_follow_each_other_on_one_side() -> None:
    """A token of no length, between them, is in one chunk alone."""
    numbers = check(laid("ab", "", "", "cd", ""), laid("ab", "", "x", "cd", ""), [Piece(0, 0, 2), Piece(2, 3, 2)])
    assert [side.tolist() for side in numbers] == [[0, 1, 2, 2, 3], [0, 1, NONE, 2, 3]]


def test_a_letter_that_is_put_before_a_text_is_its_first_characters() -> None:
    """Llama 2 reads "Hello" as "▁Hello"; where "▁" is a token of its own, it goes with the next."""
    spans = {name: spans_of(read(name, ["Hello world"]))[0].tolist() for name in ("llama2", "mistral", "gpt2")}
    assert spans["llama2"][0] == spans["mistral"][0] == [0, 0]  # <s>
    assert spans["llama2"][-1] == spans["mistral"][-1] == spans["gpt2"][-1] == [11, 11]
    first = np.array([[0, 0], [0, 1], [0, 5], [5, 11], [11, 11]], np.int32)
    assert cut(first, laid("", "Hello", " world", ""), [Piece(0, 0, 11)])[0].tolist() == [0, 1, 1, 2, 3]


def test_spaces_are_told_where_a_tokenizer_leaves_them_out() -> None:
    """GPT-2's and Llama 3's post-processors give the offsets of a token without its spaces."""
    text = "Hello  world\n    return 1 "
    for name in ("gpt2", "llama3", "across words"):
        raw = tokenizer_of(name)(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        assert sum(end - begin for begin, end in raw) < len(text)
        spans = spans_of(read(name, [text]))[0]
        assert "".join(text[begin:end] for begin, end in spans) == text


def test_an_accent_without_a_letter_is_of_no_token() -> None:
    assert spans_of(read("bert", ["\u0301a"]))[0].tolist() == [[0, 0], [1, 2], [2, 2]]


@pytest.mark.parametrize("name", ["qwen", "unigram", "bert"])
def test_accents_belong_to_their_letters(name: str) -> None:
    """Whether they are normalised to one character with them, or dropped."""
    texts = ["cafe\u0301s", "e\u0301", "a\u0323\u0302 b", "xe\u0301\U0001f642", "e\u0301 and é, ﬁ, \u212b, ½"]
    for text, here, there in zip(texts, spans_of(read(name, texts)), spans_of(read("gpt2", texts)), strict=True):
        pair = check_whole(text, here, there)
        for mine, theirs in zip(*(held(*side) for side in zip((here, there), pair, strict=True)), strict=True):
            assert {place for place in theirs if not text[place].isspace()} <= mine


def test_roberta_leaves_spaces_out_too() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_of("gpt2").backend_tokenizer.to_str()), eos_token=EOS
    )
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing((EOS, 2), (BOS, 1))
    for text in TEXTS:
        spans = spans_of(TokenizedExamples([Example("", text)], tokenizer))[0]
        assert spans[1:].tolist() == spans_of(read("gpt2", [text]))[0].tolist()
        assert spans[0].tolist() == [0, 0]


def test_an_end_that_the_text_holds_itself() -> None:
    """The student reads "</s>" as its end of text, the other as letters before one: only the ends belong together."""
    student, old = read("llama3", ["Hello</s>"]), laid("", "Hello", "<", "/", "s", ">", "")
    assert spans_of(student)[0][-1].tolist() == [5, 9]
    numbers = cut(spans_of(student)[0], old, [Piece(0, 0, 9)])
    assert numbers[0].tolist() == [0, *[1] * (len(student.ids[0]) - 2), 2]
    assert numbers[1].tolist() == [0, 1, *[NONE] * 4, 2]


# --- what two texts share


@pytest.mark.parametrize(
    ("student", "old", "expected"),
    [
        (("Q: 1+1?\nA:", " 2"), ("Q: 1+1?\nA:", " 2"), [(0, 0, 12)]),
        (("Q: 1+1?", "\nA: 2"), ("Q: 1+1?\nA:", " 2"), [(0, 0, 12)]),
        (("<user>1+1?<end>", "2"), ("[INST] 1+1? [/INST]", "2"), [(6, 7, 4), (15, 19, 1)]),
        (("<s>Q: 1+1?\nA:", " 2"), ("Q: 1+1?\nA:", " 2"), [(3, 0, 12)]),  # up to the answer: one piece
        (("Q: 1+1?<a>", ""), ("Q: 1+1?<b>", ""), [(0, 0, 8)]),
        (("", "2"), ("Q", "2"), [(0, 1, 1)]),
        (("ab", "2"), ("cd", "2"), [(2, 2, 1)]),
        (("", ""), ("", ""), []),
        (("a", ""), ("b", ""), []),
    ],
)
def test_common_pieces_by_hand(student: tuple[str, str], old: tuple[str, str], expected: list[tuple[int, ...]]) -> None:
    assert common_pieces(Example(*student), Example(*old)) == expected
    turned = [(there, here, length) for here, there, length in expected]
    assert common_pieces(Example(*old), Example(*student)) == turned


def test_answers_must_be_equal() -> None:
    with pytest.raises(MuscleError, match="reads the answer ' 2' where the old one reads ' 3'"):
        common_pieces(Example("a", " 2"), Example("b", " 3"))


def longest(one: str, other: str) -> int:
    """Length of the longest text in both, the slow way."""
    found = {one[begin:end] for begin in range(len(one)) for end in range(begin, len(one) + 1)}
    return max(len(part) for part in found | {""} if part in other)


@settings(max_examples=400)
@given(
    one=st.text("ab", max_size=20) | mixed,
    other=st.text("ab", max_size=20) | mixed,
    both=mixed | st.text("ab", max_size=8),
    answer=st.text("ab ", max_size=4),
)
def test_common_pieces_of_any_contexts(one: str, other: str, both: str, answer: str) -> None:
    contexts = f"{one}{both}<", f"[{other[::-1]}{both}{one[:2]}]"
    pieces = common_pieces(*(Example(context, answer) for context in contexts))
    texts = [context + answer for context in contexts]
    for piece in pieces:
        stretch = texts[0][piece.student : piece.student + piece.length]
        assert len(stretch) == piece.length > 0
        assert stretch == texts[1][piece.old : piece.old + piece.length]
    ends = [0, 0]
    for piece in pieces:
        assert [piece.student >= ends[0], piece.old >= ends[1]] == [True, True]
        ends = [piece.student + piece.length, piece.old + piece.length]
    most = longest(*contexts)
    assert sorted(piece.length for piece in pieces) == sorted(n for n in (most, len(answer)) if n)
    turned = common_pieces(*(Example(context, answer) for context in reversed(contexts)))
    assert [(piece.old, piece.student, piece.length) for piece in turned] == pieces


CHATML = "<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
INSTRUCT = "[INST] {} [/INST]"


@pytest.mark.parametrize("pair", PAIRS[::7], ids="/".join)
def test_prompts_of_two_chat_templates(pair: tuple[str, str]) -> None:
    question, answer = "How many eggs do 16 ducks lay, if each lays 3?", "48 eggs."
    rows = [Example(template.format(question), answer) for template in (CHATML, INSTRUCT)]
    sides = [TokenizedExamples([row], tokenizer_of(name)) for row, name in zip(rows, pair, strict=True)]
    pieces = common_pieces(*rows)
    assert [piece.length for piece in pieces] == [len(question), len(answer)]
    numbers = check(*(spans_of(side)[0] for side in sides), pieces)
    told: list[list[str]] = []
    for row, side, chunks in zip(rows, sides, numbers, strict=True):
        text = row.context + row.answer
        parts = [sorted(part) for part in held(spans_of(side)[0], chunks)]
        told.append([text[part[0] : part[-1] + 1].strip() for part in parts])
        spaces = {place for place, letter in enumerate(text) if letter.isspace()}
        inside = {
            *range(text.index(question), text.index(question) + len(question)),
            *range(len(row.context), len(text)),
        }
        chunked = set().union(*map(set, parts))
        assert chunked - spaces <= inside
        assert len(inside - spaces - chunked) <= 6  # of tokens that run over an end of the question or the answer
    assert told[0] == told[1]


# --- a whole data set


@pytest.mark.parametrize("pair", PAIRS[::5], ids="/".join)
@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_chunks_of_a_data_set(pair: tuple[str, str], tokens: str) -> None:
    rows = [Example(text, f" {other}") for text in TEXTS for other in ("48 eggs", "", "é🙂 1234")]
    student, old = (TokenizedExamples(rows, tokenizer_of(name), tokens) for name in pair)  # type: ignore[arg-type]
    chunks = Chunks.of(student, old)
    turned = Chunks.of(old, student)
    assert (turned.student.tolist(), turned.old.tolist()) == (chunks.old.tolist(), chunks.student.tolist())
    assert (len(chunks.student), len(chunks.old)) == (sum(student.targets), sum(old.targets))
    assert chunks.aligned == pytest.approx(float(np.mean(chunks.student != NONE)))
    for numbers in (chunks.student, chunks.old):
        inside = numbers[numbers != NONE]
        assert inside.tolist() == sorted(inside)
        assert set(inside) == set(range(chunks.count))
    ends: list[IntArray] = [np.cumsum([0, *side.targets]) for side in (student, old)]
    last = NONE
    for text, row in enumerate(rows):
        whole = cut(spans_of(student)[text], spans_of(old)[text], common_pieces(row, row))
        mine = [each[end[text] : end[text + 1]] for each, end in zip((chunks.student, chunks.old), ends, strict=True)]
        for side, kept, full in zip((student, old), mine, whole, strict=True):
            assert [*(kept[kept != NONE])] == [*(number for number in kept if number > last)]  # of no other text
            first = len(full) - side.targets[text]
            lost = {int(number) for data, numbers in zip((student, old), whole, strict=True)
                    for number in numbers[: len(numbers) - data.targets[text]]}  # fmt: skip
            for name, data, numbers in zip(pair, (student, old), whole, strict=True):
                tokens_of = tokenizer_of(name).convert_ids_to_tokens(data.ids[text])
                unknown = [token == UNK and UNK != EOS for token in tokens_of]
                lost |= {int(number) for number, missing in zip(numbers, unknown, strict=True) if missing}
            assert [number == NONE for number in kept] == [int(number) in lost | {NONE} for number in full[first:]]
        last = max([last, *mine[0]])


def test_chunks_before_the_first_target_are_none() -> None:
    rows = [Example("Hello", " world")]
    plain, begun = (TokenizedExamples(rows, tokenizer_of(name)) for name in ("gpt2", "llama3"))
    both = Chunks.of(begun, begun)
    assert both.aligned == 1
    assert both.student.tolist() == [*range(sum(begun.targets))]
    mixed_sides = Chunks.of(begun, plain)  # the old side has nothing before its first token
    first = mixed_sides.student.tolist().index(0)
    assert first >= 1
    assert mixed_sides.student[:first].tolist() == [NONE] * first
    assert mixed_sides.count == max(mixed_sides.old) + 1


def test_data_that_has_no_chunks() -> None:
    texts = read("gpt2", ["Hello"])
    slow = TokenizedExamples(texts.rows, ByT5Tokenizer())
    assert slow.spans is None
    for pair, whose in (((slow, texts), "new"), ((texts, slow), "old")):
        with pytest.raises(MuscleError, match=f"the {whose} base's tokenizer gives no character offsets"):
            Chunks.of(*pair)
    with pytest.raises(MuscleError, match="reads 1 texts, the old one 2"):
        Chunks.of(texts, read("gpt2", ["Hello", "Hello"]))
    nothing = Chunks.of(read("gpt2", []), read("llama3", []))
    assert (nothing.count, nothing.aligned, len(nothing.student), len(nothing.old)) == (0, 0.0, 0, 0)


def test_texts_are_tokenized_as_they_are_one_by_one() -> None:
    """Many at once, those that begin with <s> among others."""
    texts = [*TEXTS, "<s>Hello", "<s>", " <s>Hello</s>", *(f"Hello {number}" for number in range(1100)), "<s> x"]
    for name in ALL:
        data, tokenizer = read(name, texts), tokenizer_of(name)
        for text, ids in [*zip(texts, data.ids, strict=True)][::9]:
            alone = tokenizer(text, add_special_tokens=not (tokenizer.bos_token and text.startswith(BOS)))["input_ids"]
            end = [] if alone[-1:] == [tokenizer.eos_token_id] else [tokenizer.eos_token_id]
            assert ids == [*alone, *end]
        assert [len(spans) for spans in spans_of(data)] == [len(ids) for ids in data.ids]


@cache
def model_of(name: str) -> LlamaForCausalLM:
    torch.manual_seed(len(name))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer_of(name)), **sizes)).eval()


@torch.no_grad()
def likelihoods(name: str, data: TokenizedExamples, text: int) -> tuple[torch.Tensor, float]:
    """Log-likelihood of each target, and of all that follow the first token as the model itself counts it."""
    item = data[text]
    out = model_of(name)(input_ids=item["input_ids"][None], labels=item["labels"][None])
    said = out.logits[0, :-1].double().log_softmax(-1).gather(1, item["input_ids"][1:, None])[:, 0]
    return said[len(said) - data.targets[text] :], -float(out.loss) * data.targets[text]


@pytest.mark.parametrize("pair", [*PAIRS[::4], ("llama3", "mistral"), ("gpt2, large", "llama3")], ids="/".join)
def test_likelihoods_of_chunks_sum_to_those_of_texts(pair: tuple[str, str]) -> None:
    texts = ["Hello world, 12 eggs", " naïve 👩‍🚀\n 1234567", "Question: 16 - 3?\nAnswer: 13"]
    data = [read(name, texts) for name in pair]
    chunks = Chunks.of(*data)
    for name, side, numbers in zip(pair, data, (chunks.student, chunks.old), strict=True):
        found = [likelihoods(name, side, text) for text in range(len(texts))]
        said = torch.cat([each for each, _ in found]).numpy()
        by_chunk = np.bincount(numbers[numbers != NONE], said[numbers != NONE], chunks.count)
        assert len(by_chunk) == chunks.count
        assert (by_chunk < 0).all()
        assert by_chunk.sum() == pytest.approx(said[numbers != NONE].sum())
        if all(tokenizer_of(each).bos_token and each in LOSSLESS for each in pair):
            assert chunks.aligned == 1
            assert by_chunk.sum() == pytest.approx(sum(total for _, total in found), rel=1e-5)


# --- real texts


@pytest.fixture(scope="module")
def real(data: Path) -> list[Example]:
    """Questions with answers of GSM8K, and stories with endings of HellaSwag."""
    lines = (data / "tasks/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()[::40]
    rows = [Example(f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in map(json.loads, lines)]
    lines = (data / "tasks/hellaswag/val.jsonl").read_text(encoding="utf-8").splitlines()[::400]
    for row in map(json.loads, lines):
        rows += [Example(row["ctx"], f" {ending}") for ending in row["endings"]]
    assert len(rows) > 100
    return rows


REAL_PAIRS = [
    ("llama3", "qwen"),
    ("mistral", "gpt2"),
    ("unigram", "across words"),
    ("words", "llama2"),
    ("bert", "qwen"),
]


@pytest.mark.parametrize("pair", REAL_PAIRS, ids="/".join)
def test_chunks_of_real_texts(pair: tuple[str, str], real: list[Example]) -> None:
    rows = real[::4]
    sides = [spans_of(TokenizedExamples(rows, tokenizer_of(name))) for name in pair]
    for row, *spans in zip(rows, *sides, strict=True):
        text = row.context + row.answer
        (check_lossless if {*pair} <= {*LOSSLESS} else check_whole)(text, *spans)


def test_real_texts_are_almost_all_in_chunks(real: list[Example]) -> None:
    names = ("llama3", "qwen", "mistral")
    data = {name: TokenizedExamples(real, tokenizer_of(name)) for name in names}
    for student, old in permutations(names, 2):
        chunks = Chunks.of(data[student], data[old])
        assert chunks.aligned > 0.98  # all but the first token of a text
        assert chunks.count > 0.3 * min(len(chunks.student), len(chunks.old))


@pytest.mark.parametrize("pair", [*permutations(BYTE_LEVEL, 2)], ids="/".join)
def test_real_texts_say_the_same_bytes(pair: tuple[str, str], real: list[Example]) -> None:
    for row in real[::9]:
        check_bytes(row.context + row.answer, pair)
