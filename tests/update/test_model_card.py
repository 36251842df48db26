"""The model card, read back as the hub reads it; and where an adapter comes from."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, metadata_load
from markdown_it import MarkdownIt

from muscle.errors import MuscleError
from muscle.update.provenance import _commit, digest, provenance
from muscle.update.recipe import Base, TaskModel
from muscle.update.report.figures import TaskFigures, measure_task
from muscle.update.report.model_card import Subject, write_model_card

from .runs import choices, graded, write_log

NASTY = "a|b `c` <script>d</script> [e](http://f) ---\n# g"


def measured(folder: Path, **logs: Any) -> TaskFigures:
    """Figures of logs by model."""
    for name, rows in logs.items():
        write_log(folder / name, rows)
    return measure_task("piqa", {name: folder / name for name in logs})


@pytest.fixture
def figures(tmp_path: Path) -> TaskFigures:
    """Old 60 %, new 50 % with NFR 30, muscle 60 % with NFR 20 and NFR_mc 20."""
    logs = {"old": "0000001121", "new": "0001120011", "muscle": "0010020101", "cross_entropy": "0001120011"}
    return measured(tmp_path / "logs", **{name: choices(answers) for name, answers in logs.items()})


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter's folder with its provenance and PEFT's own README."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "README.md").write_text("PEFT's")
    base = tmp_path / "the base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    settings = {"training": {"epochs": 3, "seed": 7}, "alignment": {"weight": "student_wrong"}}
    record = provenance([TaskModel(base=Base(base=str(base)))], {"train": "abc"}, settings)
    (folder / "provenance.json").write_text(json.dumps(record))
    return folder


SUBJECT = Subject(task="piqa", base="owner/name@v2", old_base="owner/name@v1", model="muscle")


def test_the_hub_reads_the_metadata(adapter: Path, figures: TaskFigures) -> None:
    card = ModelCard.load(write_model_card(adapter, SUBJECT, figures))
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-generation")
    assert (card.data.base_model, card.data.base_model_relation) == ("owner/name", "adapter")
    assert card.data.eval_results is not None
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "accuracy": 60,
        "negative_flip_rate": 20,
        "positive_flip_rate": 20,
        "inconsistency_flip_rate": 20,
    }
    assert {(result.dataset_type, result.task_type) for result in card.data.eval_results} == {
        ("piqa", "text-generation")
    }
    metadata = metadata_load(adapter / "README.md")
    assert metadata is not None
    assert metadata["model-index"][0]["name"] == "piqa-muscle"


def test_the_flip_table(adapter: Path, figures: TaskFigures) -> None:
    text = write_model_card(adapter, SUBJECT, figures).read_text()
    lines = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    table = {line[1].strip(): [cell.split()[0] for cell in line[2:-1]] for line in lines if len(line) == 7}
    assert table["old"] == ["60.00", "-", "-", "-"]
    assert table["new"] == ["50.00", "30.00", "20.00", "40.00"]
    assert table["**muscle**"] == ["60.00", "20.00", "20.00", "20.00"]
    assert table["cross_entropy"] == ["50.00", "30.00", "20.00", "40.00"]
    assert "After the plain update 30.00 % of the items are negative flips, with this adapter 20.00 %" in text
    assert "- cross_entropy: as many steps of plain cross-entropy" in text
    assert "| training.seed | 7 |" in text
    assert "the base (sha256:" in text.replace("&#58;", ":")


def test_a_graded_task_names_its_own_metric(adapter: Path, tmp_path: Path) -> None:
    logs = {"old": [0.5, 0.5, 0.25, 0.0], "new": [0.75, 0.25, 0.25, 0.5], "muscle": [0.5, 0.375, 0.5, 0.5]}
    figures = measured(tmp_path / "graded", **{name: graded(grades) for name, grades in logs.items()})
    card = ModelCard.load(write_model_card(adapter, SUBJECT, figures))
    assert card.data.eval_results is not None
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"rouge1": 46.88, "negative_flip_rate": 25, "positive_flip_rate": 50}


def test_a_task_adapter_that_nobody_evaluated(tmp_path: Path) -> None:
    card = ModelCard.load(write_model_card(tmp_path, Subject(task="piqa", base="owner/name", model="adapter")))
    assert card.data.eval_results is None
    assert card.text.startswith("\n# piqa: task adapter for owner/name")
    assert "negative flips" not in card.text


def test_the_old_model_has_no_flips(adapter: Path, figures: TaskFigures) -> None:
    card = ModelCard.load(write_model_card(adapter, Subject(task="piqa", base="a/b", model="old"), figures))
    assert card.data.eval_results is not None
    assert [result.metric_type for result in card.data.eval_results] == ["accuracy"]


def test_a_local_base_is_not_given_to_the_hub(adapter: Path, tmp_path: Path) -> None:
    subject = Subject(task="piqa", base=str(tmp_path / "the base"), model="adapter")
    text = write_model_card(adapter, subject).read_text()
    assert ModelCard(text).data.base_model is None
    assert str(tmp_path) not in text
    assert 'from_pretrained("the base")' in text


def test_text_of_users_does_nothing(adapter: Path, tmp_path: Path) -> None:
    logs = {"old": choices("01"), "new": choices("00"), NASTY: choices("01")}
    for number, rows in enumerate(logs.values()):
        write_log(tmp_path / "nasty" / str(number), rows)
    figures = measure_task(NASTY, {name: tmp_path / "nasty" / str(number) for number, name in enumerate(logs)})
    subject = Subject(task=NASTY, base=NASTY, old_base=NASTY, model=NASTY, description=NASTY)
    card = ModelCard.load(write_model_card(adapter, subject, figures))
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    assert "<script>" not in page
    assert "<a " not in page
    assert page.count("<h1>") == 1
    assert page.count("<hr") == 0
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].dataset_type == NASTY
    code = page.partition("<pre>")[2].partition("</pre>")[0]
    assert "this adapter" in code


def test_the_code_of_the_card_is_python(adapter: Path) -> None:
    for base in ("owner/name@v2", NASTY):
        text = write_model_card(adapter, Subject(task="piqa", base=base, model="adapter")).read_text()
        code = text.partition("```python\n")[2].partition("```")[0]
        compile(code, "card", "exec")
    assert code.count("from_pretrained") == 3


def test_unreadable_provenance_is_named(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(MuscleError, match=r"provenance\.json: cannot be read \(KeyError\('models'\)\)"):
        write_model_card(tmp_path, SUBJECT)


# --- provenance ---


def model_folder(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_the_digest_is_of_what_decides(tmp_path: Path) -> None:
    files = {"config__json": "{}", "model__safetensors": "weights", "README__md": "a"}
    first = digest(str(model_folder(tmp_path / "a", **files)))
    assert digest(str(model_folder(tmp_path / "b", **files))) == first
    assert digest(str(model_folder(tmp_path / "c", **files | {"README__md": "b", "stage__json": "{}"}))) == first
    changes = ({"config__json": "{ }"}, {"model__safetensors": "Weights"}, {"tokenizer__json": "{}"})
    others = {digest(str(model_folder(tmp_path / str(i), **files | change))) for i, change in enumerate(changes)}
    assert len(others - {first}) == 3


@pytest.mark.parametrize("place", [0, (1 << 20) - 1, 3 * (1 << 20) - 1, 2 * (1 << 20)])
def test_the_digest_sees_both_ends_of_large_weights(tmp_path: Path, place: int) -> None:
    content = bytearray(3 << 20)
    (tmp_path / "model.safetensors").write_bytes(content)
    before = digest(str(tmp_path))
    content[place] = 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert digest(str(tmp_path)) != before


def test_a_folder_without_a_model_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match="no model or adapter in it"):
        digest(str(tmp_path))


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with owner/base and owner/adapter downloaded, and no network."""
    for name, file in (("base", "config.json"), ("adapter", "adapter_config.json")):
        repository = tmp_path / f"models--owner--{name}"
        snapshot = repository / "snapshots" / ("c0ffee" * 7)[:40]
        snapshot.mkdir(parents=True)
        (snapshot / file).write_text("{}")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    _commit.cache_clear()
    return tmp_path


