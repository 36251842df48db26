"""Loading bases, adapters and tokenizers: what comes out and what is refused."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedModel

from muscle.errors import MuscleError
from muscle.update import models
from muscle.update.heads import head_is_known
from muscle.update.lora import add_adapter
from muscle.update.models import commit, load_base, load_task_model, load_tokenizer
from muscle.update.recipe import Base, LoraSettings, TaskModel
from muscle.update.tasks import Example
from muscle.update.tokenized import IGNORED, PaddingCollator, TokenizedExamples
from tests.update.architectures import ARCHITECTURES, build, build_tokenizer

IDS = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))


def saved(folder: Path, name: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    build(name, 40, seed).to(dtype).save_pretrained(folder)
    return folder


def adapter(folder: Path, base: PreTrainedModel, settings: LoraSettings | None = None) -> Path:
    """An adapter that says something."""
    model = add_adapter(base, settings or LoraSettings(rank=2, alpha=4), 0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def refused() -> Callable[[str, Callable[[], object]], None]:
    """Checks that a call raises a MuscleError of one line, with nothing of the libraries' tracebacks."""

    def check(message: str, call: Callable[[], object]) -> None:
        with pytest.raises(MuscleError, match=message) as raised:
            call()
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__ or raised.value.__context__ is None
        assert "\\n" not in str(raised.value)

    return check


Refused = Callable[[str, Callable[[], object]], None]


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What the model itself says."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


# Bases


def test_a_base_is_frozen_and_as_saved(tmp_path: Path) -> None:
    model = load_base(Base(base=str(saved(tmp_path))))
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert commit(model) is None
    torch.testing.assert_close(model(input_ids=IDS).logits, build("llama", 40, 0)(input_ids=IDS).logits.detach())


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("auto", "bfloat16"), ("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16")],
)
def test_dtype_of_the_base(dtype: str, wanted: str, tmp_path: Path) -> None:
    model = load_base(Base(base=str(saved(tmp_path, dtype=torch.bfloat16)), dtype=dtype))
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, wanted)}


