"""The whole objective on a padded batch, loss, gradient and statistics, against `reference`, token by token."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from torch import Tensor, nn

from muscle.errors import MuscleError
from muscle.update import losses
from muscle.update.alignment_settings import AlignmentSettings, EmphasisName, WeightName
from muscle.update.comparison import Aims, Scales
from muscle.update.heads import Head
from muscle.update.objectives import Compatibility, Objective, compatibility, task_objective
from muscle.update.rows import Outcome
from muscle.update.tokenized import IGNORED
from muscle.update.weights import student_wrong

from .reference import Text, argmax, away, choices, emphases, mixed, single, softmax, weights

LENGTHS, WIDTH, V = (6, 3, 5), 6, 5
PROMPT = (0, 0, 2)
"""Tokens at the start of each row that are context, not targets."""

EVERY_WEIGHT = pytest.mark.parametrize("weight", get_args(WeightName))
MASKS: tuple[WeightName, ...] = ("student_wrong", "old_right", "always_old", "token_likelihood", "sequence_likelihood")
"""The paper's."""
EMPHASES: tuple[EmphasisName | None, ...] = (None, *get_args(EmphasisName))
ONE = Scales()
BOTH_LEVELS = pytest.mark.parametrize("level", ["token", "choice"])


@dataclass
class Fixed:
    """A teacher that always says the same; stands in for real ones, which their own tests compare with a model."""

    said: Tensor
    """Logits (texts, T, V)."""
    asked: list[int] = field(default_factory=list)
    """Rows that its head was asked for, time after time."""

    def states(self, batch: Mapping[str, Tensor], counted: Tensor) -> tuple[Tensor, Head]:
        return self.said[batch["index"]][:, :-1][counted], Head(self.hear)

    def hear(self, rows: Tensor) -> Tensor:
        self.asked.append(len(rows))
        return rows.clone()


def outcome(objective: Objective, logits: Tensor, rows: Mapping[str, Tensor] | None = None) -> Outcome:
    """Of a student whose final hidden states are its logits: heads have their own tests."""
    return objective(batch() if rows is None else rows)(logits, Head(nn.Identity()))


def trained_head(logits: Tensor) -> Head:
    """One that leaves the states as they are and is trained, so that its logits are made again for the gradient."""
    width = logits.shape[-1]
    layer = nn.Linear(width, width, bias=False).to(logits.dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))
    return Head(layer)


@contextmanager
def chunks_of(rows: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "LEAST_ROWS", rows)
        patch.setitem(losses.LOGITS_AT_A_TIME, "cpu", 0)
        yield


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(V, (len(LENGTHS), WIDTH), generator=generator)
    for row, (length, prompt) in enumerate(zip(LENGTHS, PROMPT, strict=True)):
        labels[row, length:] = IGNORED
        labels[row, : max(1, prompt)] = IGNORED
    return {"labels": labels, "index": torch.tensor([1, 0, 2])}


def said(seed: int, rows: int = V, dtype: torch.dtype = torch.float64, texts: int = len(LENGTHS)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(texts, WIDTH, rows, dtype=torch.float64, generator=generator).to(dtype)


def items(seed: int, sizes: Sequence[int] = (3, 2, 1, 2), labelled: Sequence[bool] = (True, True, True, False)) -> Any:
    """A batch of items, each of some texts of any length, whose order is mixed; a text may be without a target."""
    generator = torch.Generator().manual_seed(seed)
    item = torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)])
    right = torch.tensor(
        [known and text == 0 for size, known in zip(sizes, labelled, strict=True) for text in range(size)]
    )
    labels = torch.randint(V, (len(item), WIDTH), generator=generator)
    for row in labels:
        start, length = (int(torch.randint(*bounds, (), generator=generator)) for bounds in ((0, 4), (0, 6)))
        row[:start], row[start + length :] = IGNORED, IGNORED
    order = torch.randperm(len(item), generator=generator)
    return {"labels": labels[order], "index": order, "item": item[order] + 5, "right": right[order]}


