"""Objectives towards an old teacher with another tokenizer, against plain floats, chunk by chunk."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from torch import Tensor, nn

from muscle.update.across.comparisons import likelihood_matching, matching_slope
from muscle.update.across.old_teachers import ChunkTeacher, TranslatedTeacher
from muscle.update.across.translations import Translation
from muscle.update.alignment_settings import AlignmentSettings, EmphasisName, WeightName
from muscle.update.comparison import Scales
from muscle.update.heads import Head
from muscle.update.objectives import compatibility
from muscle.update.rows import Outcome
from muscle.update.teacher_cache import States
from muscle.update.tokenized import IGNORED

from .reference import argmax, kl, softmax
from .test_objectives import Fixed, V, chunks_of, factor, items, said, trained_head

TAUS = [None, 1.0, 100.0]


def matching(student: float, teacher: float, tau: float | None) -> float:
    """ALM by its definition."""
    if tau is None:
        return teacher - student + teacher * math.log(student / teacher)
    p, q = math.exp(teacher / tau), math.exp(student / tau)
    return tau * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


@pytest.mark.parametrize("tau", TAUS)
@given(student=st.floats(-60, -1e-3), teacher=st.floats(-60, -1e-3))
def test_likelihood_matching_is_its_definition(student: float, teacher: float, tau: float | None) -> None:
    ours, theirs = (torch.tensor([number], dtype=torch.float64) for number in (student, teacher))
    ours.requires_grad_()
    value = likelihood_matching(ours, theirs, tau)
    if tau != 1 or min(student, teacher) > -30:  # beyond that 1 - e^l is 1 in floats
        assert value.item() == pytest.approx(matching(student, teacher, tau), rel=1e-6, abs=1e-9)
    assert value.item() >= 0
    (slope,) = torch.autograd.grad(value, ours)
    if abs(student - teacher) > 1e-6:
        assert matching_slope(ours.detach(), theirs, tau).item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-9)


@given(numbers=st.floats(-60, -1e-3))
@pytest.mark.parametrize("tau", TAUS)
def test_equal_likelihoods_match(numbers: float, tau: float | None) -> None:
    same = torch.tensor([numbers], dtype=torch.float64)
    assert likelihood_matching(same, same, tau).item() == pytest.approx(0, abs=1e-12)
    assert matching_slope(same, same, tau).item() == pytest.approx(0, abs=1e-12)


@given(student=st.floats(-20, -1e-3), teacher=st.floats(-20, -1e-3))
def test_the_limit_is_that_of_large_tau(student: float, teacher: float) -> None:
    ours, theirs = (torch.tensor([number], dtype=torch.float64) for number in (student, teacher))
    for function in (likelihood_matching, matching_slope):
        limit, large = function(ours, theirs, None), function(ours, theirs, 1e6)
        assert large.item() == pytest.approx(limit.item(), rel=1e-3, abs=1e-4)


@settings_of_hypothesis(max_examples=30)
@given(seed=st.integers(0, 1000))
def test_with_tau_1_a_token_has_at_most_its_divergence(seed: int) -> None:
    student, teacher = said(seed)[0, 0], said(seed + 1)[0, 0]
    whole = kl(softmax(teacher.tolist()), softmax(student.tolist()))
    ours, theirs = (z.log_softmax(-1)[:1] for z in (student, teacher))
    assert likelihood_matching(ours, theirs, 1.0).item() <= whole + 1e-9


def test_the_extremes_are_finite() -> None:
    ours, theirs = torch.tensor([0.0, -200.0, 0.0, -1e-9]), torch.tensor([-200.0, 0.0, 0.0, -0.7])
    for tau in TAUS:
        assert torch.isfinite(likelihood_matching(ours, theirs, tau)).all()
        assert torch.isfinite(matching_slope(ours, theirs, tau)).all()


# ---------------------------------------------------------------------------------------------------- whole objectives


@dataclass(frozen=True)
class Case:
    """A batch, what student and new teacher say of its tokens, and the old one of chunks."""

    rows: dict[str, Tensor]
    student: Tensor
    new: Tensor
    old: ChunkTeacher
    chunk: int
    trained: bool

    def found(self, settings: AlignmentSettings, scales: Scales) -> tuple[Outcome, Tensor]:
        student = self.student.clone().requires_grad_()
        head = trained_head(student) if self.trained else Head(nn.Identity())
        new = Fixed(self.new) if "new" in settings.teachers else None
        with chunks_of(self.chunk):
            result = compatibility(self.old, new, settings, scales)(self.rows)(student, head)
            result[0].backward()
        assert student.grad is not None
        return result, student.grad


@st.composite
def cases(draw: st.DrawFn, whole: bool = False) -> Case:
    """Texts are cut anywhere, and here and there a token is in no chunk."""
    seed, wide = draw(st.integers(0, 10_000)), draw(st.integers(0, 4))
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    rows = items(seed, sizes, draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))))
    labels = rows["labels"][rows["index"].argsort()][:, 1:]
    starts, chunk, count = [0], list[int](), 0
    for text in labels:
        targets = int((text != IGNORED).sum())
        starts.append(starts[-1] + targets)
        if whole:
            chunk += [len(starts) - 2] * targets
            continue
        for first in range(targets):
            if first == 0 or draw(st.booleans()):
                count += 1
            chunk.append(-1 if draw(st.integers(0, 3)) == 0 else count - 1)
    numbers = {old: new for new, old in enumerate(sorted({number for number in chunk if number >= 0}))}
    if whole:
        numbers = {text: text for text in range(len(labels))}
    renumbered = torch.tensor([numbers.get(number, -1) for number in chunk], dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    likelihood = -4 * torch.rand(len(numbers), dtype=torch.float64, generator=generator)
    right = torch.rand(len(numbers), generator=generator) < 0.5
    models = (said(3 * seed + k, V + wide * k, texts=sum(sizes)) for k in range(2))
    alone = None
    if not whole and draw(st.booleans()):  # of some chunks of one token the old model says more
        lone = [number for number in numbers.values() if (renumbered == number).sum() == 1 and draw(st.booleans())]
        place = torch.tensor([lone.index(number) if number in lone else -1 for number in renumbered.tolist()])
        states = torch.randn(len(lone), V, dtype=torch.float64, generator=generator)
        head, translation = Head(nn.Identity()), Translation(lambda old, student, t: old + 0 * student * t, None)
        alone = TranslatedTeacher(starts, place.long(), States(states, (), states.dtype), head, translation)
    teacher = ChunkTeacher(starts, renumbered, likelihood, right, alone)
    return Case(rows, *models, teacher, chunk=draw(st.integers(1, 12)), trained=draw(st.booleans()))


@dataclass
class Row:
    """One target, all of plain numbers but the student's logits."""

    text: int
    item: int
    right: bool
    gold: int
    chunk: int
    student: Tensor
    """(V,), with a graph."""
    new: list[float]
    old: list[float] | None
    """Logits, where the old model says more than the chunk's likelihood."""

    def likelihood(self, model: str) -> float:
        logits = self.student.tolist() if model == "student" else self.new
        return math.log(softmax(logits)[self.gold])

    def is_right(self, model: str) -> bool:
        shared = min(len(self.new), len(self.student))
        logits = self.student[:shared].tolist() if model == "student" else self.new[:shared]
        return argmax(logits) == self.gold


