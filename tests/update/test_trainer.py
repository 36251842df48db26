"""The training loop: what it divides by, what it keeps, what it logs, that it repeats."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from muscle.errors import MuscleError
from muscle.update.distributed import SharedLoader
from muscle.update.heads import Head
from muscle.update.objectives import Read, task_objective
from muscle.update.recipe import TrainingSettings
from muscle.update.rows import Outcome
from muscle.update.trainer import mean_cross_entropy, outcome, train

from .training_world import COLLATOR, TRAINING, VALIDATION, Texts, compatibility, run, student, weights

ONE_STEP = {
    "epochs": 1,
    "optimizer": "sgd",
    "learning_rate": 1.0,
    "schedule": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 0.0,
    "validated": False,
}


def nats(model: nn.Module, data: Texts) -> tuple[Tensor, int]:
    """Text by text, without padding: summed negative log-likelihood and number of targets."""
    rows = [data[i]["input_ids"] for i in range(len(data))]
    losses = [
        functional.cross_entropy(model(input_ids=row[None]).logits[0, :-1], row[1:], reduction="sum") for row in rows
    ]
    return torch.stack(losses).sum(), sum(len(row) - 1 for row in rows)


def unlearning(batch: Mapping[str, Tensor]) -> Read:
    """What is learnt is the opposite of what is asked for, so that every epoch is worse than the one before."""

    def read(hidden: Tensor, head: Head) -> Outcome:
        total, count, statistics = task_objective(batch)(hidden, head)
        return -total, count, statistics

    return read


def log(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work.parent / "log.jsonl").read_text().splitlines()]


def test_a_step_goes_down_the_mean_over_all_targets(tmp_path: Path) -> None:
    reference = student()
    total, count = nats(reference, TRAINING)
    (total / count).backward()
    expected = {name: w.detach() - w.grad for name, w in reference.named_parameters() if w.grad is not None}
    model, result = run(tmp_path / "work", batch_size=21, **ONE_STEP)
    assert result.steps == 1
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


def test_accumulated_batches_give_the_step_of_one_big_batch(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "1" / "work", objective=compatibility(), batch_size=21, **ONE_STEP)
    parts, result = run(tmp_path / "2" / "work", objective=compatibility(), batch_size=4, accumulation=6, **ONE_STEP)
    assert result.steps == 1
    for name, weight in weights(whole).items():  # unequal lengths: a mean of the small batches' means would differ
        torch.testing.assert_close(weights(parts)[name], weight, rtol=1e-4, atol=1e-6)
    for name, value in log(tmp_path / "1" / "work")[0].items():
        assert log(tmp_path / "2" / "work")[0][name] == pytest.approx(value, rel=1e-4)


def test_a_model_trained_whole_goes_down_the_mean_of_all_its_weights(tmp_path: Path) -> None:
    """Its head too, which then needs a gradient of its own."""
    model, reference = (student().merge_and_unload().requires_grad_(True) for _ in range(2))
    total, count = nats(reference, TRAINING)
    (total / count).backward()
    one_step: dict[str, Any] = {name: value for name, value in ONE_STEP.items() if name != "validated"}
    settings = TrainingSettings(batch_size=21, accumulation=1, **one_step)
    train(model, task_objective, settings, TRAINING, None, COLLATOR, tmp_path / "work", lambda *_: None)
    for (name, weight), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(weight, other.detach() - other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_head_that_is_not_known_is_asked_for_its_logits(tmp_path: Path) -> None:
    def strange(_: nn.Module, __: Any, outputs: Any) -> Any:
        outputs.logits = outputs.logits.sinh()
        return outputs

    model, reference = student(), student()
    for each in (model, reference):
        each.register_forward_hook(strange)
    total, count = nats(reference, VALIDATION)
    found = mean_cross_entropy(model, SharedLoader(VALIDATION, 5, COLLATOR), head_known=False)
    assert found == pytest.approx(total.item() / count, rel=1e-5)
    total, count = nats(reference, TRAINING)
    (total / count).backward()
    expected = {name: w.detach() - w.grad for name, w in reference.named_parameters() if w.grad is not None}
    run(tmp_path / "work", model, batch_size=21, **ONE_STEP)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ce_share", [0.0, 0.25])
def test_mixed_precision_reads_the_logits_that_the_model_would_make(ce_share: float) -> None:
    """To the last bit: so coarse, they often tie, and who wins decides over the mask."""
    model, batch = student(), COLLATOR([TRAINING[i] for i in range(len(TRAINING))])
    with torch.autocast("cpu", torch.bfloat16):
        _, count, found = outcome(model, compatibility(ce_share), batch)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    assert logits.dtype == torch.bfloat16
    gold = batch["labels"][:, 1:]
    right = ((logits.argmax(-1) == gold) & (gold != -100)).sum()
    assert (found["token_accuracy"], found["aligned_to_old"]) == (right, count - right)
    exact = functional.cross_entropy(logits.float().flatten(0, 1), gold.flatten(), reduction="sum")
    assert found["cross_entropy"].item() == pytest.approx(exact.item(), rel=1e-6)


def test_texts_pooled_by_length_are_learnt_as_well(tmp_path: Path) -> None:
    _, plain = run(tmp_path / "1" / "work", batch_size=2, accumulation=2)
    _, pooled = run(tmp_path / "2" / "work", batch_size=2, accumulation=2, length_pool=3)
    assert pooled.steps == plain.steps
    assert pooled.validation_cross_entropy != plain.validation_cross_entropy
    assert pooled.validation_cross_entropy[-1] < pooled.validation_cross_entropy[0]


def test_validation_is_nats_per_target() -> None:
    model = student()
    total, count = nats(model, VALIDATION)
    found = mean_cross_entropy(model, SharedLoader(VALIDATION, 3, COLLATOR))  # a mean of batch means would differ
    assert found == pytest.approx(total.item() / count, rel=1e-5)
    assert model.training


def test_best_epoch_is_kept(tmp_path: Path) -> None:
    shares: list[float] = []
    model, result = run(tmp_path / "work", objective=unlearning, epochs=4, report=lambda share, _: shares.append(share))
    curve = result.validation_cross_entropy
    assert len(curve) == 4
    assert curve == sorted(curve)
    assert result.best_epoch == 1
    assert mean_cross_entropy(model, SharedLoader(VALIDATION, 5, COLLATOR)) == pytest.approx(min(curve), rel=1e-5)
    assert result.steps == len(shares) == 24
    assert shares[-1] == 1
    assert {folder.name for folder in (tmp_path / "work").iterdir()} == {"checkpoint-6", "checkpoint-24"}


def test_the_last_epoch_is_kept_on_demand_and_without_validation(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"objective": unlearning, "epochs": 4}
    last, result = run(tmp_path / "1" / "work", select_by="last", **settings)
    blind, blind_result = run(tmp_path / "2" / "work", validated=False, **settings)
    assert min(result.validation_cross_entropy) < result.validation_cross_entropy[-1]
    assert result.best_epoch == blind_result.best_epoch == 4
    assert blind_result.validation_cross_entropy == []
    for name, weight in weights(last).items():
        assert torch.equal(weights(blind)[name], weight)


def test_fewest_flips_win_and_cross_entropy_breaks_ties(tmp_path: Path) -> None:
    asked, answers = [], iter([3.0, 1.0, 1.0, 2.0])

    def flips(model: nn.Module) -> float:
        asked.append((model.training, torch.is_grad_enabled()))
        return next(answers)

    model, result = run(tmp_path / "work", epochs=4, select_by="flips", flips=flips)
    curve = result.validation_cross_entropy
    assert result.validation_flips == [3, 1, 1, 2]
    assert result.best_epoch == 3
    assert curve[3] < curve[2] < curve[1]  # neither the lowest cross-entropy, nor the first with fewest flips
    assert mean_cross_entropy(model, SharedLoader(VALIDATION, 5, COLLATOR)) == pytest.approx(curve[2], rel=1e-5)
    assert asked == [(False, False)] * 4


def test_flips_are_counted_at_the_end_only_where_that_is_asked_for(tmp_path: Path) -> None:
    answers = iter([1.0, 2.0])
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 4, "accumulation": 1, "warmup_steps": 2, "seed": 5}
    chosen = TrainingSettings(select_by="flips", learning_rate=1e-2, **settings)
    data = TRAINING, VALIDATION, COLLATOR
    result = train(
        student(), unlearning, chosen, *data, tmp_path / "work", lambda *_: None, lambda _: next(answers), flips_last=2
    )
    assert result.validation_flips == [1, 2]
    assert result.validation_cross_entropy[0] == min(result.validation_cross_entropy)
    assert result.best_epoch == 3


def test_without_flips_to_count_cross_entropy_decides(tmp_path: Path) -> None:
    _, result = run(tmp_path / "work", select_by="flips")
    assert result.validation_flips == []
    assert result.best_epoch == result.validation_cross_entropy.index(min(result.validation_cross_entropy)) + 1


def test_flips_are_not_counted_when_they_do_not_decide(tmp_path: Path) -> None:
    _, result = run(tmp_path / "work", epochs=1, flips=lambda model: pytest.fail("asked"))
    assert result.validation_flips == []


def test_training_stops_early(tmp_path: Path) -> None:
    answers = iter([2.0, 1.0, 3.0, 3.0, 0.0])
    _, result = run(tmp_path / "work", epochs=6, select_by="flips", flips=lambda _: next(answers), early_stopping=2)
    assert result.validation_flips == [2, 1, 3, 3]
    assert result.best_epoch == 2
    assert result.steps == 24


def test_training_learns_and_repeats_bit_by_bit(tmp_path: Path) -> None:
    before = student().state_dict()
    first, result = run(tmp_path / "1" / "work")
    second, again = run(tmp_path / "2" / "work")
    other, _ = run(tmp_path / "3" / "work", seed=6)
    assert result.validation_cross_entropy[-1] < result.validation_cross_entropy[0]
    assert result == again
    assert log(tmp_path / "1" / "work") == log(tmp_path / "2" / "work")
    changed = {name for name, weight in first.state_dict().items() if (weight != before[name]).any()}
    assert changed == set(weights(first))  # the adapter, nothing else
    for name, weight in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], weight), name
    assert any((weight != weights(first)[name]).any() for name, weight in weights(other).items())


def test_steps_and_validations_are_logged(tmp_path: Path) -> None:
    objective = compatibility()
    batch = COLLATOR([TRAINING[i] for i in range(len(TRAINING))])
    total, count, sums = outcome(student(), objective, batch)
    expected = {"loss": total.item() / count.item()} | {name: (s / count).item() for name, s in sums.items()}
    assert {"old_divergence", "new_divergence", "aligned_to_old", "token_accuracy", "cross_entropy"} < set(expected)

    _, result = run(tmp_path / "work", objective=objective, batch_size=3, accumulation=7, epochs=3)
    lines = log(tmp_path / "work")
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 3, 3]
    for name, value in expected.items():
        assert lines[0][name] == pytest.approx(value, rel=1e-4), name
    assert lines[0]["learning_rate"] == 0  # of the step it belongs to: warm-up begins at 0
    assert lines[2]["learning_rate"] == pytest.approx(1e-2 / 2)
    assert lines[0]["grad_norm"] > 0
    assert [line["eval_cross_entropy"] for line in lines[1::2]] == result.validation_cross_entropy


@pytest.mark.parametrize("validated", [True, False])
def test_divergence_is_said(tmp_path: Path, validated: bool) -> None:
    with pytest.raises(MuscleError, match="training diverged in epoch 1: choose a lower learning rate"):
        run(tmp_path / "work", learning_rate=1e30, validated=validated)


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "1" / "work", objective=compatibility(), epochs=1)
    mixed, _ = run(tmp_path / "2" / "work", objective=compatibility(), epochs=1, precision="bfloat16")
    losses, mixed_losses = ([line["loss"] for line in log(tmp_path / i / "work") if "loss" in line] for i in "12")
    assert losses != mixed_losses
    assert mixed_losses == pytest.approx(losses, rel=0.05)
    assert {weight.dtype for weight in weights(mixed).values()} == {torch.float32}
    row = VALIDATION[0]["input_ids"][None]
    mixed.load_state_dict(plain.state_dict())
    assert torch.equal(mixed.eval()(row).logits, plain.eval()(row).logits)  # no mixed precision is left on the model


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    def one_step(work: Path, checkpointing: bool) -> tuple[dict[str, Tensor], int]:
        model, calls = student(), []
        norm = model.get_submodule("base_model.model.model.layers.0.input_layernorm")
        norm.register_forward_pre_hook(lambda *_: calls.append(1))
        run(work, model, batch_size=21, gradient_checkpointing=checkpointing, **ONE_STEP)
        return weights(model), len(calls)

    plain, calls = one_step(tmp_path / "1" / "work", False)
    saved, more_calls = one_step(tmp_path / "2" / "work", True)
    assert more_calls == calls + 1  # computed again for the gradient
    for name, weight in plain.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-5, atol=1e-7)


def test_trackers_get_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    class Tracker(TrainerCallback):
        logging_dir = None

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append({"folder": self.logging_dir} | logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    run(tmp_path / "work", epochs=1, report_to=("tensorboard",))
    assert {"loss", "grad_norm", "learning_rate", "token_accuracy"} < set(seen[0])
    assert "eval_cross_entropy" in seen[6]
    assert seen[0]["folder"] == str(tmp_path / "tensorboard")  # not among the checkpoints, which are removed


def missing_library() -> None:
    raise RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"report_to": ("tensorbord",)},
            "report_to: tensorbord is not supported, only .*tensorboard.*: correct the name",
        ),
        ({"report_to": ("wandb",)}, "report_to: WandbCallback requires wandb to be installed"),
        ({"optimizer": "adm"}, "training settings: adm is not a valid OptimizerNames, please select one of"),
        ({"schedule": "cos"}, "training settings: cos is not a valid SchedulerType, please select one of"),
        ({"precision": "float16"}, "precision float16 needs a GPU: choose bfloat16 or float32"),
        ({"deepspeed": "no.json"}, "training settings: .*[Dd]eep[Ss]peed"),
    ],
)
def test_refused_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", missing_library)
    if torch.cuda.is_available() and settings.get("precision") == "float16":
        pytest.skip("a GPU does float16")
    with pytest.raises(MuscleError, match=message):
        run(tmp_path / "work", **settings)


def test_any_causal_model_can_be_trained_whole(tmp_path: Path) -> None:
    model = student().merge_and_unload().requires_grad_(True)
    settings = TrainingSettings(epochs=2, learning_rate=1e-2, batch_size=4, accumulation=1, warmup_steps=0)
    result = train(model, task_objective, settings, TRAINING, VALIDATION, COLLATOR, tmp_path / "work", lambda *_: None)
    assert result.validation_cross_entropy[1] < result.validation_cross_entropy[0]


def test_a_training_that_is_all_warm_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match=r"training.warmup_steps: 500 of \d+ steps in all, .*: lower it"):
        run(tmp_path / "work", warmup_steps=500)
