"""The training loop: what it divides by, what it keeps, that it repeats."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader
from transformers import TrainingArguments

from muscle.errors import MuscleError
from muscle.update.models import load_task_model, load_tokenizer
from muscle.update.objectives import task_objective
from muscle.update.recipe import TrainingSettings
from muscle.update.tasks import IGNORED, PaddingCollator, TokenizedExamples, examples, load_task
from muscle.update.trainer import TrainingResult, UpdateTrainer, mean_cross_entropy, train

COLLATOR = PaddingCollator(0)


@pytest.fixture(scope="module")
def splits(world: Path) -> tuple[TokenizedExamples, TokenizedExamples]:
    task, tokenizer = load_task("scenes", world / "tasks"), load_tokenizer(world / "v1")
    training, validation = (TokenizedExamples(examples(task, split), tokenizer) for split in ("training", "validation"))
    return training, validation


def run(
    world: Path, splits: tuple[TokenizedExamples, TokenizedExamples], work: Path, learning_rate: float
) -> tuple[torch.nn.Module, TrainingResult, list[float]]:
    model, shares = load_task_model(world / "v1", world / "old", trainable=True), list[float]()
    settings = TrainingSettings(epochs=4, learning_rate=learning_rate, batch_size=8, seed=3)
    result = train(model, task_objective, settings, *splits, COLLATOR, work, lambda share, _: shares.append(share))
    return model, result, shares


def test_best_epoch_is_kept(world: Path, splits: tuple[TokenizedExamples, TokenizedExamples], tmp_path: Path) -> None:
    sums = examples(load_task("sums", world / "tasks"), "training")
    misleading = TokenizedExamples(sums, load_tokenizer(world / "v1"))  # what is learnt is not what is asked for
    model, result, shares = run(world, (misleading, splits[1]), tmp_path, learning_rate=0.1)
    curve = result.validation_cross_entropy
    assert len(curve) == 4
    assert result.best_epoch == curve.index(min(curve)) + 1
    assert result.best_epoch < 4
    kept = mean_cross_entropy(model, DataLoader(splits[1], 5, collate_fn=COLLATOR))
    assert kept == pytest.approx(min(curve), rel=1e-5)
    assert result.steps == len(shares) == 12
    assert shares[-1] == 1


def test_training_learns_and_repeats_bit_by_bit(
    world: Path, splits: tuple[TokenizedExamples, TokenizedExamples], tmp_path: Path
) -> None:
    first, result, _ = run(world, splits, tmp_path / "1", learning_rate=1e-2)
    second, again, _ = run(world, splits, tmp_path / "2", learning_rate=1e-2)
    assert result.validation_cross_entropy[-1] < result.validation_cross_entropy[0]
    assert result == again
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    base = load_task_model(world / "v1", world / "old")
    changed = {
        name
        for (name, a), (_, b) in zip(first.named_parameters(), base.named_parameters(), strict=True)
        if (a != b).any()
    }
    assert changed
    assert all("lora_" in name for name in changed)


def test_accumulated_batches_give_the_step_of_one_big_batch(
    world: Path, splits: tuple[TokenizedExamples, TokenizedExamples], tmp_path: Path
) -> None:
    sums = TokenizedExamples(examples(load_task("sums", world / "tasks"), "training"), load_tokenizer(world / "v1"))
    mixed = ConcatDataset([splits[0], sums])  # unequal lengths: a mean of the small batches' means would differ

    def one_step(batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
        model = load_task_model(world / "v1", world / "old", trainable=True)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = UpdateTrainer(model, arguments, objective=task_objective, train_dataset=mixed, data_collator=COLLATOR)
        trainer.train()
        return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}

    whole, parts = one_step(8, 1), one_step(2, 4)
    start = dict(load_task_model(world / "v1", world / "old").named_parameters())
    assert any((weight != start[name]).any() for name, weight in whole.items())
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-4, atol=1e-6)


def test_divergence_is_said(world: Path, splits: tuple[TokenizedExamples, TokenizedExamples], tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match="training diverged in epoch 1: choose a lower learning rate"):
        run(world, splits, tmp_path, learning_rate=1e30)


def test_validation_is_nats_per_target(world: Path, splits: tuple[TokenizedExamples, TokenizedExamples]) -> None:
    model, data = load_task_model(world / "v1", world / "old"), splits[1]
    nats, count = 0.0, 0
    for i in range(len(data)):
        ids, labels = data[i]["input_ids"], data[i]["labels"]
        log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for position in range(1, len(ids)):
            if labels[position] != IGNORED:
                nats, count = nats - log_p[position - 1, ids[position]].item(), count + 1
    # batches of unequal size: a mean of batch means would differ
    assert mean_cross_entropy(model, DataLoader(data, 5, collate_fn=COLLATOR)) == pytest.approx(nats / count, rel=1e-5)
