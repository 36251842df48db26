"""The method auto: what it tries, what it spends, what it keeps, and why."""

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from muscle.errors import MuscleError
from muscle.update import backends, costs, search
from muscle.update import run as update_run
from muscle.update.adapters import Size
from muscle.update.alignment_settings import AlignmentSettings, SearchSettings
from muscle.update.candidates import candidates, halving, schedule
from muscle.update.judging import Figures, Judge
from muscle.update.recipe import Base, EvaluationSettings, LoraSettings, TaskModel, TaskSettings, TrainingSettings
from muscle.update.recipe_file import make_recipe
from muscle.update.report.search import print_search
from muscle.update.settings import merged
from muscle.update.tasks import Task, load_task
from muscle.update.trainer import DivergedError

from .commands import run as command

TRAINING = TrainingSettings(epochs=4, batch_size=4, accumulation=1, learning_rate=0.05, warmup_steps=3)
SIZES = {"gold": Size(24, 1000), "choices": Size(24, 3000)}


# What is tried, and how often.


@given(
    candidates=st.integers(1, 12),
    lengths=st.integers(1, 4),
    budget=st.floats(1, 20),
    data=st.data(),
)
def test_a_schedule_never_passes_its_budget(candidates: int, lengths: int, budget: float, data: st.DataObject) -> None:
    cost = st.floats(0.01, min(budget, 2.0))
    costs = [[data.draw(cost) for _ in range(candidates)] for _ in range(lengths)]
    first, counts = schedule(costs, budget)
    begun = next(place for place, count in enumerate(counts) if count)
    worst = sum(costs[0][number] for number in first) if begun == 0 else 0.0
    worst += sum(max(costs[place]) * count for place, count in enumerate(counts) if place)
    assert worst <= budget + 1e-6
    assert counts[-1] >= 1
    used = [count for count in counts if count]
    assert used == sorted(used, reverse=True)
    assert first == sorted(set(first))
    assert used[0] <= len(first)


@pytest.mark.parametrize(
    ("budget", "counts"), [(1, [0, 0, 1]), (1.5, [2, 0, 1]), (4, [6, 3, 1]), (12, [16, 8, 4]), (100, [20, 20, 20])]
)
def test_each_length_gets_about_a_third(budget: float, counts: list[int]) -> None:
    assert schedule([[length] * 20 for length in (0.25, 0.5, 1.0)], budget)[1] == counts


def test_what_does_not_fit_leaves_room_for_what_comes_after_it() -> None:
    assert schedule([[0.25, 1.0, 0.25, 0.25], [1.0] * 4], 2)[0] == [0, 2, 3]


def test_the_best_go_on_and_the_first_win_ties() -> None:
    scores = {(0, "a"): 3, (0, "b"): 1, (0, "c"): 2, (0, "d"): 1, (1, "b"): 5, (1, "d"): 4, (1, "c"): 6, (2, "d"): 9}
    asked: list[tuple[int, str]] = []

    def run(length: int, name: str) -> float:
        asked.append((length, name))
        return scores[length, name]

    halving("abcd", [4, 3, 1], run)
    assert asked == [*((0, name) for name in "abcd"), (1, "b"), (1, "d"), (1, "c"), (2, "d")]
    asked.clear()
    halving("dcba", [0, 0, 1], run)
    assert asked == [(2, "d")]


def test_who_fails_goes_no_further() -> None:
    asked: list[tuple[int, str]] = []

    def run(length: int, name: str) -> float:
        asked.append((length, name))
        return {"a": math.inf, "b": 1.0}.get(name, 2.0)

    halving("abc", [3, 3, 3], run)
    assert asked[3:] == [(1, "b"), (1, "c"), (2, "b"), (2, "c")]
    asked.clear()
    halving("a", [1, 1], run)
    assert asked == [(0, "a")]


