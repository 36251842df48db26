"""The recipes that come along, each run whole with tiny stand-ins: `muscle update RECIPE --dry-run tiny`."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

import muscle.recipes
from muscle.update.models import load_base, load_tokenizer
from muscle.update.recipe import Base, Recipe, Scratch, Side
from muscle.update.recipe_file import read_recipe
from muscle.update.report import paper
from muscle.update.scratch import pretrain_on_texts, train_tokenizer

from .commands import run
from .real_data import some_rows

FOLDER = Path(muscle.recipes.__file__).parent
FILES = sorted(file for file in FOLDER.rglob("*.yaml") if file.parent.name != "tasks")
ROWS = 40
"""Of each split, so that reading data costs little."""
DIALOGUES = (
    ("Ann: Lunch at noon?\r\nBob: I have a meeting until one.\r\nAnn: One thirty then.", "Ann and Bob eat at 1:30."),
    ("Tom: did you feed the cat\r\nEva: yes :)\r\nTom: and the fish?\r\nEva: oh no!", "Eva forgot to feed the fish."),
    ("Lea: The train is late again.\r\nJim: How late?\r\nLea: 20 minutes.", "Lea's train is late."),
    ("Max: Who won?\r\nIda: We did, 3:1!\r\nMax: Great, see you at the party.", "Ida's team won 3:1."),
    (
        "Kim: <file_photo>\r\nRoy: Is that your new bike?\r\nKim: Yes, from my brother.",
        "Kim has her brother's bike.",
    ),
)


def architecture(side: Side) -> str | None:
    return side.scratch.architecture if side.scratch else side.architecture


def families() -> dict[str, list[Path]]:
    """Recipes whose stand-ins and tasks are alike, by the first one's name: they share the stages that are equal."""
    groups: dict[object, list[Path]] = {}
    for file in FILES:
        recipe = read_recipe(file)
        groups.setdefault((architecture(recipe.old), architecture(recipe.new), tuple(recipe.tasks)), []).append(file)
    return {files[0].stem: files for files in groups.values()}


@pytest.fixture(scope="module")
def local(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of the real data sets, as prepare_data makes them, and a few dialogues in place of SAMSum."""
    cut = some_rows(data, tmp_path_factory.mktemp("real"), ROWS)
    (cut / "samsum").mkdir()
    for split in ("train", "validation", "test"):
        rows = ({"dialogue": f"{split} {n}\r\n{said}", "summary": told} for n in range(6) for said, told in DIALOGUES)
        (cut / "samsum" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return cut


@pytest.mark.slow
@pytest.mark.parametrize("files", families().values(), ids=list(families()))
def test_every_stage_of_a_recipe_runs(files: list[Path], local: Path, tmp_path: Path) -> None:
    for file in files:
        command = ["update", file, "--dry-run", "tiny", "--set", f"data={local}", "--out", "run", "--jobs", "2"]
        done = run(*command, cwd=tmp_path, seconds=400)
        assert (done.returncode, done.stderr) == (0, ""), file
        recipe = read_recipe(file)
        for line in published(recipe):
            assert line in [" ".join(printed.split()) for printed in done.stdout.splitlines()], file
        for task in recipe.tasks:
            for method in recipe.methods:
                package = tmp_path / "run" / "models" / task / method
                assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= names(package)
                assert task in (package / "README.md").read_text()
            for model in recipe.models:
                (log,) = (tmp_path / "run" / "logs" / task / model).rglob("samples_*.jsonl")
                assert log.read_text().count("\n") % 6 == 0

        status = run("status", "run", cwd=tmp_path)
        states = [line.split("|")[2].strip() for line in status.stdout.splitlines() if "/" in line]
        assert set(states) == {"done"}
        assert f"{len(states)} of {len(states)} stages are done" in status.stdout


def published(recipe: Recipe) -> Iterator[str]:
    """What the paper has of a recipe's update in table 9, as it is printed."""
    for task in recipe.tasks:
        if row := paper.row_of(task, recipe.paper_update):
            gap = row.score_new - row.score_old
            yield f"| paper | {row.score_old:.2f} | {row.score_new:.2f} | {gap:+.2f} | {row.nfr:.2f} | - | - |"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_there_are_recipes_of_the_papers_updates_and_of_todays() -> None:
    recipes = {file.relative_to(FOLDER).as_posix().removesuffix(".yaml"): read_recipe(file) for file in FILES}
    trained = {recipe.paper_update for recipe in recipes.values() if recipe.paper_update and recipe.methods}
    measured = {recipe.paper_update for recipe in recipes.values() if not recipe.methods}
    assert trained == set(paper.TRAINED_UPDATES)
    assert measured == set(paper.MEASURED_UPDATES)
    assert {"ablation", "real_data_small", "qwen2.5_to_qwen3", "smollm2_checkpoints"} < recipes.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_training_is_all_warm_up(file: Path) -> None:
    """As far as a recipe says how many texts there are."""
    recipe = read_recipe(file)
    for name, task in recipe.tasks.items():
        for training in (recipe.training_of(name), recipe.alignment_training_of(name)) if task.train_limit else ():
            texts = round(task.train_limit * (1 - (task.validation_share or 0)))
            steps = training.epochs * math.ceil(texts / (training.batch_size * training.accumulation))
            assert training.warmup_steps < steps, name


@pytest.mark.parametrize("chosen", ["gemma2", "gpt_neox", "llama", "mistral", "olmo2", "phi", "qwen2", "qwen3"])
def test_a_base_from_scratch_keeps_its_tokens(chosen: str, tmp_path: Path) -> None:
    """Transformers chooses the class of a tokenizer by the model beside it, and some of those change what is said."""
    texts = [f"{said}\n\n\n(a) {told}!\n\nDON'T" for said, told in DIALOGUES]
    words = train_tokenizer(texts, 400)
    scratch = Scratch(architecture=chosen, hidden_size=32, heads=2, vocabulary=400, steps=0)
    pretrain_on_texts(texts, scratch, words, tmp_path, lambda *_: None)
    loaded = load_tokenizer(Base(base=str(tmp_path)))
    assert len(loaded) == len(words) <= load_base(Base(base=str(tmp_path))).get_input_embeddings().num_embeddings
    others = ("  two  spaces\t\n\n", "12345 x 6", "Größe: 5€ 日本語 \U0001f600", "e\u0301", "<pad> <eos> <|endoftext|>")
    for text in (*texts, *others, "\n\n\n(a)\n\n(b)...\n\n", "DON'T can't"):
        ids = words(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids, text
        assert loaded.decode(ids) == words.decode(ids), text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (words.eos_token_id, words.pad_token_id)
    assert load_base(Base(base=str(tmp_path))).config.model_type == chosen