def pickled(folder: Path) -> Path:
    torch.save(build("llama", 40, 0).state_dict(), saved(folder) / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_need_their_flag(tmp_path: Path, refused: Refused) -> None:
    base = str(pickled(tmp_path))
    refused("has only pickled weights, .* set `allow_pickle: true` if you trust", lambda: load_base(Base(base=base)))
    model = load_base(Base(base=base, allow_pickle=True))
    assert torch.equal(model(input_ids=IDS).logits, build("llama", 40, 0)(input_ids=IDS).logits)


def test_pickled_adapters_need_the_same_flag(tmp_path: Path, refused: Refused) -> None:
    base = str(saved(tmp_path / "base"))
    folder = adapter(tmp_path / "adapter", load_base(Base(base=base)))
    safe = load_task_model(TaskModel(base=Base(base=base), adapter=str(folder)))
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").rename(folder / "model.safetensors")
    refused("adapter has only pickled", lambda: load_task_model(TaskModel(base=Base(base=base), adapter=str(folder))))
    allowed = TaskModel(base=Base(base=base, allow_pickle=True), adapter=str(folder))
    assert torch.equal(load_task_model(allowed)(input_ids=IDS).logits, safe(input_ids=IDS).logits)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_checkpoint_needs_its_flag(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = saved(tmp_path / "own_base")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    (folder / "own.py").write_text(CODE)
    refused("it comes with code of its own: set `trust_remote_code: true`", lambda: load_base(Base(base=str(folder))))
    model = load_base(Base(base=str(folder), trust_remote_code=True))
    assert type(model).__name__ == "OwnForCausalLM"


def drop(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def without_head(folder: Path) -> None:
    model = build("llama", 40, 0)
    state = {name: weight for name, weight in model.state_dict().items() if "lm_head" not in name}
    model.save_pretrained(folder, state_dict=state)


def rename(model_type: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": model_type}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "cannot load base .*/base: no local folder is called so: correct the path"),
        (drop("config.json"), r"/base: it has no config\.json that names an architecture: give the folder of a trans"),
        (drop("model.safetensors"), r"/base: Error no file named model\.safetensors found in directory .*: mend it or"),
        (truncate, "/base: its weights are damaged: fetch or write them again"),
        (without_head, "base .* lacks 1 weights, lm_head.weight among them: choose the complete checkpoint"),
        (rename("t5"), "/base: it is no causal language model: choose one"),
        (rename("gpt9"), "/base: this transformers does not know its architecture: upgrade transformers"),
    ],
)
def test_damaged_bases(damage: Callable[[Path], object], message: str, tmp_path: Path, refused: Refused) -> None:
    folder = saved(tmp_path / "base")
    damage(folder)
    refused(message, lambda: load_base(Base(base=str(folder))))


NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantization_without_its_library(
    quantization: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    base = Base(base=str(saved(tmp_path)), quantization=quantization)
    refused(f"^{quantization} quantization of .* needs bitsandbytes: `pip install bitsandb", lambda: load_base(base))


def test_quantization_without_a_device_for_it(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, quantization_config: BitsAndBytesConfig, device_map: dict[str, str], **__: object) -> None:
        assert quantization_config.to_dict().items() >= NF4.items()
        assert device_map == {"": str(models.device())}
        raise RuntimeError("None of the available devices ... are supported by the bitsandbytes version you have")

    base = Base(base=str(saved(tmp_path)), quantization="4bit")
    monkeypatch.setattr(models, "find_spec", lambda _: object())
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", refuse)
    refused("bitsandbytes cannot run on this machine: use one with a GPU, or leave `quant", lambda: load_base(base))


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
@pytest.mark.parametrize(("quantization", "stored"), [("4bit", torch.uint8), ("8bit", torch.int8)])
def test_quantized_bases_train_and_teach(quantization: str, stored: torch.dtype, tmp_path: Path) -> None:
    config = ARCHITECTURES["llama"](40)
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 32})  # whole blocks of quantized weights
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base = Base(base=str(tmp_path / "base"), quantization=quantization, dtype="bfloat16")
    folder = adapter(tmp_path / "adapter", load_base(base))
    quantized = load_base(base).model.layers[0].self_attn.q_proj.weight
    assert quantized.dtype == stored
    if quantization == "4bit":
        assert quantized.quant_type == "nf4"
        assert quantized.quant_state.nested  # double quantization

    task_model = TaskModel(base=base, adapter=str(folder))
    student = load_task_model(task_model, trainable=True)
    student(input_ids=IDS.to(student.device)).logits.square().mean().backward()
    trained = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
    assert all(weight.dtype == torch.float32 and weight.grad is not None for weight in trained.values())
    assert student.get_output_embeddings().weight.dtype == torch.float32

    teacher = load_task_model(task_model)
    assert head_is_known(teacher)
    assert head_is_known(student.eval())
    logits = logits_of(teacher, IDS.to(teacher.device))
    whole = load_task_model(TaskModel(base=Base(base=base.base), adapter=str(folder)))(input_ids=IDS).logits
    assert (logits.cpu().float() - whole).square().mean() < 0.4 * whole.square().mean()  # 2 of unrelated models


# The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a hub that cannot be reached, with org/base at the revisions v1 and v2."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--base"
    (repository / "refs").mkdir(parents=True)
    for seed, revision in enumerate(("v1", "v2")):
        digest = str(seed) * 40
        folder = saved(repository / "snapshots" / digest, seed=seed)
        build_tokenizer(40, eos_token=f"w{seed + 3}").save_pretrained(folder)
        (repository / "refs" / revision).write_text(digest)
    return tmp_path


def test_revisions_of_a_hub_model(hub: Path) -> None:
    for seed in (0, 1):
        base = Base(base=f"org/base@v{seed + 1}")
        model = load_base(base)
        assert torch.equal(model(input_ids=IDS).logits, build("llama", 40, seed)(input_ids=IDS).logits)
        assert load_tokenizer(base).eos_token == f"w{seed + 3}"
        assert commit(model) == str(seed) * 40
        assert add_adapter(model, LoraSettings(rank=2), 0).peft_config["default"].revision == commit(model)


def test_revisions_of_a_hub_adapter(hub: Path) -> None:
    base, repository = Base(base="org/base@v1"), hub / "models--org--adapter"
    (repository / "refs").mkdir(parents=True)
    said = []
    for rank, revision in ((1, "v1"), (2, "v2")):
        folder = repository / "snapshots" / (str(rank) * 40)
        adapter(folder, build("llama", 40, seed=0), LoraSettings(rank=rank, alpha=4))
        (repository / "refs" / revision).write_text(str(rank) * 40)
        model = load_task_model(TaskModel(base=base, adapter=f"org/adapter@{revision}"))
        assert model.peft_config["default"].r == rank
        said.append(model(input_ids=IDS).logits)
    assert not torch.allclose(*said, atol=1e-3)


def test_a_hub_out_of_reach(hub: Path, refused: Refused) -> None:
    away = "it is not on this machine and the hub cannot be reached: connect, or give a folder"
    refused(f"cannot load base org/other: {away}", lambda: load_base(Base(base="org/other")))
    refused(f"cannot load base org/base@v3: {away}", lambda: load_base(Base(base="org/base@v3")))
    refused(f"cannot load the tokenizer of org/other: {away}", lambda: load_tokenizer(Base(base="org/other")))
    task_model = TaskModel(base=Base(base="org/base@v1"), adapter="org/adapter")
    refused(f"cannot load adapter org/adapter: {away}", lambda: load_task_model(task_model))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, "its page on the hub asks to accept terms first: do so, then `hf auth login`"),
        (RevisionNotFoundError, "the hub has no such revision of it: correct what comes after @"),
        (
            RepositoryNotFoundError,
            "no local folder and nothing on the hub is called so: correct it, or `hf auth login`",
        ),
    ],
)
def test_what_the_hub_answers(
    kind: type[Exception], message: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: object, **__: object) -> None:
        try:
            raise kind.__new__(kind)
        except kind as error:  # as transformers wraps them
            raise OSError("two\nlines") from error

    monkeypatch.setattr(models, "cached_file", answer)
    refused(f"^cannot load base org/base@v9: {message}", lambda: load_base(Base(base="org/base@v9")))