def test_the_alignment_as_given_is_always_tried_and_cross_entropy_alone_never() -> None:
    settings = AlignmentSettings(search=SearchSettings(old_shares=(1.0, 0.5), ce_shares=(0.0, 0.3)))
    for choices in (0, 4, 20):
        for unlabelled in (False, True):
            found = candidates(settings, choices, unlabelled)
            assert (found[-1].alignment, found[-1].training) == ({}, {})
            assert len({each.name for each in found}) == len(found)
            assert all(each.alignment["weight"] for each in found[:-1])
            assert any(each.alignment.get("texts") == "choices" for each in found) == (choices == 4)
            assert any(each.alignment.get("unlabelled") for each in found) == (unlabelled and choices != 4)
            shares = {(each.alignment["old_share"], each.alignment["ce_share"]) for each in found[:-1]}
            assert shares == {(1.0, 0.0), (1.0, 0.3), (0.5, 0.0), (0.5, 0.3)}


def test_mixtures_are_plain_whatever_the_alignment_as_given() -> None:
    given = AlignmentSettings(texts="choices", unlabelled=True, level="choice", emphasis="focal", distance="logits")
    for choices in (0, 4, 20):
        for mine, plain in zip(
            candidates(given, choices, True), candidates(AlignmentSettings(), choices, True), strict=True
        ):
            if mine.name != "as given":
                assert merged(given, mine.alignment) == merged(AlignmentSettings(), plain.alignment)


@pytest.mark.parametrize("choices", [0, 4])
def test_without_offsets_no_training_is_on_answers_alone(choices: int) -> None:
    found = candidates(AlignmentSettings(), choices, True, offsets=False)
    assert len(found) == 9
    assert not any(each.training for each in found)


@pytest.mark.parametrize("across", [None, "texts"])
def test_the_way_to_hear_an_old_model_with_another_tokenizer_is_the_recipes(across: Any) -> None:
    given = AlignmentSettings(across=across)
    assert all(merged(given, each.alignment).across == across for each in candidates(given, 4, True))


# What is measured.

answers = st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=40)


def judge_of(rows: list[tuple[bool, bool, bool]], **settings: Any) -> tuple[Judge, Figures]:
    old, new, candidate = (dict(enumerate(map(float, column))) for column in zip(*rows, strict=True))
    judge = Judge(old, new, SearchSettings(**settings))
    return judge, judge.figures(candidate)


@given(answers)
def test_figures_are_those_of_counts(rows: list[tuple[bool, bool, bool]]) -> None:
    judge, found = judge_of(rows)
    n = len(rows)
    flips = sum(old and not candidate for old, _, candidate in rows)
    assert found.items == n
    assert found.accuracy == sum(row[2] for row in rows) / n
    assert found.nfr == flips / n
    assert judge.new.nfr == sum(old and not new for old, new, _ in rows) / n
    assert found.fixed == sum(old and not new and candidate for old, new, candidate in rows)
    assert found.made == sum(old and new and not candidate for old, new, candidate in rows)
    assert found.nfr == pytest.approx(judge.new.nfr + (found.made - found.fixed) / n)
    wrong, right = sum(not row[2] for row in rows), sum(row[0] for row in rows)
    assert found.relative_nfr == (pytest.approx(flips * n / (wrong * right)) if wrong * right else None)
    assert found.accuracy_interval[0] <= found.accuracy <= found.accuracy_interval[1]
    assert judge.new.shortfall == 0


@given(answers, answers, st.floats(0, 2))
def test_whoever_is_below_the_floor_comes_after_whoever_is_not(
    one: list[tuple[bool, bool, bool]], other: list[tuple[bool, bool, bool]], floor: float
) -> None:
    rows = one[: len(other)], [(a, b, c) for (a, b, _), (_, _, c) in zip(one, other, strict=False)]
    (judge, first), (_, second) = (judge_of(each, floor=floor) for each in rows)
    scores = judge.score(first), judge.score(second)
    if first.admissible != second.admissible:
        assert (scores[0] < scores[1]) == first.admissible
    elif first.admissible:
        ranks = [(each.nfr, -each.accuracy) for each in (first, second)]
        assert (scores[0] < scores[1]) == (ranks[0] < ranks[1])
    elif abs(first.shortfall - second.shortfall) > 1e-5:
        assert (scores[0] < scores[1]) == (first.shortfall < second.shortfall)