def texts_of(student: Tensor, old: Tensor, new: Tensor, rows: Mapping[str, Tensor], wide: bool = False) -> list[Text]:
    """Target by target; logits of the rows that all models share, or with wide all of the student's."""
    found = []
    shared = min(z.shape[-1] for z in (student, old, new))
    for row, source in enumerate(rows["index"].tolist()):
        labels = rows["labels"][row].tolist()
        # the logits that predict a token stand one before it
        before = [i for i, y in enumerate(labels[1:]) if y != IGNORED]
        logits = [z[r, before, :shared].tolist() for z, r in ((student, row), (old, source), (new, source))]
        if wide:
            logits[0] = student[row, before].tolist()
        belongs = (rows["item"][row].item(), rows["right"][row].item()) if "item" in rows else (row, True)
        found.append(Text(*logits, [labels[i + 1] for i in before], int(belongs[0]), bool(belongs[1])))
    return found


def factor(settings: AlignmentSettings) -> float:
    return (1 - settings.ce_share) * (settings.temperature**2 if settings.squared_temperature else 1.0)


@dataclass
class Sums:
    """What the reference adds up over the target positions."""

    total: float = 0.0
    count: int = 0
    gradient: list[list[float]] = field(default_factory=list)
    """By target; zero elsewhere."""
    statistics: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("cross_entropy", "token_accuracy", "old_divergence", "new_divergence", "aligned_to_old"), 0.0
        )
    )


def expected(
    student: Tensor,
    old: Tensor,
    new: Tensor,
    settings: AlignmentSettings,
    rows: Mapping[str, Tensor] | None = None,
    scales: Scales = ONE,
) -> Sums:
    """n * (lambda * L_comp + (1 - lambda) * L_CE), its gradient by hand, and the statistics."""
    sums, t, rows = Sums(), settings.temperature, batch() if rows is None else rows
    texts, wide = texts_of(student, old, new, rows), texts_of(student, old, new, rows, wide=True)
    ruled = iter(weights(str(settings.weight), texts, settings.old_share))
    times = iter(emphases(settings.emphasis, texts, settings.focal_beta))
    for text, full in zip(texts, wide, strict=True):
        ce_share = settings.ce_share * (scales.right if text.right else 0.0)
        for i, y in enumerate(text.gold):
            w, r = single(next(ruled)), next(times)
            teacher = mixed(w, text.old[i], text.new[i])
            distance, towards = away(text.student[i], teacher, settings.distance, t)
            likelihood = softmax(full.student[i])
            ce = -math.log(likelihood[y])
            sums.total += factor(settings) * r * distance + ce_share * ce
            sums.count += 1
            gradient = [ce_share * (p - (v == y)) for v, p in enumerate(likelihood)]
            for v, step in enumerate(towards):
                gradient[v] += factor(settings) * r * step
            sums.gradient.append(gradient)
            here = (ce, argmax(full.student[i]) == y, w * distance, (1 - w) * distance, w)
            for name, value in zip(sums.statistics, here, strict=True):
                sums.statistics[name] += float(value)
    return sums


def naive_choices(
    student: Tensor, old: Tensor, new: Tensor, settings: AlignmentSettings, rows: Mapping[str, Tensor], scales: Scales
) -> Tensor:
    """The loss of the choices for autograd, target by target."""
    texts = texts_of(student.detach(), old, new, rows)
    ruled = iter(weights(str(settings.weight), texts, settings.old_share))
    totals: dict[int, list[tuple[Tensor, Tensor, bool]]] = {}
    for row, text in enumerate(texts):
        before = (rows["labels"][row, 1:] != IGNORED).nonzero()[:, 0].tolist()
        ours, theirs = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for i, y, z_1, z_2 in zip(before, text.gold, text.old, text.new, strict=True):
            teacher = torch.tensor(mixed(next(ruled), z_1, z_2), dtype=torch.float64)
            ours = ours + student[row, i].double().softmax(-1)[y].log()
            theirs = theirs + teacher.softmax(-1)[y].log()
        if before:
            totals.setdefault(text.item, []).append((ours, theirs, text.right))
    loss = 0 * student.double().sum()
    for item in totals.values():
        ours, theirs = (torch.stack([text[k] for text in item]) for k in range(2))  # type: ignore[misc]
        p, q = ((z / settings.temperature).softmax(0) for z in (theirs, ours))
        loss = loss + factor(settings) * (p * (p / q).log()).sum()
        for share, (_, _, right) in zip(ours.softmax(0), item, strict=True):
            loss = loss - settings.ce_share * scales.labelled * share.log() * right
    return scales.item * loss