def test_an_at_sign_in_a_folder_is_no_revision(tmp_path: Path, refused: Refused) -> None:
    folder = saved(tmp_path / "base@home")
    assert not load_base(Base(base=str(folder))).training
    refused("no local folder is called so: correct the path", lambda: load_base(Base(base=f"{tmp_path}/none@home")))


# Task models


def test_task_models_with_and_without_adapter(tmp_path: Path) -> None:
    base = Base(base=str(saved(tmp_path / "base")))
    folder = adapter(tmp_path / "adapter", load_base(base))
    whole = load_task_model(TaskModel(base=base))
    adapted = load_task_model(TaskModel(base=base, adapter=str(folder)))
    training = load_task_model(TaskModel(base=base, adapter=str(folder)), trainable=True)
    plain = build("llama", 40, 0)(input_ids=IDS).logits
    assert torch.equal(whole(input_ids=IDS).logits, plain)
    assert not torch.allclose(adapted(input_ids=IDS).logits, plain, atol=1e-2)
    assert torch.equal(training(input_ids=IDS).logits, adapted(input_ids=IDS).logits)
    assert [model.training for model in (whole, adapted, training)] == [False, False, True]
    trainable = [{name for name, w in model.named_parameters() if w.requires_grad} for model in (whole, adapted)]
    assert trainable == [set(), set()]
    assert {name for name, w in training.named_parameters() if w.requires_grad} == {
        name for name, _ in training.named_parameters() if "lora_" in name
    }