def test_the_floor_is_so_many_standard_errors_below_the_new_model() -> None:
    rows = [(True, True, True)] * 90 + [(True, True, False)] * 6 + [(False, False, True)] * 4  # two points lower
    error = ((10 - 0.02 * 2) / 100 / 100) ** 0.5  # of the paired difference
    assert judge_of(rows, floor=0.02 / error * 1.01)[1].admissible
    assert not judge_of(rows, floor=0.02 / error * 0.99)[1].admissible
    assert judge_of(rows, floor=0)[1].shortfall == pytest.approx(0.02)


def test_grades_count_as_scoring_counts_them() -> None:
    old, new = {1: 0.5, 2: 0.2, 3: 0.9}, {1: 0.4, 2: 0.2, 3: 1.0}
    judge = Judge(old, new, SearchSettings())
    found = judge.figures({1: 0.5, 2: 0.1, 3: 0.8})
    assert judge.graded
    assert (found.nfr, judge.new.nfr) == (2 / 3, 1 / 3)
    assert (found.fixed, found.made, found.relative_nfr) == (1, 2, None)
    assert found.accuracy == pytest.approx(1.4 / 3)
    with pytest.raises(MuscleError, match="relative_nfr is of answers that are right or wrong"):
        Judge(old, new, SearchSettings(aim="relative_nfr"))
    with pytest.raises(MuscleError, match="no item is held out to choose by: raise validation_share"):
        Judge({}, {}, SearchSettings())


def test_relative_nfr_prefers_errors_that_the_old_model_made_too() -> None:
    old = {item: float(item < 15) for item in range(20)}
    shared = {item: float(3 <= item < 11) for item in range(20)}  # 12 errors, 7 of them flips
    others = {item: float(item >= 5) for item in range(20)}  # 5 errors, all of them flips
    for aim, better, worse in (("nfr", others, shared), ("relative_nfr", shared, others)):
        judge = Judge(old, shared, SearchSettings(aim=aim))  # type: ignore[arg-type]
        assert judge.score(judge.figures(better)) < judge.score(judge.figures(worse))


# The search, with made-up trainings: a candidate's old_share and length decide which items it has right.


