"""An old teacher's distribution in the student's tokens, against plain floats over vocabularies of a few words."""

import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from muscle.errors import MuscleError
from muscle.update.across.surfaces import Lexicon, first_pieces, matched, surfaces
from muscle.update.across.translations import Translation, by_rank, projected, shared_tokens
from muscle.update.losses import absolute_difference, divergence

from .reference import kl, softmax

TEXT = [
    "the flag of the land is red and the bird on the flag is blue",
    "a bird in the hand is worth two birds in the bush, says the old man",
    'naïve café owners, 1234 of them, say: "déjà vu" is not a flag\'s name',
    "line one\nline two\n\nfor i in range(12):\n    print(i)\n",
    "旗は赤い 🙂 the end",
]
SPECIAL = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
NAMES = list(SPECIAL.values())
Build = Callable[[], PreTrainedTokenizerFast]


def finished(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(special or SPECIAL))  # type: ignore[no-untyped-call]


def byte_level(size: int = 400, prefix: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    names, letters = list(special.values()) or NAMES, sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=names, initial_alphabet=letters, max_token_length=12, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return finished(tokenizer, **special)


def metaspace(legacy: bool = False, size: int = 130) -> PreTrainedTokenizerFast:
    """Mistral's kind, or Llama's (legacy): SentencePiece's BPE, with bytes for what has no letter."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=NAMES, limit_alphabet=30, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    definition = json.loads(tokenizer.to_str())
    vocabulary = definition["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    definition["model"] |= {"byte_fallback": True}
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    fallback = [decoders.ByteFallback(), decoders.Fuse()]
    if legacy:
        prepended = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        definition |= {"pre_tokenizer": None}
        tokenizer = Tokenizer.from_str(json.dumps(definition))
        tokenizer.normalizer = normalizers.Sequence(prepended)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *fallback, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="first"), *fallback])
    return finished(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    """T5's kind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=NAMES, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return finished(tokenizer)


def word_pieces() -> PreTrainedTokenizerFast:
    """BERT's kind."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=130, special_tokens=NAMES, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return finished(tokenizer)


def words(*some: str, split: Any = None) -> PreTrainedTokenizerFast:
    """One token for each word."""
    vocabulary = {word: i for i, word in enumerate((*NAMES, *(some or sorted(set(" ".join(TEXT).split())))))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split or pre_tokenizers.WhitespaceSplit()
    return finished(tokenizer)


KINDS: dict[str, Build] = {
    "bytes": byte_level,
    "bytes, space put before": lambda: byte_level(prefix=True),
    "metaspace": metaspace,
    "metaspace, legacy": lambda: metaspace(legacy=True),
    "unigram": unigram,
    "word pieces": word_pieces,
    "words": words,
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
built: dict[str, PreTrainedTokenizerFast] = {}


def of_kind(kind: str) -> PreTrainedTokenizerFast:
    if kind not in built:
        built[kind] = KINDS[kind]()
    return built[kind]


def spelt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[bytes | None]:
    found = surfaces(tokenizer)
    return [found[token] for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


# ------------------------------------------------------------------------------------- surfaces


@EVERY_KIND
def test_surfaces_make_up_the_text(kind: str) -> None:
    tokenizer = of_kind(kind)
    for text in TEXT:
        found = spelt(tokenizer, text)
        if kind == "unigram" and None in found:
            continue  # a letter that it does not know
        whole = b"".join(part or b"?" for part in found).decode()
        if kind.startswith("word"):  # its spaces are as good as line ends, and where punctuation stood it does not know
            whole, text = ("".join(some.split()) for some in (whole, text))
        assert whole.removeprefix(" ") == text
    assert spelt(tokenizer, "the flag") == [b" the" if kind != "bytes" else b"the", b" flag"]


@EVERY_KIND
def test_special_tokens_have_no_surface_and_all_others_one(kind: str) -> None:
    tokenizer = of_kind(kind)
    found = surfaces(tokenizer)
    assert len(found) == len(tokenizer)
    assert [token for token, text in enumerate(found) if text is None] == tokenizer.convert_tokens_to_ids(NAMES)


@given(data=st.binary(min_size=1, max_size=8))
def test_bytes_of_both_kinds_that_have_them(data: bytes) -> None:
    letters, ordinary = of_kind("bytes"), of_kind("metaspace")
    names = [ordinary.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]
    assert b"".join(surfaces(ordinary)[name] or b"" for name in names) == data
    assert {bytes([byte]) for byte in data} <= {text for text in surfaces(letters) if text}


def test_words_of_a_tokenizer_that_splits_punctuation_off() -> None:
    tokenizer = words("flag", ".", "(", "x_1", "don", split=pre_tokenizers.Whitespace())
    assert surfaces(tokenizer)[len(NAMES) :] == [b" flag", b".", b"(", b" x_1", b" don"]
    assert surfaces(words("flag", "."))[len(NAMES) :] == [b" flag", b" ."]  # here it is a word if there is a space
    by_hand = words("flag", ".", split=pre_tokenizers.Split(" ", "removed"))
    assert surfaces(by_hand)[len(NAMES) :] == [b" flag", b" ."]


def test_tokens_without_marks_stand_for_themselves() -> None:
    """Where spaces are kept, or nothing tells the insides of words from their beginnings."""
    kept = words("flag", " ", split=pre_tokenizers.Split(" ", "isolated"))
    assert surfaces(kept)[len(NAMES) :] == [b"flag", b" "]
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert surfaces(finished(tokenizer, eos_token="a")) == [None, b"b", b"ab"]
    assert surfaces(finished(Tokenizer(models.WordLevel({"a": 0}, unk_token="?")), eos_token="e")) == [b"a", None]


def test_insides_of_words() -> None:
    tokenizer = of_kind("word pieces")
    found = {word: surfaces(tokenizer)[token] for word, token in tokenizer.get_vocab().items()}
    assert found["flag"] == b" flag"
    assert found["##a"] == b"a"
    assert found[","] == b","


def test_added_tokens_are_plain_text() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("  é", normalized=False), AddedToken("<tool>", special=True)])
    assert surfaces(tokenizer)[-2:] == ["  é".encode(), None]


def test_ids_that_are_not_in_use() -> None:
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "flag": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert surfaces(finished(tokenizer, eos_token="</s>")) == [None, None, None, b" flag"]


def test_a_tokenizer_that_does_not_show_its_rules() -> None:
    slow = cast(PreTrainedTokenizerBase, SimpleNamespace(name_or_path="old/model"))
    for translation in (shared_tokens, projected):
        for pair in ((slow, of_kind("words")), (of_kind("words"), slow)):
            with pytest.raises(MuscleError, match=r"old/model is none of .* set across to texts"):
                translation(*pair)


# -------------------------------------------------------------------------------- what is shared


def names_of(student: PreTrainedTokenizerBase, old: PreTrainedTokenizerBase) -> dict[str, str]:
    """Old tokens and the student's, as they are written."""
    found = matched(Lexicon.of(student), Lexicon.of(old))
    theirs, ours = (
        tokenizer.convert_ids_to_tokens(list(some)) for tokenizer, some in ((old, found), (student, found.values()))
    )
    return dict(zip(theirs, ours, strict=True))


@EVERY_KIND
def test_equal_tokenizers_share_everything(kind: str) -> None:
    tokenizer = of_kind(kind)
    again = finished(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    assert matched(Lexicon.of(tokenizer), Lexicon.of(again)) == {token: token for token in range(len(tokenizer))}


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_shared_tokens_are_one_to_one_and_stand_for_the_same(one: str, other: str) -> None:
    student, old = of_kind(one), of_kind(other)
    found = matched(Lexicon.of(student), Lexicon.of(old))
    assert len(set(found.values())) == len(found)
    ours, theirs = surfaces(student), surfaces(old)
    assert all(theirs[source] == ours[target] for source, target in found.items())
    assert set(filter(None, ours)) & set(filter(None, theirs)) == {theirs[token] for token in found if theirs[token]}
    all_shared = sorted(filter(None, ours)) == sorted(filter(None, theirs))
    assert all_shared or one != other
    assert {source: found[source] for source in found if theirs[source] is None} == {
        old.convert_tokens_to_ids(name): student.convert_tokens_to_ids(name)
        for name in (NAMES if all_shared else NAMES[:3])  # <unk> means something else, unless all is shared
    }


def test_a_letter_comes_before_its_byte() -> None:
    tokenizer = Tokenizer(models.BPE({"</s>": 0, "<0x61>": 1, "a": 2}, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    for other in map(of_kind, ("bytes", "metaspace")):
        assert names_of(other, finished(tokenizer, eos_token="</s>"))["a"] == "a"
    assert names_of(of_kind("bytes"), of_kind("metaspace"))["a"] == "a"
    assert names_of(of_kind("metaspace"), of_kind("bytes"))["Ċ"] == "\n"
    assert names_of(of_kind("metaspace"), of_kind("bytes"))["Ã"] == "<0xC3>"


def test_special_tokens_match_by_role() -> None:
    student = byte_level(eos_token="<|im_end|>", pad_token="<|end|>", mask_token="<mask>", cls_token="<cls>")
    old = byte_level(eos_token="<|end|>", bos_token="<cls>", mask_token="<mask>")
    old.pad_token = old.eos_token  # as where a base has none
    found = names_of(student, old)
    assert {old: ours for old, ours in found.items() if old.startswith("<") and len(old) > 1} == {
        "<|end|>": "<|im_end|>",
        "<mask>": "<mask>",
    }


def test_the_first_role_of_a_token_counts() -> None:
    student, old = byte_level(eos_token="<end>"), byte_level(eos_token="</s>", pad_token="<pad>")
    student.pad_token = "<end>"
    found = names_of(student, old)
    assert found["</s>"] == "<end>"
    assert "<pad>" not in found


# ---------------------------------------------------------------------------------- first pieces


def piece(kind: str, text: str | bytes) -> bytes | None:
    student = of_kind(kind)
    lexicon = Lexicon.of(student)
    (found,) = first_pieces(student, lexicon, [text if isinstance(text, bytes) else text.encode()])
    return None if found is None else lexicon.surfaces[found]


@pytest.mark.parametrize("kind", ["bytes", "bytes, space put before", "metaspace", "metaspace, legacy", "unigram"])
def test_a_space_in_front_is_kept_and_none_is_added(kind: str) -> None:
    before = str(of_kind(kind).backend_tokenizer.to_str())
    assert piece(kind, " flag pole") == b" flag"
    inside = piece(kind, "flag pole")
    assert inside is not None
    assert "flag".startswith(inside.decode())
    assert of_kind(kind).backend_tokenizer.to_str() == before  # the tokenizer itself goes on as it was


@pytest.mark.parametrize("space", ["Ġ", "▁"])
def test_first_pieces_are_those_of_the_tokenizer(space: str) -> None:
    """Not the longest token that fits: merges have an order."""
    merges = [("n", "h"), ("u", "n"), ("un", "h")]
    vocabulary = {token: i for i, token in enumerate(["</s>", "u", "n", "h", "x", "nh", "un", "unh", space])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    adding: dict[str, Any] = {"Ġ": pre_tokenizers.ByteLevel(add_prefix_space=True), "▁": pre_tokenizers.Metaspace()}
    tokenizer.pre_tokenizer = adding[space]
    student = finished(tokenizer, eos_token="</s>")
    found = first_pieces(student, Lexicon.of(student), [b"unhx", b"unx", b"xx", b"unh\xff", b" x", b"", b"z"])
    assert [token and vocabulary_of(student)[token] for token in found] == ["u", "un", "x", "unh", space, None, None]


def vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]


def test_first_pieces_of_what_tokenizers_of_words_lack() -> None:
    assert piece("words", " flag pole") == b" flag"
    assert piece("words", " flagpole") is None  # " f" would be another word
    assert piece("words", "flag") is None
    assert piece("word pieces", " flags") == b" flag"
    assert piece("word pieces", "ing") in (b"i", b"in", b"ing")


def test_first_pieces_of_what_is_no_text() -> None:
    assert piece("bytes", b"\xe6\x97") in (b"\xe6", b"\xe6\x97")
    assert piece("metaspace", b" the\xe6") == b" the"
    assert piece("metaspace", b"\xff\xfe") == b"\xff"
    assert piece("words", b"\xff") is None


def test_a_piece_that_looks_like_a_special_token_is_text() -> None:
    found = piece("bytes", "</s")
    assert found is not None
    assert piece("bytes", "</s>") == found
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("\n\n\n", normalized=False)])
    lexicon = Lexicon.of(tokenizer)
    assert first_pieces(tokenizer, lexicon, [b"\n\n\n\n"]) == [len(tokenizer) - 1]


@EVERY_KIND
@given(
    text=st.one_of(st.text(max_size=8).map(str.encode), st.binary(max_size=8), st.sampled_from(TEXT).map(str.encode))
)
def test_a_first_piece_begins_the_text(kind: str, text: bytes) -> None:
    found = piece(kind, text)
    assert found is None or (found and text.startswith(found))
    if text and kind.startswith(("bytes", "metaspace")):
        assert found  # single bytes at the worst


# ------------------------------------------------------------------------------ the translations


def draw(seed: int, rows: int, vocabulary: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(rows, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SMALL = words("flag", "bird", "red", "blue"), words("red", "green", "flag", "land", "hand")
"""Of 8 and 9 tokens, of which </s>, <s>, <pad>, flag and red are shared."""
SHARED = {0: 0, 1: 1, 2: 2, 4: 6, 6: 4}
"""Old ids to the student's."""
OURS = list(SHARED.values())
TEMPERATURES = st.floats(0.3, 5)
SEEDS = st.integers(0, 10_000)


def buckets(old: list[float], student: list[float], temperature: float) -> float:
    """KL over the shared tokens and one bucket for all others."""
    p, q = softmax(old, temperature), softmax(student, temperature)
    others = [sum(x for v, x in enumerate(some) if v not in shared) for some, shared in ((p, SHARED), (q, OURS))]
    return kl([*(p[v] for v in SHARED), others[0]], [*(q[v] for v in OURS), others[1]])


@given(seed=SEEDS, temperature=TEMPERATURES)
def test_divergence_from_shared_tokens_is_that_of_the_buckets(seed: int, temperature: float) -> None:
    old_tokenizer, student_tokenizer = SMALL
    old, student = draw(2 * seed, 5, 8), draw(2 * seed + 1, 5, 9).requires_grad_()
    said = shared_tokens(student_tokenizer, old_tokenizer).logits(old, student, temperature)
    assert not said.requires_grad
    found = divergence(student, said, temperature)
    found.sum().backward()
    expected = [buckets(z, x, temperature) for z, x in zip(old.tolist(), student.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert student.grad is not None
    # the buckets' own gradient, through the student's share of them
    again = student.detach().clone().requires_grad_()
    both = []
    for logits, shared in ((old, list(SHARED)), (again, OURS)):
        rest = [v for v in range(logits.shape[-1]) if v not in shared]
        x = (logits / temperature).softmax(-1)
        both.append(torch.cat([x[:, shared], x[:, rest].sum(-1, keepdim=True)], -1))
    p, q = both
    (p * (p / q).log()).sum().backward()
    torch.testing.assert_close(student.grad, again.grad, rtol=1e-8, atol=1e-10)


@given(seed=SEEDS, temperature=TEMPERATURES)
def test_projected_by_hand(seed: int, temperature: float) -> None:
    old_tokenizer, student_tokenizer = words("flag", "red bird", "blue", "red"), words("red", "green", "flag")
    # a token of several words comes only from elsewhere
    assert surfaces(old_tokenizer)[5] == b" red bird"
    old, student = draw(2 * seed, 4, 8), draw(2 * seed + 1, 4, 7)
    said = projected(student_tokenizer, old_tokenizer).logits(old, student, temperature)
    for z, t in zip(old.tolist(), said.tolist(), strict=True):
        p = softmax(z, temperature)
        mass = [p[0], p[1], p[2], 0, p[5] + p[7], 0, p[4]]  # blue and <unk> have no place
        assert softmax(t, temperature) == pytest.approx([some / sum(mass) for some in mass], rel=1e-9, abs=1e-30)


@pytest.mark.parametrize("translation", [shared_tokens, projected])
@EVERY_KIND
@given(seed=SEEDS, temperature=TEMPERATURES)
def test_with_one_tokenizer_nothing_changes(translation: Any, kind: str, seed: int, temperature: float) -> None:
    tokenizer = of_kind(kind)
    translate = known(translation, kind, kind)
    old, student = draw(2 * seed, 3, len(tokenizer)), draw(2 * seed + 1, 3, len(tokenizer))
    said = translate.logits(old, student, temperature)
    torch.testing.assert_close((said / temperature).softmax(-1), (old / temperature).softmax(-1), rtol=1e-9, atol=1e-30)


translations: dict[tuple[Any, str, str], Translation] = {}


def known(translation: Any, student: str, old: str) -> Translation:
    """Built once."""
    key = (translation, student, old)
    if key not in translations:
        translations[key] = translation(of_kind(student), of_kind(old))
    return translations[key]


@pytest.mark.parametrize("translation", [shared_tokens, projected, by_rank])
@given(
    one=st.sampled_from(list(KINDS)),
    other=st.sampled_from(list(KINDS)),
    seed=SEEDS,
    temperature=TEMPERATURES,
    padding=st.tuples(st.integers(-30, 20), st.integers(-30, 20)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    spread=st.sampled_from([1.0, 30.0]),
)
def test_what_is_said_is_a_distribution(
    translation: Any,
    one: str,
    other: str,
    seed: int,
    temperature: float,
    padding: tuple[int, int],
    dtype: torch.dtype,
    spread: float,
) -> None:
    """Whatever the tokenizers, and however many rows the models have."""
    rows = [len(of_kind(kind)) + some for kind, some in zip((one, other), padding, strict=True)]
    student, old = (draw(seed + k, 3, some, spread).to(dtype) for k, some in enumerate(rows))
    kept = student.clone(), old.clone()
    said = known(translation, one, other).logits(old, student, temperature)
    assert said.shape == student.shape
    assert said.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert said.isfinite().all()
    assert (said / temperature).exp().sum(-1).tolist() == pytest.approx([1.0] * 3, rel=1e-4)
    assert divergence(student, said, temperature).isfinite().all()
    assert torch.equal(student, kept[0])
    assert torch.equal(old, kept[1])


def test_no_rows() -> None:
    for translation in (shared_tokens, projected, by_rank):
        assert known(translation, "bytes", "metaspace").logits(draw(0, 0, 300), draw(1, 0, 310), 1.0).shape == (0, 310)


def test_what_has_no_place_is_left_out() -> None:
    """A student without any token that the old model lacks has no bucket for others."""
    larger, smaller = words("flag", "bird", "red"), words("flag", "red")
    vocabulary = {word: token for word, token in smaller.get_vocab().items() if word != "<unk>"}
    assert sorted(vocabulary.values()) == [0, 1, 2, 4, 5]
    old = draw(0, 3, 7)
    # rows 3 (<unk>) aside, that is; the student's model is given none of its probability
    student = draw(1, 3, 6)
    student[:, 3] = -1e4
    said = shared_tokens(smaller, larger).logits(old, student, 1.0).softmax(-1)
    assert said[:, 3].tolist() == pytest.approx((old.softmax(-1)[:, [3, 5]].sum(-1)).tolist())
    # of three rows, all are shared
    cut = shared_tokens(smaller, larger).logits(old, student[:, :3], 1.0).softmax(-1)
    torch.testing.assert_close(cut, old[:, :3].softmax(-1))


@given(seed=SEEDS, temperature=TEMPERATURES, sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@example(seed=0, temperature=1.0, sizes=(4, 9))
@example(seed=0, temperature=1.0, sizes=(9, 4))
def test_absolute_difference_by_rank_is_that_of_sorted_probabilities(
    seed: int, temperature: float, sizes: tuple[int, int]
) -> None:
    """ULD: sorted, filled up with zeros, and the sum of absolute differences."""
    old, student = draw(2 * seed, 4, sizes[0]), draw(2 * seed + 1, 4, sizes[1]).requires_grad_()
    found = absolute_difference(student, by_rank(*SMALL).logits(old, student, temperature), temperature)
    found.sum().backward()
    again = student.detach().clone().requires_grad_()
    p = (old / temperature).softmax(-1).sort(descending=True).values[:, : sizes[1]]
    p = torch.nn.functional.pad(p / p.sum(-1, keepdim=True), (0, max(0, sizes[1] - sizes[0])))
    naive = ((again / temperature).softmax(-1).sort(descending=True).values - p).abs().sum(-1)
    naive.sum().backward()
    torch.testing.assert_close(found, naive, rtol=1e-9, atol=1e-12)
    assert student.grad is not None
    if sizes[1] > 1:  # of one token there is nothing to learn, and the sign of no difference is anyone's guess
        torch.testing.assert_close(student.grad, again.grad, rtol=1e-8, atol=1e-10)


def test_ranks_keep_the_students_order() -> None:
    old, student = draw(0, 6, 8), draw(1, 6, 9)
    said = by_rank(*SMALL).logits(old, student, 1.0)
    assert torch.equal(said.argsort(-1)[:, 1:], student.argsort(-1)[:, 1:])
    assert said.softmax(-1).max(-1).values.tolist() == pytest.approx(old.softmax(-1).max(-1).values.tolist())
    assert said.min().item() == pytest.approx(math.log(torch.finfo(torch.float64).tiny))


def test_the_likeliest_next_word_survives_translation() -> None:
    """Of an old model that is sure of " flag", each way that knows tokens makes a student sure of it."""
    for one in KINDS:
        for other in KINDS:
            student, old = of_kind(one), of_kind(other)
            (flag,) = [token for token, text in enumerate(surfaces(old)) if text == b" flag"]
            sure = torch.zeros(1, len(old)).index_fill_(1, torch.tensor([flag]), 30.0)
            for translation in (shared_tokens, projected):
                best = known(translation, one, other).logits(sure, torch.zeros(1, len(student)), 1.0).argmax().item()
                assert surfaces(student)[int(best)] == b" flag"
