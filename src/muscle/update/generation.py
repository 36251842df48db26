"""Text generation in which no row waits for another: one that has ended makes room for a prompt that waits.

lm-eval's HFLM generates batch by batch: each lasts until its longest answer has ended, and until the same stop string
has occurred in all of its rows. Here rows leave the batch as they end, the keys and values of waiting prompts are put
in their place, and generation goes on with a full batch (continuous batching: Yu et al., Orca, OSDI 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    Collator,
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from muscle.errors import MuscleError
from muscle.update.kv_cache import is_by_token, joined, stacked

ROWWISE = {
    *("do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "repetition_penalty"),
}
"""Settings that ask for nothing but a row's scores and own tokens: it may change its place, width and neighbours."""
_WITHOUT_EFFECT = {"bos_token_id", "eos_token_id", "pad_token_id", "max_length", "use_cache", "transformers_version"}
"""What a model's own settings may have besides: the tokens are read here, the rest is overruled by the call."""


def can_refill(lm: HFLM, requests: Sequence[Instance]) -> bool:
    """Whether `generate` below can serve the requests; what it cannot, HFLM's own can.

    It cannot where generating is more than the settings in `ROWWISE` (beams, a minimal length, ...), where a subclass
    of HFLM generates in its own way, and where the model keeps another cache than the keys and values of each token.
    """
    own = getattr(lm.model, "generation_config", None)
    if own is None or _generates_differently(lm):
        return False
    said = {name for name, value in own.to_diff_dict().items() if value and not name.startswith("_")}
    if own.cache_implementation == "hybrid":  # published with Gemma; `generate` itself passes over it
        said.discard("cache_implementation")
    for request in requests:
        said |= normalize_gen_kwargs(request.args[1], lm.max_gen_toks).keys() - {"until", "max_gen_toks"}
    return said <= ROWWISE | _WITHOUT_EFFECT and _cache_is_by_token(lm)


def _generates_differently(lm: HFLM) -> bool:
    return type(lm)._model_generate is not HFLM._model_generate or lm.backend != "causal"


def _cache_is_by_token(lm: HFLM) -> bool:
    """Seen from one token's cache: virtual tokens of a prompt-tuned model would be in it too."""
    if getattr(lm.model.config.get_text_config(decoder=True), "attention_chunk_size", None):
        return False  # chunks are counted from the left end of a row
    token = torch.tensor([[lm.eot_token_id]], device=lm.device)
    output = _generate(lm, token, torch.ones_like(token), max_length=2, do_sample=False)
    cache = output.past_key_values
    return is_by_token(cache) and cache.get_seq_length() == 1


@dataclass(frozen=True)
class Generated:
    """An answer."""

    tokens: list[int]
    """At least one; the last of them ended it, by a stop string, an end of text, or their number."""
    text: str
    """What an evaluation sees."""


def generate(lm: HFLM, asked: Sequence[tuple[str, dict[str, Any]]], disable_tqdm: bool = False) -> list[Generated]:
    """The answers to pairs of a prompt and its gen_kwargs, as HFLM gives them to each alone.

    In larger batches HFLM goes on with a row that has met a stop string until the others have, and what it then makes
    of the row can depend on them: where a stop string is a special token, or overlaps another one.

    Args:
        lm: A model for which `can_refill`; its batch size is the number of rows at a time.
        asked: Those with the same gen_kwargs are generated together, long prompts first.
        disable_tqdm: Whether to show no progress.

    Raises:
        MuscleError: max_gen_toks leaves no room for a prompt.
    """
    ordered = Collator(
        list(asked),
        sort_fn=lambda args: (-len(lm.tok_encode(args[0])), args[0]),
        group_by="gen_kwargs",
    )
    size = lm._detect_batch_size() if lm.batch_size == "auto" else lm.batch_size
    answers: list[Generated] = []
    with tqdm(total=len(asked), disable=disable_tqdm or lm.rank != 0, desc="Running generate_until requests") as bar:
        for group in ordered.get_batched(n=len(asked)):
            settings = group[0][1]
            generation = _Generation.of(lm, settings)
            found = [Generated([], "")] * len(group)
            for place, tokens in generation.run([context for context, _ in group], size):
                found[place] = Generated(tokens, generation.text(tokens))
                lm.cache_hook.add_partial("generate_until", (group[place][0], settings), found[place].text)
                bar.update(1)
            answers += found
    in_order: list[Generated] = ordered.get_original(answers)
    return in_order