class Trainings:
    """In place of real ones: what was trained, and what comes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: Path) -> None:
        self.done: list[tuple[float, float, int]] = []
        self.stop_at: int | None = None
        self.diverging: tuple[float, ...] = ()
        self.wrong: Callable[[AlignmentSettings, int], set[int]] = lambda alignment, epochs: set()
        monkeypatch.setattr(search, "train_compatibility_adapter", self.train)
        monkeypatch.setattr(search, "clear_device_cache", lambda **_: None)  # nothing was trained, and it takes long
        monkeypatch.setattr(search, "validation_scores", lambda *_: lambda model: model.scores)
        monkeypatch.setattr(costs, "training_size", lambda base, task, alignment, tokens: SIZES[alignment.texts])
        monkeypatch.setattr(search, "scores_of", lambda model, *_: self.scores(set() if is_old(model) else {0, 1, 2}))
        self.world = world

    @staticmethod
    def scores(wrong: set[int]) -> dict[int, float]:
        return {item: float(item not in wrong) for item in range(40)}

    def train(self, *arguments: Any, flips: Callable[[Any], float], flips_last: int, states_root: Path) -> None:
        _, _, _, alignment, _, settings, evaluation, folder, report = arguments
        if len(self.done) == self.stop_at:
            raise KeyboardInterrupt
        assert settings.select_by == "flips"
        assert evaluation.limit is None  # chosen on all held-out items
        if alignment.old_share in self.diverging:
            self.done.append((alignment.old_share, alignment.ce_share, settings.epochs))
            raise DivergedError("training diverged in epoch 1: choose a lower learning rate")
        report(0.5, "half")
        score = flips(SimpleNamespace(scores=self.scores(self.wrong(alignment, settings.epochs))))
        result = {"validation_flips": [score + 1, score], "best_epoch": 2}
        (folder / "training.json").write_text(json.dumps({"result": result, "alignment": alignment.as_dict()}))
        self.done.append((alignment.old_share, alignment.ce_share, settings.epochs))

    def search(
        self, out: Path, report: Any = lambda *_: None, *, new: TaskModel | None = None, **settings: Any
    ) -> dict[str, Any]:
        settings = {"old_shares": (0.8, 0.6, 0.4), "ce_shares": (0.0,)} | settings
        alignment = AlignmentSettings(search=SearchSettings(**settings))
        return run(self.world, "sums", out, alignment, report, new=new, epochs=8)


def is_old(model: TaskModel) -> bool:
    return model.base.base.endswith("v1")


def run(
    world: Path,
    name: str,
    out: Path,
    alignment: AlignmentSettings,
    report: Any = lambda *_: None,
    *,
    new: TaskModel | None = None,
    **training: Any,
) -> dict[str, Any]:
    task = load_task(name, TaskSettings(include_path=str(world / "tasks"), validation_share=None))
    old = TaskModel(base=Base(base=str(world / "v1")), adapter=str(world / "old"))
    new = new or TaskModel(base=Base(base=str(world / "v2")), adapter=str(world / "new"))
    settings = TrainingSettings(**(TRAINING.as_dict() | training))
    lora, evaluation = LoraSettings(rank=4, alpha=8), EvaluationSettings(batch_size=4, limit=3)
    search.Search(old, new, task, alignment, lora, settings, evaluation, out).run(report)
    found: dict[str, Any] = json.loads((out / "search.json").read_text())
    return found


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, world: Path) -> Trainings:
    return Trainings(monkeypatch, world)


def test_the_best_trial_is_kept_whatever_its_length(trainings: Trainings, tmp_path: Path) -> None:
    wrong: Mapping[tuple[float, int], set[int]] = {(0.6, 2): {0}, (0.6, 4): {0, 1}, (0.6, 8): {0, 1}}
    trainings.wrong = lambda alignment, epochs: wrong.get((alignment.old_share, epochs), {0, 1, 2, 3})
    told: list[tuple[float, str]] = []
    record = trainings.search(tmp_path, lambda *words: told.append(words))
    assert [epochs for _, _, epochs in trainings.done] == [2] * 6 + [4] * 3 + [8]
    chosen = record["trials"][record["chosen"]]
    assert (chosen["alignment"]["old_share"], chosen["length"], chosen["epochs"]) == (0.6, 0.25, 2)
    assert chosen["figures"]["nfr"] == 1 / 40
    assert (chosen["figures"]["fixed"], chosen["figures"]["made"]) == (2, 0)
    assert json.loads((tmp_path / "training.json").read_text())["alignment"]["old_share"] == 0.6
    assert not (tmp_path / "trial.json").exists()
    assert record["budget_used"] == pytest.approx(4)
    assert record["warning"] is None
    assert "lowest NFR on 40 held-out items (2.5 %, the new model's 7.5 %)" in record["why"]
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
    assert re.fullmatch("trial 1 of 10: mixture a 0.8, .*, a quarter of the length", told[0][1])


def test_warm_up_shrinks_with_the_training(trainings: Trainings, tmp_path: Path) -> None:
    record = trainings.search(tmp_path)
    for trial in record["trials"]:
        assert trial["training"]["warmup_steps"] == int(3 * trial["epochs"] / 8)


def test_ties_go_to_the_cheapest(trainings: Trainings, tmp_path: Path) -> None:
    record = trainings.search(tmp_path)
    assert record["chosen"] == 0
    assert record["trials"][0]["cost"] == 0.25


def test_the_floor_is_respected(trainings: Trainings, tmp_path: Path) -> None:
    few, many = {0}, set(range(3, 40))
    trainings.wrong = lambda alignment, _: few if alignment.old_share == 0.4 else {0, 1, 2}
    record = trainings.search(tmp_path / "1")
    assert record["trials"][record["chosen"]]["alignment"]["old_share"] == 0.4
    trainings.wrong = lambda alignment, _: many if alignment.old_share == 0.4 else {0, 1}
    record = trainings.search(tmp_path / "2")
    assert record["trials"][record["chosen"]]["admissible"]
    below = [trial for trial in record["trials"] if not trial["admissible"]]
    assert {trial["alignment"]["old_share"] for trial in below} == {0.4}


def test_where_no_trial_is_better_the_new_adapter_is_kept_and_that_is_said(
    trainings: Trainings, world: Path, tmp_path: Path
) -> None:
    trainings.wrong = lambda alignment, _: set(range(10 + round(20 * abs(alignment.old_share - 0.6))))
    record = trainings.search(tmp_path)
    assert record["chosen"] is None
    assert not any(trial["admissible"] for trial in record["trials"])
    saved = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert saved == (world / "new/adapter_model.safetensors").read_bytes()
    page = io.StringIO()
    print_search(tmp_path / "search.json", Console(file=page))
    assert "the new task adapter as it is: none of the 10 trials has a lower NFR" in page.getvalue()
    warning = "warning: what is saved is the new task adapter, not aligned: align on more data, or raise search.floor"
    assert warning in page.getvalue()


def test_where_no_trial_reaches_the_floor_and_there_is_no_adapter_the_nearest_is_kept_and_that_is_said(
    trainings: Trainings, world: Path, tmp_path: Path
) -> None:
    trainings.wrong = lambda alignment, _: set(range(10 + round(20 * abs(alignment.old_share - 0.6))))
    base_alone = TaskModel(base=Base(base=str(world / "v2")), adapter=None)
    record = trainings.search(tmp_path, new=base_alone, floor=0)
    assert not any(trial["admissible"] for trial in record["trials"])
    shortfalls = [trial["figures"]["shortfall"] for trial in record["trials"]]
    assert shortfalls[record["chosen"]] == pytest.approx(7 / 40)
    assert min(shortfalls) == shortfalls[record["chosen"]] < max(shortfalls)
    assert record["trials"][record["chosen"]]["alignment"]["old_share"] == 0.6
    assert json.loads((tmp_path / "training.json").read_text())["alignment"]["old_share"] == 0.6
    page = io.StringIO()
    print_search(tmp_path / "search.json", Console(file=page))
    said = " ".join(page.getvalue().split())
    kept = "mixture a 0.6, CE 0, answers, a quarter of the length: its accuracy falls short of the floor by least"
    assert f"*: {kept}, since none of the 10 trials reached it; NFR on 40 held-out items 25 %" in said
    assert "what is saved falls short of it by least, 18 points" in said


@pytest.mark.parametrize("allowed", [False, True])
def test_a_new_adapter_of_the_hub_is_kept_as_it_may_be_read(
    trainings: Trainings, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str] | None) -> str:
        asked.append((name, revision, allow_patterns))
        return str(world / "new")

    monkeypatch.setattr(backends, "snapshot_download", download)
    monkeypatch.setattr(search, "digests", lambda _: ["digest"])
    trainings.wrong = lambda *_: set(range(20))
    base = Base(base=str(world / "v2"), allow_pickle=allowed)
    record = trainings.search(tmp_path, new=TaskModel(base=base, adapter="somebody/adapter@main"), budget=1)
    assert record["chosen"] is None
    assert asked == [("somebody/adapter", "main", None if allowed else ["*.json", "*.safetensors"])]
    weights = "adapter_model.safetensors"
    assert (tmp_path / weights).read_bytes() == (world / "new" / weights).read_bytes()


def test_a_stopped_search_goes_on_and_a_larger_budget_trains_only_more(trainings: Trainings, tmp_path: Path) -> None:
    trainings.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        trainings.search(tmp_path)
    assert not (tmp_path / "search.json").exists()
    trainings.stop_at = None
    record = trainings.search(tmp_path)
    assert len(record["trials"]) == len(trainings.done) == 10
    again = trainings.search(tmp_path)
    assert len(trainings.done) == 10
    assert again == record
    trainings.search(tmp_path, budget=8)
    assert len(trainings.done) > 10
    before = len(trainings.done)
    trainings.search(tmp_path, floor=2.0)  # judges otherwise, so that other epochs may be kept
    assert len(trainings.done) == before + 10


def test_lengths_that_train_the_same_are_one(trainings: Trainings, tmp_path: Path) -> None:
    alignment = AlignmentSettings(search=SearchSettings(old_shares=(0.5,), ce_shares=(0.0,)))
    record = run(trainings.world, "sums", tmp_path, alignment, epochs=1)
    assert [trial["length"] for trial in record["trials"]] == [1.0] * len(record["trials"])
    assert len(trainings.done) == len(record["trials"]) == 3  # as given, and the mixture in two ways


def test_what_is_trained_alike_is_trained_once(trainings: Trainings, tmp_path: Path) -> None:
    record = trainings.search(tmp_path, budget=100, old_shares=(0.5, 0.5), lengths=(1.0,))
    assert [trial["name"] for trial in record["trials"]] == [
        "mixture a 0.5, CE 0, answers",
        "mixture a 0.5, CE 0",
        "as given",
    ]


@pytest.mark.parametrize("key", ["old_shares", "ce_shares"])
def test_without_mixtures_the_alignment_as_given_is_left(trainings: Trainings, tmp_path: Path, key: str) -> None:
    record = trainings.search(tmp_path, **{key: ()})
    assert [(trial["name"], trial["length"]) for trial in record["trials"]] == [
        ("as given", 0.25),
        ("as given", 0.5),
        ("as given", 1.0),
    ]
    assert record["budget_used"] <= 4
    assert record["chosen"] is not None


def test_a_trial_that_diverges_is_passed_over(trainings: Trainings, tmp_path: Path) -> None:
    trainings.diverging = (0.8,)
    record = trainings.search(tmp_path)
    failed = [trial for trial in record["trials"] if trial["failed"]]
    assert {trial["alignment"]["old_share"] for trial in failed} == {0.8}
    assert {trial["length"] for trial in failed} == {0.25}  # and is not trained for longer
    assert {(trial["score"], trial["figures"], trial["admissible"]) for trial in failed} == {(None, None, False)}
    assert record["trials"][record["chosen"]]["failed"] is None
    page, trained = io.StringIO(), len(trainings.done)
    print_search(tmp_path / "search.json", Console(file=page))
    assert f"{failed[0]['name']}, failed: training diverged in epoch 1" in page.getvalue()
    assert trainings.search(tmp_path) == record
    assert len(trainings.done) == trained


def test_what_is_in_the_way_of_all_trials_ends_the_search(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[AlignmentSettings] = []

    def unknown(*arguments: Any, **_: Any) -> None:
        asked.append(arguments[3])
        raise MuscleError("its head is not known")

    monkeypatch.setattr(search, "train_compatibility_adapter", unknown)
    with pytest.raises(MuscleError, match=r"^its head is not known$"):
        trainings.search(tmp_path)
    assert len(asked) == 1


@pytest.mark.parametrize("slow", ["v1", "v2"])
def test_answers_alone_are_learnt_from_where_both_tokenizers_tell_where_they_begin(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slow: str
) -> None:
    load = search.load_tokenizer

    def loaded(base: Base) -> Any:
        tokenizer = load(base)
        return SimpleNamespace(is_fast=False) if base.base.endswith(slow) else tokenizer

    monkeypatch.setattr(search, "load_tokenizer", loaded)
    record = trainings.search(tmp_path)
    assert not any("tokens" in trial["training"] for trial in record["trials"])


def test_a_search_of_failures_says_why_and_leaves_the_folder_free(trainings: Trainings, tmp_path: Path) -> None:
    trainings.diverging = (0.8, 0.6, 0.4, 0.5)
    with pytest.raises(MuscleError, match=r"none of \d+ trials can be kept; the first: training diverged in epoch 1"):
        trainings.search(tmp_path)
    assert not list(tmp_path.glob("checkpoints/trials/*"))


def test_an_endless_warm_up_is_refused_before_any_model_is_read(
    trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "scores_of", None)
    alignment = AlignmentSettings(search=SearchSettings())
    with pytest.raises(MuscleError, match=r"training.warmup_steps: 500 of 24 steps in all"):
        run(trainings.world, "sums", tmp_path, alignment, warmup_steps=500)


def test_another_program_begins_anew(trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings.search(tmp_path, budget=1)
    trainings.search(tmp_path, budget=1)
    assert len(trainings.done) == 1
    monkeypatch.setattr(search, "program_hash", lambda: "another")
    trainings.search(tmp_path, budget=1)
    assert len(trainings.done) == 2


def test_with_a_small_budget_the_first_candidate_is_trained_alone(trainings: Trainings, tmp_path: Path) -> None:
    record = trainings.search(tmp_path, budget=1)
    (trial,) = record["trials"]
    assert trial["name"].startswith("mixture a 0.8, ")
    assert (trial["length"], trial["cost"]) == (1.0, 1.0)


def test_the_table_is_plain_in_a_pipe_and_fits_a_terminal(trainings: Trainings, tmp_path: Path) -> None:
    trainings.wrong = lambda alignment, epochs: set(range(20)) if alignment.old_share == 0.4 else {0}
    record = trainings.search(tmp_path)
    pipe, terminal = io.StringIO(), io.StringIO()
    print_search(tmp_path / "search.json", Console(file=pipe))
    rows = [line.split("|")[1:-1] for line in pipe.getvalue().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["", "held-out items", "length", "accuracy %", "NFR %", "fixed/made", "cost"]
    trials = cells[5:]
    assert [row[1] for row in trials] == [trial["name"] for trial in record["trials"]]
    assert [row[0] for row in trials] == [
        "*" if number == record["chosen"] else "" if trial["admissible"] else "-"
        for number, trial in enumerate(record["trials"])
    ]
    assert trials[0][2:] == ["0.25", "97.5 [87.1, 99.6]", "2.5 [0.4, 12.9]", "2/0", "0.25"]
    said = " ".join(pipe.getvalue().split())
    assert f"*: {record['why']} It was chosen on these items" in said
    assert re.search(r"10 trials, 4.00 of 4 times the cost of training of one alignment, \d+ s with their eval", said)
    print_search(tmp_path / "search.json", Console(file=terminal, force_terminal=True, width=80, color_system=None))
    assert max(map(len, terminal.getvalue().splitlines())) <= 80
    assert "97.5 [87.1, 99.6]" in terminal.getvalue()


def test_a_record_of_an_older_program_is_shown_and_a_damaged_one_refused(trainings: Trainings, tmp_path: Path) -> None:
    record, file = trainings.search(tmp_path), tmp_path / "search.json"
    now, older = io.StringIO(), io.StringIO()
    print_search(file, Console(file=now))
    for trial in record["trials"]:
        del trial["failed"]
    del record["warning"]
    file.write_text(json.dumps(record))
    print_search(file, Console(file=older))
    assert older.getvalue() == now.getvalue()
    for damaged in (b"{", b"", b"[]", b'{"trials": []}', b'{"why": "\xff"}', json.dumps(record | {"old": {}}).encode()):
        file.write_bytes(damaged)
        with pytest.raises(MuscleError, match=r"search.json: cannot be read \(.*\): search again"):
            print_search(file, Console(file=now))
    file.unlink()
    with pytest.raises(MuscleError, match=r"search.json: cannot be read \(.*\): search again"):
        print_search(file, Console(file=now))


def test_an_update_says_what_was_chosen(monkeypatch: pytest.MonkeyPatch, world: Path, tmp_path: Path) -> None:
    content = {
        "old": {"base": str(world / "v1")},
        "new": {"base": str(world / "v2")},
        "tasks": {"sums": {"include_path": str(world / "tasks")}},
        "methods": {"auto": {"search": {}}, "muscle": {}},
    }

    def write_models(stages: Any, root: Path, *_: Any) -> None:
        assert {f"models/sums/{name}" for name in ("auto", "muscle")} < {stage.name for stage in stages}
        for name in ("auto", "muscle"):
            (root / "models/sums" / name).mkdir(parents=True)
        (root / "models/sums/auto/search.json").write_text('{"why": "the first of many"}')

    monkeypatch.setattr(update_run, "run_pipeline", write_models)
    for name in ("check_weights", "collect", "print_tables"):
        monkeypatch.setattr(update_run, name, lambda *_: None)
    page = io.StringIO()
    update_run.run_update(make_recipe(content), tmp_path / "run", 1, Console(file=page))
    models = tmp_path / "run/models/sums"
    assert page.getvalue().splitlines() == [
        f"adapter   {models / 'auto'}",
        f"chosen    the first of many ({models / 'auto/search.json'})",
        f"adapter   {models / 'muscle'}",
    ]


# What the command refuses.


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--budget", "0", "'--budget': Input should be greater than or equal to 1"),
        ("--budget", "nan", "'--budget': Input should be less than or equal to 1000000"),
        ("--budget", "inf", "'--budget': Input should be less than or equal to 1000000"),
        ("--budget", "much", "'--budget': Input should be a valid number"),
        pytest.param("--method", "foo", "by --method (there are: auto, muscle)", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, option: str, value: str, problem: str
) -> None:
    refused = command("align", "scenes", "--old", "v1", "--new", "v2", "--out", "out", option, value, cwd=tmp_path)
    assert refused.returncode == 2
    assert problem in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (refused.stdout, list(tmp_path.iterdir())) == ("", [])


# Real trainings of tiny models.


@pytest.fixture
def beaten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new task model's answers are worse than wrong, so that a trial surely wins, whatever tiny models learn."""

    def scores(model: TaskModel, task: Task, *_: Any) -> dict[int, float]:
        score = 0.5 if is_old(model) else -1.0
        return dict.fromkeys(range(len(task.for_evaluation("validation").eval_docs)), score)

    monkeypatch.setattr(search, "scores_of", scores)


