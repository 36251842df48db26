"""The text that each token of a tokenizer stands for, in bytes, and what two tokenizers share by it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError

_ROLES = ("eos", "bos", "pad")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTED]
_BYTES = {256 + k: byte for k, byte in enumerate(_HIDDEN)} | dict.fromkeys(_HIDDEN, 256)
"""The alphabet of byte-level tokenizers (Radford et al. 2019): bytes that cannot be printed are letters from 256 on.
These letters' own bytes are not in it, and become what is no byte."""


def surfaces(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """The text that each token stands for, by id; None for special and unknown tokens and ids that are not in use.

    Undone are: the letters of byte-level tokenizers; the sign for a space (▁) of SentencePiece, and its bytes <0x0A>;
    the ## of WordPiece. Where a tokenizer drops the spaces between words, a token that begins a word stands for a space
    and the word; one of punctuation, if that is split off words, for itself alone.

    Args:
        tokenizer: One of the library `tokenizers` ("fast"), of any kind. Of a kind that marks neither spaces nor the
            insides of words, tokens stand for themselves.

    Raises:
        MuscleError: It is none, and so does not show its rules.
    """
    return Lexicon.of(tokenizer).surfaces


@dataclass(frozen=True)
class Lexicon:
    """The tokens of a tokenizer, for comparing them with another's."""

    surfaces: list[bytes | None]
    """By id, like the next."""
    tokens: list[str | None]
    """As the tokenizer writes them."""
    roles: dict[str, int]
    special: dict[str, int]
    """Special tokens that have no role, the unknown one excepted."""
    unknown: int | None
    whole_words: bool
    """Tokens are words, and no word is cut."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Lexicon:
        """See `surfaces`."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise MuscleError(
                f"tokenizer {tokenizer.name_or_path} is none of the library tokenizers (a fast one), and does not show "
                "what text its tokens stand for: set across to texts, which needs no map of tokens"
            )
        vocabulary = tokenizer.get_vocab()
        added = tokenizer.added_tokens_decoder
        roles = {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
        roles = {role: token for role, token in roles.items() if token is not None}
        unknown = tokenizer.unk_token_id
        if unknown is None and isinstance(word := getattr(backend.model, "unk_token", None), str):
            unknown = vocabulary.get(word)
        special = {*tokenizer.all_special_ids, *(token for token, kind in added.items() if kind.special)}
        special |= set() if unknown is None else {unknown}
        tokens: list[str | None] = [None] * (1 + max(vocabulary.values(), default=-1))
        for word, token in vocabulary.items():  # in no order, and several may have one id
            tokens[token] = min(word, tokens[token] or word)
        spell = _speller(backend)
        return cls(
            surfaces=[
                None if not word or token in special else spell(word, token in added) or None
                for token, word in enumerate(tokens)
            ],
            tokens=tokens,
            roles=roles,
            special={str(tokens[token]): token for token in sorted(special - {unknown, *roles.values()})},
            unknown=unknown,
            whole_words=isinstance(backend.model, models.WordLevel),
        )


def _speller(backend: Tokenizer) -> Callable[[str, bool], bytes]:
    """What turns a token, as it is written, and whether it was added to the vocabulary, into what it stands for."""
    decoder, before = _steps(backend.decoder), [*_steps(backend.normalizer), *_steps(backend.pre_tokenizer)]
    kinds = {step["type"] for step in (*decoder, *before)}
    if "ByteLevel" in kinds:
        return lambda word, added: word.encode() if added else _unbyted(word)
    spaces = [step["replacement"] for step in (*decoder, *before) if step["type"] == "Metaspace"]
    spaces += [
        step["pattern"]["String"]
        for step in decoder
        if step["type"] == "Replace" and step["content"] == " " and "String" in step["pattern"]
    ]
    if spaces:
        has_bytes = "ByteFallback" in kinds or bool(getattr(backend.model, "byte_fallback", False))

        def unmarked(word: str, added: bool) -> bytes:
            if has_bytes and (byte := _BYTE.fullmatch(word)):
                return bytes.fromhex(byte[1])
            return word.replace(spaces[0], " ").encode()

        return unmarked
    inside = getattr(backend.model, "continuing_subword_prefix", None)
    if _split(backend, "a b") != ["a", "b"] or not (inside or isinstance(backend.model, models.WordLevel)):
        return lambda word, added: word.encode()
    split_off = _split(backend, "a.") == ["a", "."]

    def spaced(word: str, added: bool) -> bytes:
        if inside and word.startswith(inside) and word != inside:
            return word.removeprefix(inside).encode()
        alone = added or (split_off and not re.search(r"\w", word))
        return (word if alone else f" {word}").encode()

    return spaced


def _split(backend: Tokenizer, text: str) -> list[str]:
    """What the model gets to see of a text, part by part."""
    return [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]


def _steps(part: Any) -> list[dict[str, Any]]:
    """The settings of each step of a normaliser, a pre-tokenizer or a decoder."""
    return [] if part is None else _flat(json.loads(part.__getstate__()))


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    (steps,) = (value for key, value in step.items() if key != "type")
    return [inner for each in steps for inner in _flat(each)]


def _unbyted(word: str) -> bytes:
    """Of letters of the byte-level alphabet; what has others is as it is, as the decoder has it."""
    try:
        return word.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return word.encode()


def matched(student: Lexicon, old: Lexicon) -> dict[int, int]:
    """Old ids of the tokens that both have -> the student's, one to one.

    Tokens that end, begin and pad texts match by that role alone, other special ones by their names. Unknown tokens
    mean the same only where all else is shared.
    """
    found: dict[int, int] = {}
    taken: set[int] = set()

    def match(theirs: int | None, ours: int | None) -> None:
        if theirs is not None and ours is not None and theirs not in found and ours not in taken:
            found[theirs] = ours
            taken.add(ours)

    for role in _ROLES:  # the earlier one counts where a token has several
        match(old.roles.get(role), student.roles.get(role))
    for name, token in old.special.items():
        match(token, student.special.get(name))
    ours = _by_surface(student)
    for text, tokens in _by_surface(old).items():
        for theirs, mine in zip(tokens, ours.get(text, []), strict=False):
            match(theirs, mine)
    if all(text is None or token in found for token, text in enumerate(old.surfaces)) and all(
        text is None or token in taken for token, text in enumerate(student.surfaces)
    ):
        match(old.unknown, student.unknown)
    return found


def _by_surface(lexicon: Lexicon) -> dict[bytes, list[int]]:
    """Tokens that stand for the same text; last are those that are written at length, such as <0x41> for A."""
    found: dict[bytes, list[int]] = {}
    for token, text in enumerate(lexicon.surfaces):
        if text:
            found.setdefault(text, []).append(token)
    for tokens in found.values():
        if len(tokens) > 1:
            tokens.sort(key=lambda token: len(lexicon.tokens[token] or ""))
    return found


# -------------------------------------------------------------------------------------- first pieces


def first_pieces(tokenizer: PreTrainedTokenizerBase, lexicon: Lexicon, texts: Sequence[bytes]) -> list[int | None]:
    """The student's token that each text begins with; None where there is none.

    The tokenizer says which, with no space of its own before the text. Where that is not how the text begins, the
    longest token that is, unless tokens are whole words: then no other word stands for the text's beginning.

    Args:
        tokenizer: The student's.
        lexicon: Its tokens.
        texts: In bytes, which need not be text.
    """
    vocabulary, verbatim = tokenizer.get_vocab(), _verbatim(tokenizer)
    known = {text: tokens[0] for text, tokens in _by_surface(lexicon).items()}
    longest = max(map(len, known), default=0)

    def longest_of(text: bytes) -> int | None:
        if lexicon.whole_words:
            return None
        return next((known[text[:n]] for n in range(min(len(text), longest), 0, -1) if text[:n] in known), None)

    found: list[int | None] = []
    decoded = [_decoded(text) for text in texts]
    for text, encoding in zip(texts, verbatim.encode_batch_fast(decoded, add_special_tokens=False), strict=True):
        first = vocabulary.get(verbatim.id_to_token(encoding.ids[0]) or "") if len(encoding) else None
        stands_for = None if first is None else lexicon.surfaces[first]
        found.append(first if stands_for and text.startswith(stands_for) else longest_of(text))
    return found


def _decoded(text: bytes) -> str:
    """Nothing where it is no text."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return ""


def _verbatim(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """What cuts texts as the tokenizer does, but puts no space before them, and takes no text for a special token."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    rules = {
        "normalizer": {"type": "Sequence", "normalizers": _unprefixed(_steps(backend.normalizer))},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _unprefixed(_steps(backend.pre_tokenizer))},
    }
    none = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    found: Tokenizer = Tokenizer.from_str(json.dumps({"added_tokens": [], "model": model} | none | rules))
    found.model = backend.model  # shared, not copied: a vocabulary may be large
    found.add_tokens([kind for _, kind in sorted(tokenizer.added_tokens_decoder.items()) if not kind.special])
    return found


def _unprefixed(steps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    never = {"add_prefix_space": False, "prepend_scheme": "never"}
    return [
        step | {key: value for key, value in never.items() if key in step}
        for step in steps
        if step["type"] != "Prepend"
    ]