def rows_of(case: Case, student: Tensor) -> list[Row]:
    found = []
    shared = min(case.new.shape[-1], case.student.shape[-1])
    for place, source in enumerate(case.rows["index"].tolist()):
        before = (case.rows["labels"][place, 1:] != IGNORED).nonzero()[:, 0].tolist()
        for i, position in enumerate(before):
            target, alone = case.old.starts[source] + i, case.old.alone
            told = alone is not None and alone.place[target] >= 0
            found.append(
                Row(
                    place,
                    int(case.rows["item"][place]),
                    bool(case.rows["right"][place]),
                    int(case.rows["labels"][place, position + 1]),
                    int(case.old.chunk[target]),
                    student[place, position],
                    case.new[source, position, :shared].tolist(),
                    alone.states.rows[alone.place[target]].tolist() if alone and told else None,
                )
            )
    return found


def weights_of_chunks(name: str, settings: AlignmentSettings, case: Case, rows: list[Row]) -> dict[int, float]:
    """Weights and emphases, of chunks in place of tokens."""
    chunks = {row.chunk: [other for other in rows if other.chunk == row.chunk] for row in rows if row.chunk >= 0}
    ours = {c: sum(row.likelihood("student") for row in members) for c, members in chunks.items()}
    news = {c: sum(row.likelihood("new") for row in members) for c, members in chunks.items()}
    theirs, a = {c: case.old.likelihood[c].item() for c in chunks}, settings.old_share
    old_right = {c: bool(case.old.right[c]) for c in chunks}
    found = {}
    for c, members in chunks.items():
        of_text = [d for d, others in chunks.items() if others[0].text == members[0].text]
        first = members[0]
        match name:
            case "student_wrong":
                found[c] = float(not all(row.is_right("student") for row in members))
            case "old_right":
                found[c] = float(old_right[c])
            case "always_old":
                found[c] = 1.0
            case "token_likelihood" | "constrained":
                found[c] = float(ours[c] < theirs[c])
            case "sequence_likelihood":
                found[c] = float(sum(ours[d] for d in of_text) < sum(theirs[d] for d in of_text))
            case "mixture":
                found[c] = a
            case "old_right_else_mixture":
                found[c] = 1.0 if old_right[c] and first.right else a
            case "likelier":
                ahead = sum(theirs[d] - news[d] for d in of_text) / sum(len(chunks[d]) for d in of_text)
                p, q = a * math.exp(ahead), 1 - a
                found[c] = p / (p + q) if first.right else a
            case "old_right_item_else_mixture":
                found[c] = 1.0 if gets_item_right(first.item, chunks, theirs, old_right) else a
            case "focal":
                found[c] = 1 + settings.focal_beta * (old_right[c] and first.right)
            case "old_likelihood":
                found[c] = math.exp(sum(theirs[d] for d in of_text) / sum(len(chunks[d]) for d in of_text))
    return found