@pytest.mark.slow
@pytest.mark.usefixtures("beaten")
@pytest.mark.parametrize("name", ["scenes", "sums"])
def test_a_search_ends_in_an_ordinary_adapter(world: Path, tmp_path: Path, name: str) -> None:
    alignment = AlignmentSettings(search=SearchSettings(budget=3))
    record = run(world, name, tmp_path, alignment)
    assert record["budget_used"] <= 3
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "v2"), str(tmp_path))
    caches = {path.name.partition("-")[0] for path in (tmp_path / "checkpoints/teachers").iterdir()}
    assert caches >= {"old", "new"}
    assert not list((tmp_path / "checkpoints/trials").glob("*/checkpoints"))
    files = {"adapter_config.json", "adapter_model.safetensors", "training.json", "provenance.json", "log.jsonl"}
    assert files <= {path.name for path in tmp_path.iterdir()}
    chosen, trained = record["trials"][record["chosen"]], json.loads((tmp_path / "training.json").read_text())
    assert trained["alignment"]["search"] is None
    assert {**trained["alignment"], **chosen["alignment"]} == trained["alignment"]
    assert {**trained["training"], **chosen["training"]} == trained["training"]
    best = min(trial["score"] for trial in record["trials"])
    assert chosen["score"] == best == min(trained["result"]["validation_flips"])


@pytest.mark.slow
@pytest.mark.usefixtures("beaten")
def test_a_stopped_trial_goes_on_from_its_checkpoint(world: Path, tmp_path: Path) -> None:
    alignment = AlignmentSettings(search=SearchSettings(budget=2, lengths=(0.5, 1.0)))
    whole = run(world, "scenes", tmp_path / "whole", alignment)
    seen: list[str] = []

    def stop_in_the_second(_: float, words: str) -> None:
        checkpoints = tmp_path.glob("stopped/checkpoints/trials/*/checkpoints/checkpoint-*/whole.json")
        if words.startswith("trial 2") and any(checkpoints):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(world, "scenes", tmp_path / "stopped", alignment, stop_in_the_second)
    again = run(world, "scenes", tmp_path / "stopped", alignment, lambda _, words: seen.append(words))
    assert seen
    assert not any(words.startswith("trial 1 ") for words in seen)
    for record in (whole, again):
        for trial in record["trials"]:
            del trial["seconds"]
    assert again == whole
    for name in ("adapter_model.safetensors", "training.json", "log.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