def test_adapters_train_in_float32_on_a_base_in_16_bits(tmp_path: Path) -> None:
    base = Base(base=str(saved(tmp_path / "base", dtype=torch.bfloat16)))
    folder = adapter(tmp_path / "adapter", load_base(base))
    model = load_task_model(TaskModel(base=base, adapter=str(folder)), trainable=True)
    assert {w.dtype for w in model.parameters() if w.requires_grad} == {torch.float32}
    assert {w.dtype for w in model.parameters() if not w.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_adapters_of_experts_load_without_a_warning(name: str, tmp_path: Path) -> None:
    base = Base(base=str(saved(tmp_path / "base", name)))
    folder = adapter(tmp_path / "adapter", load_base(base))
    model = load_task_model(TaskModel(base=base, adapter=str(folder)))
    assert not torch.allclose(model(input_ids=IDS).logits, load_base(base)(input_ids=IDS).logits, atol=1e-2)


def test_adapters_that_do_not_fit(tmp_path: Path, refused: Refused) -> None:
    base = str(saved(tmp_path / "base"))
    folder = adapter(tmp_path / "adapter", load_base(Base(base=base)))

    def load(base: str, adapter: Path) -> Callable[[], object]:
        return lambda: load_task_model(TaskModel(base=Base(base=base), adapter=str(adapter)))

    fit = "cannot load adapter .*adapter: it does not fit the base: give the base that it was trained on"
    refused(fit, load(str(saved(tmp_path / "other", "gpt_neox")), folder))
    refused(fit, load(str(saved(tmp_path / "narrower", "mistral")), folder))
    refused("no local folder is called so: correct the path", load(base, tmp_path / "nowhere"))
    refused(r"it has no adapter_config\.json: give the folder or hub id of a PEFT adapter", load(base, Path(base)))

    wider = adapter(tmp_path / "wider", load_base(Base(base=base)), LoraSettings(rank=2, targets=("q_proj",)))
    shutil.copy(folder / "adapter_config.json", wider)
    refused("it lacks weights that its configuration names: save or fetch it again", load(base, wider))

    prompt = tmp_path / "prompt"
    get_peft_model(
        load_base(Base(base=base)), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ).save_pretrained(prompt)
    refused("adapter .*prompt is a learnt prompt, which shifts tokens: choose a LoRA", load(base, prompt))


def test_added_tokens_and_padded_vocabularies(tmp_path: Path) -> None:
    """A head of more rows than the tokenizer has tokens, as after resizing, keeps all its rows."""
    model = build("llama_tied", 40, 0)
    model.resize_token_embeddings(48)
    model.save_pretrained(tmp_path / "base")
    build_tokenizer(43, eos_token="<eos>").save_pretrained(tmp_path / "base")
    base = Base(base=str(tmp_path / "base"))
    folder = adapter(tmp_path / "adapter", load_base(base))
    added = load_tokenizer(base)("w42", return_tensors="pt")["input_ids"]
    logits = logits_of(load_task_model(TaskModel(base=base, adapter=str(folder))), added)
    assert logits.shape == (1, 1, 48)
    assert "embed" not in " ".join(
        load_file(folder / "adapter_model.safetensors")
    )  # PEFT saves embeddings that it takes for resized


# Tokenizers


@pytest.mark.parametrize(("special", "pad"), [({}, 1), ({"pad_token": "<pad>"}, 0), ({"pad_token": "w5"}, 5)])
def test_end_of_text_pads_where_nothing_else_does(special: dict[str, str], pad: int, tmp_path: Path) -> None:
    build_tokenizer(40, eos_token="<eos>", **special).save_pretrained(saved(tmp_path))
    assert load_tokenizer(Base(base=str(tmp_path))).pad_token_id == pad


def test_tokenizers_that_cannot_be_used(tmp_path: Path, refused: Refused) -> None:
    base = Base(base=str(saved(tmp_path)))
    refused("cannot load the tokenizer of ", lambda: load_tokenizer(base))
    build_tokenizer(40).save_pretrained(tmp_path)
    refused("the tokenizer of .* has no end-of-text token: name one as eos_token in", lambda: load_tokenizer(base))


def test_a_real_end_of_text_is_no_padding(tmp_path: Path) -> None:
    build_tokenizer(40, eos_token="<eos>").save_pretrained(saved(tmp_path))
    tokenizer = load_tokenizer(Base(base=str(tmp_path)))
    rows = TokenizedExamples([Example("w3", " w4"), Example("w3 w4 w5", " w6")], tokenizer)
    batch = PaddingCollator(int(tokenizer.pad_token_id))([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[3, 4, 1, 1, 1], [3, 4, 5, 6, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 4, 1, IGNORED, IGNORED], [IGNORED, 4, 5, 6, 1]]