def gets_item_right(
    item: int, chunks: Mapping[int, list[Row]], theirs: Mapping[int, float], old_right: Mapping[int, bool]
) -> bool:
    texts: dict[int, list[int]] = {}
    for c, members in chunks.items():
        if members[0].item == item:
            texts.setdefault(members[0].text, []).append(c)
    is_right = {text: chunks[numbers[0]][0].right for text, numbers in texts.items()}
    if len(texts) == 1:
        ((text, numbers),) = texts.items()
        return is_right[text] and all(old_right[c] for c in numbers)
    totals = {text: sum(theirs[c] for c in numbers) for text, numbers in texts.items()}
    return any(is_right[text] and total >= max(totals.values()) - 1e-12 for text, total in totals.items())


SETTINGS = st.fixed_dictionaries(
    {
        "weight": st.sampled_from(get_args(WeightName)),
        "old_share": st.sampled_from([0.0, 0.3, 1.0]),
        "temperature": st.sampled_from([1.0, 2.0, 0.5]),
        "ce_share": st.sampled_from([0.0, 0.25, 1.0]),
        "squared_temperature": st.booleans(),
        "chunk_temperature": st.sampled_from(TAUS),
    }
)


@settings_of_hypothesis(max_examples=150)
@given(
    case=cases(),
    chosen=SETTINGS,
    emphasis=st.sampled_from([None, *get_args(EmphasisName)]),
    right=st.sampled_from([1.0, 1.75]),
)
def test_every_objective_across_tokenizers_is_the_references(
    case: Case, chosen: dict[str, Any], emphasis: EmphasisName | None, right: float
) -> None:
    settings = AlignmentSettings(**chosen, emphasis=emphasis)
    if "old" not in settings.teachers:
        return  # then there is nothing to do across
    (total, count, statistics), gradient = case.found(settings, Scales(right=right))

    student = case.student.clone().requires_grad_()
    rows = rows_of(case, student)
    w = weights_of_chunks(str(settings.weight), settings, case, rows)
    r = weights_of_chunks(emphasis, settings, case, rows) if emphasis else dict.fromkeys(w, 1.0)
    t, tau, loss = settings.temperature, settings.chunk_temperature, 0 * student.sum()
    seen = dict.fromkeys(("cross_entropy", "token_accuracy", "old_divergence", "new_divergence", "aligned_to_old"), 0.0)
    for row in rows:
        share, times = (w[row.chunk], r[row.chunk]) if row.chunk >= 0 else (0.0, 1.0)
        z, target = row.student[: len(row.new)], torch.tensor(row.new, dtype=torch.float64)
        if row.old is not None:
            target = share * torch.tensor(row.old, dtype=torch.float64) + (1 - share) * target
        p, q = (target / t).softmax(-1), (z / t).softmax(-1)
        distance = (p * (p / q).log()).sum()
        ce = -row.student.softmax(-1)[row.gold].log()
        if row.old is not None and share:
            loss = loss + factor(settings) * times * share * distance
            seen["old_divergence"] += share * distance.item()
        if "new" in settings.teachers:
            loss = loss + factor(settings) * times * (1 - share) * distance
            seen["new_divergence"] += (1 - share) * distance.item()
        loss = loss + settings.ce_share * (right if row.right else 0.0) * ce
        seen["cross_entropy"] += ce.item()
        seen["token_accuracy"] += argmax(row.student.tolist()) == row.gold
        seen["aligned_to_old"] += share
    for c in w.keys() - {row.chunk for row in rows if row.old is not None}:
        ours = sum((row.student.log_softmax(-1)[row.gold] for row in rows if row.chunk == c), torch.zeros(()))
        theirs = case.old.likelihood[c]
        if tau is None:
            matched = theirs - ours + theirs * (ours / theirs).log()
        else:
            p, q = (theirs / tau).exp(), (ours / tau).exp()
            matched = tau * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
        loss = loss + factor(settings) / t**2 * w[c] * r[c] * matched
        seen["old_divergence"] += w[c] * matched.item()
    loss.backward()
    assert student.grad is not None
    assert (total.item(), count.item()) == (pytest.approx(loss.item(), rel=1e-5, abs=1e-6), len(rows))
    torch.testing.assert_close(gradient, student.grad, rtol=1e-5, atol=1e-6)
    assert {name: value.item() for name, value in statistics.items()} == pytest.approx(seen, rel=1e-5, abs=1e-6)