@pytest.mark.parametrize("name", ["owner/base", "owner/adapter", "owner/base@main"])
def test_a_model_of_the_hub_is_its_commit(offline_hub: Path, name: str) -> None:
    assert digest(name) == f"commit:{('c0ffee' * 7)[:40]}"


@pytest.mark.parametrize("name", ["owner/other", "owner/base@other", "no such/folder/at all"])
def test_a_model_that_is_nowhere(offline_hub: Path, name: str) -> None:
    with pytest.raises(MuscleError, match=f"^{name}: neither a local folder nor a model .*; check the name"):
        digest(name)


def test_provenance_is_the_same_anywhere(tmp_path: Path) -> None:
    def record(place: str) -> str:
        (tmp_path / place).mkdir()
        base = model_folder(tmp_path / place / "v1", config__json="{}")
        return json.dumps(
            provenance([TaskModel(base=Base(base=str(base), dtype="bfloat16"))], {"piqa": "abc"}, {"seed": 1})
        )

    assert record("here") == record("there")
    found = json.loads(record("third"))
    assert found["models"][0] | {"digest": ""} == {
        "base": "v1",
        "digest": "",
        "dtype": "bfloat16",
        "quantization": None,
        "trust_remote_code": False,
        "allow_pickle": False,
    }
    assert (found["data"], found["settings"]) == ({"piqa": "abc"}, {"seed": 1})
    assert {"torch", "transformers", "peft"} <= found["libraries"].keys()