@dataclass
class _Row:
    """One request that is being answered."""

    place: int
    """Which one."""
    tokens: list[int] = field(default_factory=list)
    """Of its answer."""
    ended: bool = False


@dataclass
class _Batch:
    """Rows of equal width: padding, prompt, and the answer so far."""

    rows: list[_Row]
    ids: Tensor
    """(B, T)."""
    mask: Tensor
    """(B, T); 0 is padding, on the left."""
    cache: DynamicCache | None
    """Of all tokens but the last, which is still to be read; None before the prompts are read."""


@dataclass(frozen=True)
class _Generation:
    """How one group of requests is generated."""

    lm: HFLM
    until: list[str]
    limit: int
    """Tokens of an answer, at most."""
    sampling: Mapping[str, Any]
    """Settings for `generate`."""
    ends: frozenset[int]
    """End-of-text tokens."""
    lookback: int
    """How many of the last tokens may hold a stop string."""

    @classmethod
    def of(cls, lm: HFLM, gen_kwargs: dict[str, Any]) -> _Generation:
        """As HFLM reads the settings of a request."""
        kwargs = normalize_gen_kwargs(gen_kwargs, lm.max_gen_toks)
        eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
        until = handle_stop_sequences(kwargs.pop("until", None), eos=eos)
        limit = kwargs.pop("max_gen_toks")
        if limit >= lm.max_length:
            raise MuscleError(
                f"max_gen_toks {limit} leaves no room for a prompt in the model's {lm.max_length} tokens: lower it in "
                "the task's generation_kwargs, or raise backend_args.max_length"
            )
        if not kwargs["do_sample"]:
            kwargs.pop("temperature", None)
        ends = lm.model.generation_config.eos_token_id
        return cls(
            lm=lm,
            until=[stop for stop in until if stop],
            limit=limit,
            sampling=kwargs,
            ends=frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends),
            lookback=max(len(stop.encode()) for stop in until) + 2,  # tokens have at least a byte; HFLM adds 2 as well
        )

    def run(self, contexts: Sequence[str], size: int) -> Iterator[tuple[int, list[int]]]:
        """Answer all prompts, `size` at a time; yields the place of each and its tokens as it ends.

        A quarter of the rows are read at a time, so that prompts are padded to others of about their length. A call of
        `generate` costs less than what a sixteenth of the rows do in vain until all of these have ended.
        """
        running: list[_Batch] = []
        read = 0
        while running or read < len(contexts):
            free = min(max(1, size // 4), size - sum(len(batch.rows) for batch in running))
            if free and read < len(contexts):
                running.append(self._read(contexts[read : read + free], first=read))
                read += len(running[-1].rows)
            elif running:
                running = [self._continued(running[0], enough=max(1, len(running[0].rows) // 16))]
            for row in (row for batch in running for row in batch.rows if row.ended):
                yield row.place, row.tokens
            running = _joined(running)

    def text(self, tokens: list[int]) -> str:
        """The answer that an evaluation sees, as HFLM makes it of tokens."""
        after = self.lm.think_end_token
        if isinstance(after, int) and after in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(after) :]
        text = self.lm.tok_decode(tokens)
        text = text.lstrip() if isinstance(after, int) else text
        answer: str = postprocess_generated_text(text, self.until, after if isinstance(after, str) else None)
        return answer

    def _read(self, contexts: Sequence[str], first: int) -> _Batch:
        """Read prompts, and generate one token of each."""
        ids, mask = self.lm.tok_batch_encode(
            list(contexts), left_truncate_len=self.lm.max_length - self.limit, truncation=self.lm.truncation
        )
        rows = [_Row(first + i) for i in range(len(contexts))]
        return self._extended(_Batch(rows, ids.to(self.lm.device), mask.to(self.lm.device), None), 1, enough=1)

    def _continued(self, batch: _Batch, enough: int) -> _Batch:
        """Generate until `enough` more rows have ended."""
        return self._extended(batch, self.limit - min(len(row.tokens) for row in batch.rows), enough)

    def _extended(self, batch: _Batch, tokens: int, enough: int) -> _Batch:
        output = _generate(
            self.lm,
            torch.where(batch.mask.bool(), batch.ids, batch.ids[:, -1:]),  # no repetition of a padding token to punish
            batch.mask,
            past_key_values=batch.cache,
            max_length=batch.ids.shape[1] + tokens,
            stopping_criteria=StoppingCriteriaList([_Ended(batch.rows, self._has_ended, min(enough, len(batch.rows)))]),
            **self.sampling,
        )
        generated = output.sequences.shape[1] - batch.ids.shape[1]
        return _Batch(batch.rows, output.sequences, pad(batch.mask, (0, generated), value=1), output.past_key_values)

    def _has_ended(self, tokens: list[int]) -> bool:
        if tokens[-1] in self.ends or len(tokens) == self.limit:
            return True
        text = self.lm.tok_decode(tokens[-self.lookback :], skip_special_tokens=False)
        return any(stop in text for stop in self.until)


class _Ended(StoppingCriteria):
    """Note each row's tokens until it has ended, and let the call end with `enough` of them."""

    def __init__(self, rows: list[_Row], has_ended: Callable[[list[int]], bool], enough: int) -> None:
        self._rows, self._has_ended, self._enough = rows, has_ended, enough

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if not self._have_enough():  # else `generate` asks once more for a step that it will undo, as it does on mps
            for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
                if not row.ended:
                    row.tokens.append(token)
                    row.ended = self._has_ended(row.tokens)
        return torch.full((len(self._rows),), self._have_enough(), device=input_ids.device)

    def _have_enough(self) -> bool:
        return sum(row.ended for row in self._rows) >= self._enough


def _generate(lm: HFLM, ids: Tensor, mask: Tensor, **settings: Any) -> Any:
    """As HFLM calls `generate` of transformers, and with what it cached."""
    with torch.autocast(lm.device.type, dtype=lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None):
        return lm.model.generate(
            input_ids=ids,
            attention_mask=mask,
            pad_token_id=lm.tokenizer.pad_token_id,
            use_cache=True,
            return_dict_in_generate=True,
            **settings,
        )


def _joined(batches: Sequence[_Batch]) -> list[_Batch]:
    """One batch of all rows that go on, no wider than the longest of them; none where all have ended.

    Rows of the first batch keep their places, unless they are beyond the end; others get the places that are free.
    """
    going = [(n, i) for n, batch in enumerate(batches) for i, row in enumerate(batch.rows) if not row.ended]
    if not going or (len(batches) == 1 and len(going) == len(batches[0].rows)):
        return list(batches) if going else []
    count = len(going)
    staying = {(n, i) for n, i in going if n == 0 and i < count}
    moving = iter([seat for seat in going if seat not in staying])
    seats = [(0, place) if (0, place) in staying else next(moving) for place in range(count)]
    width = max(int(batches[n].mask[i].sum()) for n, i in seats)
    return [
        _Batch(
            [batches[n].rows[i] for n, i in seats],
            stacked([batch.ids for batch in batches], seats, width),
            stacked([batch.mask for batch in batches], seats, width),
            joined([batch.cache for batch in batches if batch.cache is not None], seats, width - 1),
        )
    ]