@settings_of_hypothesis(max_examples=60)
@given(case=cases(whole=True), chosen=SETTINGS, item=st.sampled_from([1.0, 3.5]))
def test_choices_are_compared_by_their_texts_totals(case: Case, chosen: dict[str, Any], item: float) -> None:
    settings = AlignmentSettings(**chosen, level="choice", texts="choices")
    if "old" not in settings.teachers:
        return
    scales = Scales(item=item, labelled=1.25)
    (total, _, statistics), gradient = case.found(settings, scales)
    student = case.student.clone().requires_grad_()
    rows = rows_of(case, student)
    w = weights_of_chunks(str(settings.weight), settings, case, rows)
    loss, divergence = 0 * student.sum(), 0.0
    for number in {row.item for row in rows}:
        texts = sorted({row.text for row in rows if row.item == number})
        members = [[row for row in rows if row.text == text] for text in texts]
        ours = torch.stack(
            [sum((row.student.log_softmax(-1)[row.gold] for row in each), torch.zeros(())) for each in members]
        )
        totals = []
        for each in members:
            share, old = w[each[0].chunk], case.old.likelihood[each[0].chunk].item()
            totals.append(share * old + (1 - share) * sum(row.likelihood("new") for row in each))
        p = (torch.tensor(totals, dtype=torch.float64) / settings.temperature).softmax(0)
        here = (p * (p / (ours / settings.temperature).softmax(0)).log()).sum()
        divergence += here.item()
        loss = loss + item * factor(settings) * here
        for each, share in zip(members, ours.log_softmax(0), strict=True):
            loss = loss - item * settings.ce_share * 1.25 * share * each[0].right
    loss.backward()
    assert student.grad is not None
    assert total.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient, student.grad, rtol=1e-5, atol=1e-6)
    assert statistics["choice_divergence"].item() == pytest.approx(item * divergence, rel=1e-5, abs=1e-6)


def test_an_old_teacher_that_says_what_the_student_says_pulls_nowhere() -> None:
    rows, student = items(3), said(0, texts=8)
    labels = rows["labels"][:, 1:]
    counted = labels != IGNORED
    order = rows["index"].argsort()
    gold = student.log_softmax(-1)[:, :-1].gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    likelihood = torch.cat([gold[row][counted[row]] for row in order])
    starts = [0, *counted[order].sum(1).cumsum(0).tolist()]
    teacher = ChunkTeacher(starts, torch.arange(len(likelihood)), likelihood, torch.ones(len(likelihood)).bool())
    settings = AlignmentSettings(weight="always_old", across="likelihood")
    moved = student.clone().requires_grad_()
    total, _, _ = compatibility(teacher, None, settings)(rows)(moved, Head(nn.Identity()))
    total.backward()
    assert total.item() == pytest.approx(0, abs=1e-5)
    assert moved.grad is not None
    assert moved.grad.abs().max() < 1e-5


@pytest.mark.parametrize(("settings", "fit", "times"), [({}, 3, 1), ({}, 1, 2), ({"emphasis": "old_likelihood"}, 3, 2)])
def test_the_student_is_read_once_where_chunks_fit_into_the_rows_at_a_time(
    settings: dict[str, Any], fit: int, times: int
) -> None:
    """Chunks of two tokens; an emphasis that reads whole texts has to know all rows before the first."""
    student = Fixed(said(0, texts=1))
    labels = torch.arange(student.said.shape[1])[None] % V
    targets = labels.shape[1] - 1
    chunk = torch.arange(targets) // 2
    count = int(chunk.max()) + 1
    teacher = ChunkTeacher([0, targets], chunk, -torch.rand(count), torch.ones(count).bool())
    batch = {"labels": labels, "index": torch.tensor([0])}
    objective = compatibility(teacher, Fixed(said(1, texts=1)), AlignmentSettings(**settings))
    with chunks_of(fit):
        objective(batch)(student.said.clone().requires_grad_(), Head(student.hear))
    assert sum(student.asked) == times * targets
