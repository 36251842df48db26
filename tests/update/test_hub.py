"""Merged checkpoints say what base and adapter said; what is pushed, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from muscle.demo.bases import build_tokenizer
from muscle.errors import MuscleError
from muscle.update import hub
from muscle.update.hub import merge, push
from muscle.update.recipe import Base, TaskModel

TOKENS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TaskModel]:
    """Save a tiny base with an adapter that says something."""

    def make(*, tied: bool, targets: str | list[str] = "all-linear") -> TaskModel:
        folder = tmp_path_factory.mktemp("model")
        tokenizer = build_tokenizer()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
            initializer_range=0.3,
            tie_word_embeddings=tied,
        )
        base = LlamaForCausalLM(config)
        base.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        lora = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(base, lora)
        for name, weight in model.named_parameters():
            if "lora_" in name:  # a fresh adapter is the identity
                torch.nn.init.normal_(weight, std=0.2)
        model.save_pretrained(folder / "adapter", save_embedding_layers=False)
        return TaskModel(base=Base(base=str(folder / "base")), adapter=str(folder / "adapter"))

    return make


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(TOKENS).logits
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"], ["q_proj", "embed_tokens"]])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning")  # it is handled
def test_merged_logits(
    make_model: Callable[..., TaskModel], tmp_path: Path, tied: bool, targets: str | list[str]
) -> None:
    model = make_model(tied=tied, targets=targets)
    assert model.adapter is not None
    base = AutoModelForCausalLM.from_pretrained(model.base.base)
    alone = logits(base)
    expected = logits(PeftModel.from_pretrained(base, model.adapter))
    assert (alone - expected).abs().max() > 0.1
    merge(model, tmp_path / "merged")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", use_safetensors=True))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_an_empty_folder_may_be_there_a_full_one_not(make_model: Callable[..., TaskModel], tmp_path: Path) -> None:
    model = make_model(tied=False)
    merge(model, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors"} <= before.keys()
    with pytest.raises(MuscleError, match="exists: name a folder that is not there yet"):
        merge(model, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_nothing_is_left_of_a_merge_that_fails(
    make_model: Callable[..., TaskModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "load_tokenizer", lambda base: SimpleNamespace(save_pretrained=disk_full))
    with pytest.raises(MuscleError, match=r"merged: cannot be written \(No space left on device\); check the folder"):
        merge(make_model(tied=False), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_merged(make_model: Callable[..., TaskModel], tmp_path: Path) -> None:
    model = make_model(tied=False)
    quantized = TaskModel(base=Base(base=model.base.base, quantization="4bit"), adapter=model.adapter)
    with pytest.raises(MuscleError, match=r"is quantized, .*: merge into the original weights"):
        merge(quantized, tmp_path / "merged")
    with pytest.raises(MuscleError, match="nothing to merge: name an adapter"):
        merge(TaskModel(base=model.base), tmp_path / "merged")


# --- push ---


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder as training leaves it."""
    (tmp_path / "README.md").write_text("---\nlibrary_name: peft\n---\n# Adapter\n")
    for name in ("adapter_config.json", "adapter_model.safetensors", "provenance.json", "stage.json", "stage.log"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "optimizer.pt").write_text("a pickle")
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the hub is asked for, by someone who is logged in."""
    made: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repo_id: str, **options: Any) -> Any:
            made.append(("create_repo", {"repo_id": repo_id, **options}))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, **options: Any) -> Any:
            made.append(("upload_folder", options))
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    return made


def test_what_is_pushed(adapter: Path, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert push(adapter, "name", private=True) == "https://hub/commit/1"
    (create, made), (upload, sent) = calls
    assert (create, upload) == ("create_repo", "upload_folder")
    assert made == {"repo_id": "name", "private": True, "exist_ok": True}
    assert (sent["repo_id"], sent["folder_path"]) == ("me/name", adapter)
    files = [path.relative_to(adapter).as_posix() for path in sorted(adapter.rglob("*")) if path.is_file()]
    kept = huggingface_hub.utils.filter_repo_objects(files, allow_patterns=sent["allow_patterns"])
    assert list(kept) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "provenance.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("README.md", "no model card"),
        ("adapter_model.safetensors", "no adapter_model.safetensors in it: name the folder of an adapter"),
        ("adapter_config.json", "no adapter_config.json in it"),
    ],
)
def test_an_incomplete_folder_is_not_pushed(
    adapter: Path, calls: list[tuple[str, dict[str, Any]]], name: str, message: str
) -> None:
    (adapter / name).unlink()
    with pytest.raises(MuscleError, match=message):
        push(adapter, "me/name", private=False)
    assert calls == []


def test_a_card_without_metadata_is_none(adapter: Path, calls: list[tuple[str, dict[str, Any]]]) -> None:
    (adapter / "README.md").write_text("# Adapter\n")
    with pytest.raises(MuscleError, match="no model card"):
        push(adapter, "me/name", private=False)


def test_without_a_token(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(MuscleError, match="no token of the hub: log in with `hf auth login`, or set HF_TOKEN"):
        push(adapter, "me/name", private=False)


def refusal() -> HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=403)
    return HfHubHTTPError("403 Forbidden: no rights.\nmore", response=response)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (refusal(), r"me/name: the hub refuses \(403 Forbidden: no rights\): check the name and the token"),
        (HTTPError("no route"), r"me/name: the hub cannot be reached \(no route\): check the network"),
    ],
)
def test_what_the_hub_says(
    adapter: Path,
    calls: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    message: str,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise fault

    monkeypatch.setattr(hub.HfApi, "create_repo", fail)
    with pytest.raises(MuscleError, match=message):
        push(adapter, "me/name", private=False)


def test_a_name_that_the_hub_cannot_have(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before any request."""
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    with pytest.raises(MuscleError, match=r"a name with blanks: Repo id must use alphanumeric .*: name it owner/name"):
        push(adapter, "a name with blanks", private=False)