def gradient_of(objective: Objective, logits: Tensor, rows: Mapping[str, Tensor] | None = None) -> Tensor:
    student = logits.detach().clone().requires_grad_()
    outcome(objective, student, rows)[0].backward()
    assert student.grad is not None
    return student.grad


@pytest.mark.parametrize("weight", MASKS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("ce_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("vocabularies", [(V, V, V), (V + 3, V, V + 1), (V + 1, V + 3, V + 2)])
def test_compatibility_is_the_papers_sum(
    weight: WeightName, temperature: float, squared: bool, ce_share: float, vocabularies: tuple[int, int, int]
) -> None:
    student, old, new = (said(seed, rows) for seed, rows in enumerate(vocabularies))
    student.requires_grad_()
    settings = AlignmentSettings(weight=weight, temperature=temperature, squared_temperature=squared, ce_share=ce_share)
    total, count, statistics = outcome(compatibility(Fixed(old), Fixed(new), settings), student)
    total.backward()

    sums = expected(student.detach(), old, new, settings)
    assert total.item() == pytest.approx(sums.total, rel=1e-9)
    assert count.item() == sums.count
    assert {name: value.item() for name, value in statistics.items()} == pytest.approx(sums.statistics, rel=1e-9)
    assert not any(value.requires_grad for value in statistics.values())
    assert student.grad is not None
    assert_gradient(student.grad, sums, batch(), 1e-12)


def assert_gradient(found: Tensor, sums: Sums, rows: Mapping[str, Tensor], tolerance: float) -> None:
    counted = rows["labels"][:, 1:] != IGNORED
    by_hand = torch.tensor(sums.gradient, dtype=torch.float64).reshape(-1, found.shape[-1])
    torch.testing.assert_close(found[:, :-1][counted].double(), by_hand, rtol=tolerance, atol=tolerance)
    assert not found[:, :-1][~counted].any()
    assert not found[:, -1].any()


def test_the_batch_tries_both_sides_of_every_mask() -> None:
    for weight in get_args(WeightName):
        sums = expected(said(0), said(1), said(2), AlignmentSettings(weight=weight))
        assert sums.statistics["aligned_to_old"] > 0
        assert weight == "always_old" or sums.statistics["aligned_to_old"] < sums.count
        models = [said(seed, texts=8) for seed in range(3)]
        ruled = {w for seed in range(6) for w in weights(weight, texts_of(*models, items(seed)))}
        assert len(ruled) > 1 or weight in ("always_old", "mixture")
        assert 0 < sums.statistics["token_accuracy"] < sums.count


def test_task_objective_is_cross_entropy() -> None:
    student = said(0).requires_grad_()
    total, count, statistics = outcome(task_objective, student)
    total.backward()
    sums = expected(student.detach(), said(1), said(2), AlignmentSettings(ce_share=1.0))
    assert total.item() == statistics["cross_entropy"].item() == pytest.approx(sums.total)
    assert count.item() == sums.count
    assert statistics["token_accuracy"].item() == sums.statistics["token_accuracy"]
    assert list(statistics) == ["cross_entropy", "token_accuracy"]
    assert student.grad is not None
    assert_gradient(student.grad, sums, batch(), 1e-12)


SETTINGS = st.fixed_dictionaries(
    {
        "weight": st.sampled_from(get_args(WeightName)),
        "old_share": st.sampled_from([0.0, 0.3, 1.0]),
        "temperature": st.sampled_from([1.0, 2.0, 0.5]),
        "ce_share": st.sampled_from([0.0, 0.25, 1.0]),
    }
)
"""Shares of the loss that float32, in which factors of rows are, has exactly."""
MODELS = st.tuples(*[st.integers(V, V + 12)] * 3)
"""Widths of the vocabularies."""


@dataclass(frozen=True)
class Case:
    """A batch and what three models say of it."""

    rows: dict[str, Tensor]
    student: Tensor
    old: Tensor
    new: Tensor
    chunk: int
    trained: bool

    @property
    def tolerance(self) -> float:
        return 1e-5 if self.student.dtype == torch.float32 else 1e-10

    def found(self, settings: AlignmentSettings, scales: Scales) -> tuple[Outcome, Tensor]:
        """The outcome, and its gradient."""
        student = self.student.clone().requires_grad_()
        head = trained_head(student) if self.trained else Head(nn.Identity())
        with chunks_of(self.chunk):
            objective = compatibility(Fixed(self.old), Fixed(self.new), settings, scales)
            result = objective(self.rows)(student, head)
            result[0].backward()
        assert student.grad is not None
        return result, student.grad


@st.composite
def cases(draw: st.DrawFn) -> Case:
    seed, widths = draw(st.integers(0, 10_000)), draw(MODELS)
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows = items(seed, sizes, draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    models = (said(3 * seed + k, width, dtype, sum(sizes)) for k, width in enumerate(widths))
    return Case(rows, *models, chunk=draw(st.integers(1, 12)), trained=draw(st.booleans()))


@settings_of_hypothesis(max_examples=70)
@given(
    case=cases(),
    chosen=SETTINGS,
    emphasis=st.sampled_from(EMPHASES),
    kind=st.sampled_from([("divergence", False), ("divergence", True), ("logits", False)]),
    right=st.sampled_from([1.0, 1.75]),
)
def test_every_objective_of_tokens_is_the_references(
    case: Case, chosen: dict[str, Any], emphasis: EmphasisName | None, kind: tuple[Any, bool], right: float
) -> None:
    settings = AlignmentSettings(**chosen, emphasis=emphasis, distance=kind[0], squared_temperature=kind[1])
    scales = Scales(right=right)
    (total, count, statistics), gradient = case.found(settings, scales)
    sums = expected(case.student, case.old, case.new, settings, case.rows, scales)
    # a weight is float32, in which two roundings of one number may differ
    tolerance = max(case.tolerance, 1e-6) if settings.weight == "likelier" else case.tolerance
    near = pytest.approx(sums.total, rel=tolerance, abs=10 * tolerance)
    assert (total.item(), count.item()) == (near, sums.count)
    assert statistics.pop("aligned_to_old").item() == pytest.approx(sums.statistics.pop("aligned_to_old"), rel=1e-6)
    assert {name: value.item() for name, value in statistics.items()} == pytest.approx(
        sums.statistics, rel=tolerance, abs=10 * tolerance
    )
    assert_gradient(gradient, sums, case.rows, 6 * tolerance)


@settings_of_hypothesis(max_examples=50)
@given(case=cases(), chosen=SETTINGS, squared=st.booleans(), item=st.sampled_from([1.0, 3.5]))
def test_every_objective_of_choices_is_the_references(
    case: Case, chosen: dict[str, Any], squared: bool, item: float
) -> None:
    settings = AlignmentSettings(**chosen, squared_temperature=squared, level="choice", texts="choices")
    scales = Scales(item=item, labelled=1.25)
    (total, count, statistics), gradient = case.found(settings, scales)
    student = case.student.double().requires_grad_()
    loss = naive_choices(student, case.old, case.new, settings, case.rows, scales)
    loss.backward()
    tolerance = max(case.tolerance, 1e-6) if settings.weight == "likelier" else case.tolerance
    assert total.item() == pytest.approx(loss.item(), rel=tolerance, abs=30 * tolerance)
    assert count == (case.rows["labels"][:, 1:] != IGNORED).sum()
    assert student.grad is not None
    torch.testing.assert_close(gradient.double(), student.grad, rtol=tolerance, atol=30 * tolerance)

    texts = texts_of(case.student, case.old, case.new, case.rows)
    ruled = weights(str(settings.weight), texts, settings.old_share)
    of_all = iter(ruled)
    rulers = [[mixed(next(of_all), x, y) for x, y in zip(text.old, text.new, strict=True)] for text in texts]
    whole = texts_of(case.student, case.old, case.new, case.rows, wide=True)
    divergence, likelihood, _ = choices(whole, rulers, settings.temperature)
    by_hand = item * (factor(settings) * divergence + settings.ce_share * 1.25 * likelihood)
    assert total.item() == pytest.approx(by_hand, rel=tolerance, abs=30 * tolerance)
    assert statistics["choice_divergence"].item() == pytest.approx(item * divergence, rel=tolerance, abs=30 * tolerance)
    assert statistics["aligned_to_old"].item() == pytest.approx(sum(ruled), rel=1e-6)
    assert set(statistics) == {"cross_entropy", "token_accuracy", "aligned_to_old", "choice_divergence"}


# ------------------------------------------------------------------------------------------------ of all objectives


@EVERY_WEIGHT
@BOTH_LEVELS
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_equal_teachers_make_the_weight_irrelevant(weight: WeightName, level: Any, share: float) -> None:
    rows, teacher = items(2), Fixed(said(1, texts=8))
    settings = AlignmentSettings(weight=weight, old_share=share, level=level)
    student = said(0, texts=8)
    both = compatibility(teacher, teacher, settings)
    always = compatibility(teacher, None, AlignmentSettings(weight="always_old", level=level))
    assert outcome(both, student, rows)[0].item() == pytest.approx(outcome(always, student, rows)[0].item(), rel=1e-6)
    torch.testing.assert_close(
        gradient_of(both, student, rows), gradient_of(always, student, rows), rtol=1e-6, atol=1e-8
    )


@BOTH_LEVELS
@pytest.mark.parametrize("distance", ["divergence", "logits"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_mixture_of_one_teacher_is_that_teacher(level: Any, distance: Any, share: float) -> None:
    if level == "choice" and distance == "logits":
        return
    rows, student, teacher = items(3), said(0, texts=8), Fixed(said(1, texts=8))
    common = {"level": level, "distance": distance, "ce_share": 0.2}
    one = compatibility(
        teacher if share else None,
        None if share else teacher,
        AlignmentSettings(weight="mixture", old_share=share, **common),
    )
    alone = compatibility(teacher, None, AlignmentSettings(weight="always_old", **common))
    assert outcome(one, student, rows)[0].item() == outcome(alone, student, rows)[0].item()
    assert torch.equal(gradient_of(one, student, rows), gradient_of(alone, student, rows))


@EVERY_WEIGHT
@BOTH_LEVELS
@pytest.mark.parametrize("emphasis", EMPHASES)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_just_the_teachers_that_the_settings_name_are_read(
    weight: WeightName, level: Any, emphasis: EmphasisName | None, share: float
) -> None:
    settings = AlignmentSettings(weight=weight, level=level, emphasis=emphasis, old_share=share)
    rows, student = items(5), said(0, texts=8)
    teachers = {"old": Fixed(said(1, texts=8)), "new": Fixed(said(2, texts=8))}
    both = outcome(compatibility(teachers["old"], teachers["new"], settings), student, rows)
    for teacher in teachers.values():
        teacher.asked.clear()
    named = {side: teachers[side] for side in settings.teachers}
    alone = outcome(compatibility(named.get("old"), named.get("new"), settings), student, rows)
    assert alone[0] == both[0]
    assert {side for side, teacher in teachers.items() if sum(teacher.asked)} == set(settings.teachers)


def test_without_a_weight_there_is_no_teacher() -> None:
    assert AlignmentSettings(weight=None).teachers == ()


@EVERY_WEIGHT
@pytest.mark.parametrize("kind", [*EMPHASES, "logits", "choice"])
def test_constants_added_to_logits_change_nothing(weight: WeightName, kind: str | None) -> None:
    rows, models = items(4), [said(seed, texts=8) for seed in range(3)]
    shifts = [20 * said(seed + 7, 1, texts=8) for seed in range(3)]
    settings = AlignmentSettings(weight=weight, ce_share=0.2, **own(kind))
    found = []
    for student, old, new in (models, [model + shift for model, shift in zip(models, shifts, strict=True)]):
        objective = compatibility(Fixed(old), Fixed(new), settings)
        found.append((outcome(objective, student, rows)[0], gradient_of(objective, student, rows)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


def own(kind: str | None) -> dict[str, Any]:
    """An emphasis, or another kind of comparison."""
    if kind == "logits":
        return {"distance": "logits"}
    return {"level": "choice", "texts": "choices"} if kind == "choice" else {"emphasis": kind}


@EVERY_WEIGHT
@pytest.mark.parametrize("kind", [*EMPHASES, "logits", "choice"])
def test_batches_add_up_however_items_are_divided_among_them(weight: WeightName, kind: str | None) -> None:
    """So accumulating batches changes nothing, nor does their order, nor that of the texts in one."""
    rows, student = items(6), said(0, texts=8)
    settings = AlignmentSettings(weight=weight, ce_share=0.3, **own(kind))
    objective = compatibility(Fixed(said(1, texts=8)), Fixed(said(2, texts=8)), settings, Scales(1.5, 2.5, 1.25))
    whole, gradient = outcome(objective, student, rows), gradient_of(objective, student, rows)
    divided = torch.zeros_like(gradient)
    parts = []
    for members in ([7, 5], [8], [6]):
        texts = torch.tensor([k for k in range(7, -1, -1) if rows["item"][k] in members])
        some = {name: column[texts] for name, column in rows.items()}
        parts.append(outcome(objective, student[texts], some))
        divided[texts] = gradient_of(objective, student[texts], some)
    for k in range(2):
        assert sum(part[k].item() for part in parts) == pytest.approx(whole[k].item(), rel=1e-9)
    for name, value in whole[2].items():
        assert sum(part[2][name].item() for part in parts) == pytest.approx(value.item(), rel=1e-6), name
    torch.testing.assert_close(divided, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("level", ["token", "choice"])
def test_a_student_that_both_teachers_are_stays_as_it_is(level: Any) -> None:
    rows, student = items(7), said(0, texts=8)
    teacher = Fixed(torch.empty_like(student).index_copy(0, rows["index"], student))
    objective = compatibility(teacher, teacher, AlignmentSettings(weight="likelier", level=level))
    assert outcome(objective, student, rows)[0].item() == pytest.approx(0, abs=1e-6)
    assert gradient_of(objective, student, rows).abs().max() < 1e-6


def test_a_single_choice_leaves_no_choice() -> None:
    rows = items(8, [1, 1, 1], [True, False, True])
    settings = AlignmentSettings(weight="mixture", level="choice", texts="choices", ce_share=0.5)
    objective = compatibility(Fixed(said(1)), Fixed(said(2)), settings)
    assert outcome(objective, said(0), rows)[0].item() == 0
    assert not gradient_of(objective, said(0), rows).any()


@BOTH_LEVELS
def test_with_scales_each_mean_is_over_what_it_is_about(level: Any) -> None:
    """Distances over all targets, or all items; cross-entropy over right texts' targets, or labelled items."""
    rows, student, old, new = items(9, [3, 2, 2], [True, False, True]), *(said(seed, texts=7) for seed in range(3))
    texts = texts_of(student, old, new, rows)
    n, right = (sum(len(text.gold) for text in texts if known or text.right) for known in (True, False))
    held = {text.item for text in texts if text.gold}
    labelled = {text.item for text in texts if text.gold and text.right}
    assert 0 < right < n
    assert 0 < len(labelled) < len(held)
    scales = Scales(right=n / right, item=n / len(held), labelled=len(held) / len(labelled))

    def mean(ce_share: float) -> float:
        settings = AlignmentSettings(weight="mixture", level=level, texts="choices", ce_share=ce_share)
        total, count, _ = outcome(compatibility(Fixed(old), Fixed(new), settings, scales), student, rows)
        return total.item() / count.item()

    rulers = [[mixed(0.5, x, y) for x, y in zip(text.old, text.new, strict=True)] for text in texts]
    if level == "token":
        apart = [
            away(z, t, "divergence", 2.0)[0]
            for text, r in zip(texts, rulers, strict=True)
            for z, t in zip(text.student, r, strict=True)
        ]
        towards = math.fsum(apart) / n
        entropy = -sum(text.likelihood("student") for text in texts if text.right) / right
    else:
        divergence, likelihood, _ = choices(texts, rulers, 2.0)
        towards, entropy = divergence / len(held), likelihood / len(labelled)
    assert mean(0.0) == pytest.approx(towards)
    assert mean(1.0) == pytest.approx(entropy)
    assert mean(0.3) == pytest.approx(0.7 * towards + 0.3 * entropy)


@EVERY_WEIGHT
@pytest.mark.parametrize("kind", [*EMPHASES, "logits", "choice"])
def test_silent_texts_have_a_graph_and_no_loss(weight: WeightName, kind: str | None) -> None:
    rows = items(0)
    rows["labels"].fill_(IGNORED)
    settings = AlignmentSettings(weight=weight, ce_share=0.5, **own(kind))
    objective = compatibility(Fixed(said(1, texts=8)), Fixed(said(2, texts=8)), settings, Scales(2.0, 3.0))
    for head in (Head(nn.Identity()), trained_head(said(0))):
        student = said(0, texts=8).requires_grad_()
        total, count, statistics = objective(rows)(student, head)
        total.backward()
        assert (total.item(), count.item()) == (0.0, 0)
        assert all(value.item() == 0 for value in statistics.values())
        assert student.grad is not None
        assert not student.grad.any()


# ------------------------------------------------------------------------------------------------ who is asked


def test_weights_between_the_teachers_are_allowed() -> None:
    old, new, student = said(1), said(2), said(0)
    half = Compatibility(Fixed(old), Fixed(new), Aims(lambda targets: torch.full(targets.shape, 0.5), 2.0, False, 0.0))
    between = Fixed((old + new) / 2)
    total, count, statistics = outcome(half, student)
    alone, _, _ = outcome(compatibility(between, between, AlignmentSettings()), student)
    assert total.item() == pytest.approx(alone.item())
    assert statistics["aligned_to_old"] == count / 2
    assert statistics["old_divergence"] == statistics["new_divergence"] == pytest.approx(total.item() / 2)


@given(seed=st.integers(0, 10_000), chunk=st.integers(1, 12))
def test_any_mixture_row_by_row_in_chunks_of_any_size(seed: int, chunk: int) -> None:
    """Some rows are the old teacher's, some the new one's, some lie between."""
    student, old, new = (said(3 * seed + k) for k in range(3))
    rows, generator = batch(), torch.Generator().manual_seed(seed)
    counted = (rows["labels"][:, 1:] != IGNORED).nonzero().tolist()
    drawn = torch.rand(len(counted), generator=generator).mul(2).sub(0.5).clamp(0, 1)

    def weight(targets: Tensor, sequence: Tensor) -> Tensor:  # reading `sequence`, it is asked once for all rows
        assert len(targets) == len(sequence) == len(drawn)
        return drawn

    objective = Compatibility(Fixed(old), Fixed(new), Aims(weight, 2.0, False, 0.0))
    with chunks_of(chunk):
        total, _, statistics = outcome(objective, student)
    expected = to_old = 0.0
    for (row, i), w in zip(counted, drawn.tolist(), strict=True):
        source = rows["index"][row]
        teacher = mixed(w, old[source, i].tolist(), new[source, i].tolist())
        apart, _ = away(student[row, i].tolist(), teacher, "divergence", 2.0)
        expected, to_old = expected + apart, to_old + w * apart
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert statistics["old_divergence"].item() == pytest.approx(to_old, rel=1e-6)
    assert statistics["new_divergence"].item() == pytest.approx(expected - to_old, rel=1e-6)


def test_a_teacher_is_asked_only_where_it_rules() -> None:
    old, new = Fixed(said(1)), Fixed(said(2))
    _, count, statistics = outcome(compatibility(old, new, AlignmentSettings()), said(0))
    ruled = int(statistics["aligned_to_old"])
    assert 0 < ruled < count
    assert (sum(old.asked), sum(new.asked)) == (ruled, count - ruled)
    old.asked.clear()
    outcome(compatibility(old, None, AlignmentSettings(weight="always_old")), said(0))
    assert sum(old.asked) == count


@EVERY_WEIGHT
def test_a_weight_is_that_of_all_logits_at_once_whatever_the_chunks(weight: WeightName) -> None:
    objective = compatibility(Fixed(said(1)), Fixed(said(2)), AlignmentSettings(weight=weight, ce_share=0.3))
    total, _, statistics = outcome(objective, said(0))
    with chunks_of(2):
        in_pairs, _, same = outcome(objective, said(0))
    assert in_pairs.item() == pytest.approx(total.item())
    assert {name: value.item() for name, value in same.items()} == pytest.approx(
        {name: value.item() for name, value in statistics.items()}
    )


def test_teachers_are_asked_before_the_student_runs() -> None:
    asked = []

    class Noting(Fixed):
        def states(self, batch: Mapping[str, Tensor], counted: Tensor) -> tuple[Tensor, Head]:
            asked.append(counted.sum().item())
            return super().states(batch, counted)

    compatibility(Noting(said(1)), Noting(said(2)), AlignmentSettings())(batch())
    assert asked == [(batch()["labels"][:, 1:] != IGNORED).sum()] * 2


@pytest.mark.parametrize("smaller", range(3))
def test_a_target_that_not_every_model_knows_is_refused(smaller: int) -> None:
    student, old, new = (said(seed, V - (seed == smaller)) for seed in range(3))
    rows = batch()
    rows["labels"][0, 1] = V - 1
    with pytest.raises(MuscleError, match=rf"token {V - 1} .* first {V - 1} rows .*: choose bases with the same added"):
        outcome(compatibility(Fixed(old), Fixed(new), AlignmentSettings()), student, rows)


def test_tokens_that_are_no_targets_may_lie_beyond_the_shared_rows() -> None:
    rows = batch()
    rows["labels"][rows["labels"] == V - 1] = IGNORED
    objective = compatibility(Fixed(said(1, V - 1)), Fixed(said(2)), AlignmentSettings())
    assert outcome(objective, said(0), rows)[1] == (rows["labels"][:, 1:] != IGNORED).sum()


@EVERY_WEIGHT
@pytest.mark.parametrize("ce_share", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_batch_without_targets_keeps_its_graph(weight: WeightName, ce_share: float, dtype: torch.dtype) -> None:
    student, rows = said(0, dtype=dtype).requires_grad_(), batch()
    rows["labels"].fill_(IGNORED)
    settings = AlignmentSettings(weight=weight, ce_share=ce_share)
    total, count, statistics = outcome(compatibility(Fixed(said(1)), Fixed(said(2)), settings), student, rows)
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0)
    assert all(value.item() == 0 for value in statistics.values())
    assert student.grad is not None
    assert not student.grad.any()


def test_ties_of_coarse_logits_go_to_the_first_token() -> None:
    """In bfloat16 several tokens are often equally likely: the mask and the accuracy must decide alike."""
    student = torch.zeros(len(LENGTHS), WIDTH, V, dtype=torch.bfloat16)
    objective = Compatibility(Fixed(said(1)), Fixed(said(2)), Aims(student_wrong, 2.0, False, 0.0))
    _, count, statistics = outcome(objective, student)
    zeros = (batch()["labels"][:, 1:] == 0).sum()
    assert statistics["token_accuracy"] == zeros
    assert statistics["aligned_to_old"] == count - zeros
