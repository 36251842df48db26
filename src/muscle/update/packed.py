"""Log-likelihoods of choices, each context read once.

lm-eval's HFLM reads the context again for every choice, and makes logits of all positions. Here the choices of a
question are branches of one row, whose attention mask is a tree (Cai et al., Medusa, ICML 2024); keys and values of
what consecutive questions begin with, such as their shots, are kept; and the head sees scored positions alone.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn.functional import log_softmax, pad
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import DynamicCache

from muscle.update.heads import Head, read_states
from muscle.update.packing import Group, Integers, Row, Texts, tree

logger = logging.getLogger(__name__)

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""lm-eval's: context and continuation as text, or None, and as tokens."""
Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether greedy decoding would write it."""

LOGITS = 1 << 22
"""So many logits are made at once, unless a single position has more."""

TOKENS = 1024
"""Of a pass on a CPU: more of them are read no faster, each by itself, and rows are padded more."""

READ_IN_TREES: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""By model: its texts of up to so many tokens are known to be read well."""

TOLERANCE = 1e-3
"""In nats, by how much log-likelihoods in float32 may differ from HFLM's for a model to be read in trees."""


class PackedLM(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """HFLM that reads common beginnings once. A forward pass has no more positions than `batch_size` longest texts.

    Whether a model can be read so, with masks and positions that are given and with kept keys and values, is tried:
    where two branches of a text as long as the longest get other log-likelihoods than HFLM's, all is left to HFLM.
    """

    @property
    def _models(self) -> tuple[Any, ...]:
        """The models whose logits `_mixed` turns into one."""
        return (self.model,)

    def _mixed(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits (n, V) out of those of each model."""
        (only,) = logits
        return only

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        scored = self._packed(requests, disable_tqdm)
        if scored is None:
            answers: list[Answer] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return answers
        for (asked, _, _), answer in zip(requests, scored, strict=True):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answer)
        return scored

    def _packed(self, requests: Sequence[Request], disable_tqdm: bool) -> list[Answer] | None:
        """Answers to requests; None where nothing is shared, or HFLM has to answer."""
        if not all(context and 0 < len(continuation) <= self.max_length for _, context, continuation in requests):
            return None  # HFLM says what is wrong
        questions = _Questions(requests, self.max_length)
        if not questions.texts.shared.any():
            return None
        longest = int(questions.texts.lengths.max())
        if longest > min(READ_IN_TREES.get(model, 0) for model in self._models):
            if not self._agrees_with_hflm(questions.longest_text()):
                logger.info("%s cannot be read in trees: each choice is read with its context", type(self.model))
                return None
            READ_IN_TREES.update(dict.fromkeys(self._models, longest))
        if questions.truncated:
            logger.warning(
                "%d of %d texts have more than the model's %d tokens and lose their first ones",
                questions.truncated,
                len(requests),
                self.max_length,
            )
        budget = self.batch_size * longest
        with tqdm(
            total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests"
        ) as bar:
            return self._score(questions, questions.texts.plan(budget), budget, bar.update)

    def _agrees_with_hflm(self, text: list[int]) -> bool:
        """Whether two branches of a text, on top of a kept half of it, get HFLM's log-likelihoods."""
        text = (text * 16)[: max(len(text), min(16, self.max_length + 1))]
        split = max(1, len(text) - min(16, len(text) // 2))
        vocabulary = min(model.config.get_text_config().vocab_size for model in self._models)
        branches = [text[split:], [(token + 1) % vocabulary for token in text[split:]]]
        requests: list[Request] = [(None, text[:split], branch) for branch in branches]
        expected = super()._loglikelihood_tokens(requests, disable_tqdm=True)
        questions = _Questions(requests, self.max_length)
        depth = (split - 1) // 2
        size = int((questions.texts.lengths - questions.texts.shared).sum()) - depth
        plan = Group(groups=[Group(0, depth, rows=[Row(0, len(questions.texts.tokens), size)])])
        try:
            found = self._score(questions, plan, budget=0)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model's own code makes of inputs that it was not written for
            logger.debug("read in trees: %s", error)
            return False
        precision = self.mixed_precision_dtype or self.model.dtype
        looser = (torch.finfo(precision).eps / torch.finfo(torch.float32).eps) ** 0.5  # errors of many tokens average
        return all(
            abs(mine - theirs) <= looser * (TOLERANCE + 1e-5 * abs(theirs))
            for (mine, _), (theirs, _) in zip(found, expected, strict=True)
        )

    def _score(
        self, questions: _Questions, plan: Group, budget: int, report: Callable[[int], object] = lambda _: None
    ) -> list[Answer]:
        """Answers to all requests, read as planned; `report` is told how many more there are."""
        sums = np.zeros(questions.number)
        greedy = np.ones(questions.number, dtype=bool)
        nothing: list[_Kept | None] = [None] * len(self._models)
        undone = [(plan, 0, nothing)]
        while undone:
            group, known, kept = undone.pop()
            if group.depth > known:
                prefix = questions.texts.tokens[group.text][: group.depth]
                kept = self._keep(prefix, known, kept)
            for rows in group.batches(budget, TOKENS if self.device.type == "cpu" else budget):
                batch = _Batch(questions, rows, group.depth, self.device)
                where, (log_p, is_greedy) = batch.requests, self._read(batch, kept)
                np.add.at(sums, where, log_p)
                np.logical_and.at(greedy, where, is_greedy)
                report(len(np.unique(where)))
            undone.extend((further, group.depth, kept) for further in group.groups)
        return [(float(total), bool(flag)) for total, flag in zip(sums, greedy, strict=True)]

    def _keep(self, prefix: Integers, known: int, kept: Sequence[_Kept | None]) -> list[_Kept | None]:
        """Keys and values of a prefix, out of those of its first `known` tokens."""
        inputs = {
            "input_ids": self._on_device(prefix[None, known:]),
            "position_ids": torch.arange(known, len(prefix), device=self.device)[None],
        }
        grown = [_Kept() if each is None else each.branch() for each in kept]
        with self._inference():
            for model, cache in zip(self._models, grown, strict=True):
                read_states(model, lambda *_: None, past_key_values=cache, use_cache=True, **inputs)
                cache.frozen = True
        return [*grown]

    def _read(self, batch: _Batch, kept: Sequence[_Kept | None]) -> tuple[Integers, Integers]:
        """For each scored token of a batch its log-probability, and whether it is the likeliest."""
        nodes, place = np.unique(batch.nodes, return_inverse=True)  # choices are scored from the same last token
        index, tokens = self._on_device(nodes), self._on_device(batch.targets)
        places = self._on_device(place)
        log_p = torch.empty(len(tokens), dtype=torch.float64)
        greedy = torch.empty(len(tokens), dtype=torch.bool)

        def scored(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
            return hidden.flatten(0, 1)[index], head

        with self._inference():
            states = [
                read_states(model, scored, past_key_values=cache, use_cache=cache is not None, **batch.inputs(model))
                for model, cache in zip(self._models, kept, strict=True)
            ]
            step = max(1, LOGITS // self.model.config.get_text_config().vocab_size)
            for start in range(0, len(nodes), step):
                logits = self._mixed([head(rows[start : start + step]) for rows, head in states])
                found = log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
                here = np.flatnonzero((place >= start) & (place < start + step))
                at, token = places[here] - start, tokens[here]
                log_p[here] = found[at, token].cpu().double()
                greedy[here] = (found.argmax(-1)[at] == token).cpu()
        return log_p.numpy(), greedy.numpy()

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Without gradients, in the precision that HFLM calls its model in."""
        precision = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype=precision, enabled=precision is not None):
            yield

    def _on_device(self, numbers: Integers) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


class _Kept(DynamicCache):
    """Keys and values of a prefix, at batch size 1. Once frozen, any number of rows may read on, and leave no trace."""

    frozen = False

    def branch(self) -> _Kept:
        """Another one that begins as this one, and grows."""
        grown = _Kept()
        grown.layers = [copy.copy(layer) for layer in self.layers]
        return grown

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix in front of those given, (batch, heads, length, size)."""
        if not self.frozen:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer: Any = self.layers[layer_idx]
        rows = len(key_states)
        keys, values = (kept.expand(rows, -1, -1, -1) for kept in (layer.keys, layer.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class _Questions:
    """Requests by the text that a model has to read for them: those of one text are answered by one reading."""

    def __init__(self, requests: Sequence[Request], max_length: int) -> None:
        self.number, self.truncated = len(requests), 0
        self._continuations = [np.array(continuation) for _, _, continuation in requests]
        by_text: dict[bytes, list[int]] = {}
        tokens: list[Integers] = []
        for i, (_, context, continuation) in enumerate(requests):
            whole = (context + continuation)[-(max_length + 1) :]
            self.truncated += len(whole) < len(context) + len(continuation)
            text = np.array(whole[:-1])
            known = by_text.setdefault(text.tobytes(), [])
            if not known:
                tokens.append(text)
            known.append(i)
        groups = list(by_text.values())
        unread = [
            len(text) - max(len(self._continuations[i]) for i in of_text)
            for text, of_text in zip(tokens, groups, strict=True)
        ]
        self.texts = Texts(tokens, unread)
        self._requests = [groups[i] for i in self.texts.order]

    def longest_text(self) -> list[int]:
        """The longest that there is, with what follows it."""
        longest = int(self.texts.lengths.argmax())
        found: list[int] = self.texts.tokens[longest].tolist()
        return [*found, int(self._continuations[self._requests[longest][0]][-1])]

    def about(self, text: int) -> Iterator[tuple[int, Integers]]:
        """The requests that a text answers, each with its number and its continuation."""
        for request in self._requests[text]:
            yield request, self._continuations[request]


class _Batch:
    """Rows on top of one prefix of `depth` tokens, as tensors."""

    def __init__(self, questions: _Questions, rows: Sequence[Row], depth: int, device: torch.device) -> None:
        width = max(row.size for row in rows)
        tokens, depths = np.zeros((2, len(rows), width), dtype=np.int64)
        ends = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding sees itself alone
        scored: list[tuple[Integers, Integers, Integers]] = []
        for i, row in enumerate(rows):
            branches = tree(questions.texts, row, depth)
            tokens[i, : row.size], depths[i, : row.size] = branches.tokens, branches.depths
            ends[i, : row.size] = branches.ends
            for text, path in zip(range(row.start, row.stop), branches.paths, strict=True):
                for request, targets in questions.about(text):
                    nodes = i * width + path[len(path) - len(targets) :]
                    scored.append((nodes, targets, np.full(len(targets), request)))
        self.nodes, self.targets, self.requests = map(np.concatenate, zip(*scored, strict=True))
        """For each scored token: from which position of all, which token, and for which request."""
        self._prefix = depth
        self._tokens, self._depths, self._ends = (torch.from_numpy(each).to(device) for each in (tokens, depths, ends))

    def inputs(self, model: Any) -> dict[str, Any]:
        """What a model is called with, beside the prefix's keys and values."""
        return {"input_ids": self._tokens, "position_ids": self._depths, "attention_mask": self._masks(model)}

    def _masks(self, model: Any) -> Tensor | dict[str, Tensor]:
        """(rows, 1, width, prefix + width): a token sees the prefix, its ancestors and itself, as far as windows go."""
        rows, width = self._tokens.shape
        index = torch.arange(width, device=self._tokens.device)
        tree_mask = (index <= index[:, None]) & (index[:, None] < self._ends[:, None, :])
        visible = pad(tree_mask, (self._prefix, 0), value=True)
        config: Any = model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
        if window is None or "sliding_attention" not in kinds or int(self._depths.max()) < window:
            return _mask(visible, config, model)
        prefix = torch.arange(self._prefix, device=index.device).expand(rows, -1)
        keys = torch.cat([prefix, self._depths], dim=1)
        near = visible & (self._depths[:, :, None] - keys[:, None, :] < window)
        if kinds == {"sliding_attention"}:
            return _mask(near, config, model)
        return {"full_attention": _mask(visible, config, model), "sliding_attention": _mask(near, config, model)}


def _mask(visible: Tensor, config: Any, model: Any) -> Tensor:
    """(B, T, K) as what a model's attention takes: booleans, or what is to be added to its scores."""
    visible = visible[:, None]
    if config._attn_implementation == "sdpa":
        return visible
    dtype: Any = model.dtype
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
