"""lm-eval's back ends by name: what each is told, what each cannot do, and a real server that answers like hf."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import model_registry
from lm_eval.models.api_models import TemplateAPI
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from muscle.errors import MuscleError
from muscle.update.lora import add_adapter
from muscle.update.models import load_base, load_task_model, load_tokenizer
from muscle.update.recipe import Base, EvaluationSettings, LoraSettings, TaskModel
from muscle.update.scoring import evaluate, flips_on_validation, task_model_lm

from .test_scoring import model, rows, task


class Recorder(LM):
    """Stands for a back end that cannot run here."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vllm", "sglang", "textsynth"):
        monkeypatch.setitem(model_registry._objs, name, Recorder)


def arguments(backend: str, of: TaskModel, **settings: Any) -> dict[str, Any]:
    lm = task_model_lm(of, EvaluationSettings(backend=backend, **settings))
    assert isinstance(lm, Recorder)
    return lm.arguments


@pytest.mark.usefixtures("recorded")
def test_vllm_gets_the_base_and_its_adapter(world: Path) -> None:
    told = arguments("vllm", model(world, "old"), seed=3, backend_args={"gpu_memory_utilization": 0.5})
    assert told == {
        "pretrained": str(world / "v1"),
        "revision": None,
        "tokenizer_revision": None,
        "dtype": "auto",
        "trust_remote_code": False,
        "batch_size": "auto",
        "load_format": "safetensors",
        "seed": 3,
        "lora_local_path": str(world / "old"),
        "max_lora_rank": 8,  # the smallest that vLLM allows for rank 4
        "gpu_memory_utilization": 0.5,
    }


@pytest.mark.usefixtures("recorded")
def test_engines_get_revision_dtype_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muscle.update.backends._adds_bos", lambda base: True)
    base = Base(base="org/name@step1000", dtype="bfloat16", trust_remote_code=True, allow_pickle=True)
    for backend in ("vllm", "sglang"):
        told = arguments(backend, TaskModel(base=base))
        expected = {
            "pretrained": "org/name",
            "revision": "step1000",
            "dtype": "bfloat16",
            "trust_remote_code": True,
            "load_format": "auto",
        }
        assert {key: told[key] for key in expected} == expected
        assert "lora_local_path" not in told
    assert arguments("textsynth", TaskModel(base=base)) == {"pretrained": "org/name@step1000"}


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("adds", [False, True])
def test_texts_begin_in_evaluation_as_they_do_in_training(world: Path, tmp_path: Path, adds: bool) -> None:
    """lm-eval leaves the begin-of-text token out for these back ends, unless it is told."""
    base = shutil.copytree(world / "v1", tmp_path / "base")
    if adds:
        tokenizer = load_tokenizer(Base(base=str(base)))
        tokenizer.add_special_tokens({"bos_token": "<eos>"})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)]
        )
        tokenizer.save_pretrained(base)
    told = arguments("sglang", TaskModel(base=Base(base=str(base))))
    assert told["add_bos_token"] is adds


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(("rank", "allowed"), [(8, 8), (9, 16), (128, 128), (129, 256)])
def test_vllm_is_told_how_large_the_adapter_is(world: Path, tmp_path: Path, rank: int, allowed: int) -> None:
    assert arguments("vllm", with_config(world, tmp_path, r=rank))["max_lora_rank"] == allowed


@pytest.mark.usefixtures("recorded")
def test_vllm_counts_the_largest_rank_of_any_module(world: Path, tmp_path: Path) -> None:
    mixed = with_config(world, tmp_path, r=4, rank_pattern={"q_proj": 20})
    assert arguments("vllm", mixed)["max_lora_rank"] == 32


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(("config", "fault"), [({"use_dora": True}, "DoRA"), ({"r": 513}, "rank 513")])
def test_what_vllm_cannot_run_is_to_be_merged(world: Path, tmp_path: Path, config: dict[str, Any], fault: str) -> None:
    with pytest.raises(MuscleError, match=f"{fault}.*muscle merge"):
        arguments("vllm", with_config(world, tmp_path, **config))


def with_config(world: Path, folder: Path, **changes: Any) -> TaskModel:
    config = json.loads((world / "old" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return TaskModel(base=Base(base=str(world / "v1")), adapter=str(folder))


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("backend", ["sglang", "local-completions", "local-chat-completions", "textsynth"])
def test_other_back_ends_refuse_adapters(world: Path, backend: str) -> None:
    with pytest.raises(MuscleError, match=f"'{backend}' of lm-eval takes no adapter.*`muscle merge`"):
        task_model_lm(model(world, "old"), EvaluationSettings(backend=backend))


def test_quantization_is_for_hf(world: Path) -> None:
    base = Base(base=str(world / "v1"), quantization="4bit")
    with pytest.raises(MuscleError, match="quantization of a base is for back end hf"):
        task_model_lm(TaskModel(base=base), EvaluationSettings(backend="local-completions"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "vlm"}, r"no back end 'vlm': did you mean vllm\?"),
        ({"backend": "nothing like it"}, "choose among .*local-completions"),
        ({"backend": "local-completions"}, "give its address as backend_args.base_url"),
        ({"backend_args": {"softmax_dtpe": "float64"}}, r"backend_args.softmax_dtpe.*did you mean softmax_dtype\?"),
        ({"backend_args": {"parallelize": True}}, "backend_args.parallelize is no argument of back end hf: there are"),
    ],
)
def test_unknown_names_and_missing_arguments(world: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MuscleError, match=message):
        task_model_lm(TaskModel(base=Base(base=str(world / "v1"))), EvaluationSettings(**settings))


def test_arguments_that_a_back_end_does_not_take(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Particular(Recorder):
        def __init__(self, pretrained: str) -> None:
            super().__init__(pretrained=pretrained)

    monkeypatch.setitem(model_registry._objs, "textsynth", Particular)
    with pytest.raises(MuscleError, match=r"'textsynth' cannot be made .*'engine'.*: correct backend_args"):
        arguments("textsynth", TaskModel(base=Base(base=str(world / "v1"))), backend_args={"engine": "x"})


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_library_says_how_to_install_it(world: Path) -> None:
    with pytest.raises(MuscleError, match=r"'vllm'.*No module named 'vllm'.*pip install 'lm-eval\[vllm\]'"):
        task_model_lm(model(world, "old"), EvaluationSettings(backend="vllm"))


def test_arguments_of_hf_reach_it(world: Path) -> None:
    lm = task_model_lm(model(world, "old"), EvaluationSettings(batch_size=7, backend_args={"max_length": 50}))
    assert (lm.batch_size, lm.max_length, lm.softmax_dtype) == (7, 50, torch.float32)


def served(folder: Path, url: str, **settings: Any) -> tuple[LM, EvaluationSettings]:
    """The checkpoint in `folder` through an OpenAI-compatible server."""
    found = EvaluationSettings(
        **{"backend": "local-completions", **settings},
        backend_args={
            "base_url": url,
            "tokenizer_backend": "huggingface",
            "tokenized_requests": False,
            "max_retries": 1,
        },
    )
    return task_model_lm(TaskModel(base=Base(base=str(folder))), found), found


def test_a_chat_back_end_needs_a_chat_template(world: Path, tmp_path: Path) -> None:
    lm, settings = served(world / "v1", "http://127.0.0.1:9", backend="local-chat-completions")
    with pytest.raises(MuscleError, match="takes chats: set chat_template for task 'sums'"):
        evaluate(lm, "old", task(world, "sums"), "test", tmp_path, settings)


def test_a_server_that_does_not_answer(world: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1/completions"
    lm, settings = served(world / "v1", url)
    for name in ("sums", "scenes"):
        with pytest.raises(MuscleError, match=f"{url} failed .*: start it, or correct backend_args"):
            evaluate(lm, "old", task(world, name), "test", tmp_path, settings)


def test_log_probabilities_of_the_answer_alone_are_noticed(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server that ignores `echo`: lm-eval makes log-probability 0 for every choice of it."""
    generated = {"token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}]}
    monkeypatch.setattr(
        TemplateAPI,
        "model_call",
        lambda self, messages, **_: {"choices": [{"index": i, "logprobs": generated} for i in range(len(messages))]},
    )
    lm, settings = served(world / "v1", "http://127.0.0.1:9")
    with pytest.raises(MuscleError, match=r"'scenes' needs log-probabilities.*\(every log-probability is 0\)"):
        evaluate(lm, "old", task(world, "scenes"), "test", tmp_path, settings)


@pytest.mark.parametrize(("status", "message"), [(422, "'scenes' needs log-probabilities.*422"), (404, "failed .*404")])
def test_a_server_that_refuses(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, message: str
) -> None:
    """Not to know `echo` is one thing, not to know the model another."""
    refusal = requests.Response()
    refusal.status_code, refusal.url = status, "http://127.0.0.1:9"
    monkeypatch.setattr(TemplateAPI, "model_call", lambda *_, **__: refusal.raise_for_status())
    lm, settings = served(world / "v1", refusal.url)
    with pytest.raises(MuscleError, match=message):
        evaluate(lm, "old", task(world, "scenes"), "test", tmp_path, settings)


def test_a_back_end_without_log_probabilities(world: Path, tmp_path: Path) -> None:
    settings = EvaluationSettings(backend="textsynth")
    with pytest.raises(MuscleError, match=r"'scenes' needs log-probabilities .*'textsynth'.*\(NotImplementedError\)"):
        evaluate(Recorder(), "old", task(world, "scenes"), "test", tmp_path, settings)


def test_each_draw_asks_the_server_with_another_seed(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def answer(self: Any, messages: list[str], *, gen_kwargs: dict[str, Any], **_: Any) -> dict[str, Any]:
        payload = self._create_payload(messages, generate=True, gen_kwargs=gen_kwargs, seed=self._seed)
        asked.append(payload)
        return {"choices": [{"index": 0, "text": str(payload["seed"])}]}

    monkeypatch.setattr(TemplateAPI, "model_call", answer)
    lm, settings = served(world / "v1", "http://127.0.0.1:9", draws=3, limit=2, temperature=0.5)
    evaluate(lm, "old", task(world, "sums"), "test", tmp_path, settings)
    assert {payload["temperature"] for payload in asked} == {0.5}
    assert len({payload["seed"] for payload in asked}) == 3
    assert [row["doc_id"] for row in rows(tmp_path)] == [0, 1, 0, 1, 0, 1]


SCRIPT = """
import sys
from accelerate import PartialState
from pathlib import Path
from muscle.update.distributed import leave
from muscle.update.models import load_task_model, load_tokenizer
from muscle.update.scoring import evaluate, flips_on_validation, task_model_lm
from muscle.update.recipe import EvaluationSettings
from tests.update.test_scoring import model, task

world, out = map(Path, sys.argv[1:])
settings = EvaluationSettings()
for name in ("scenes", "sums"):
    evaluate(task_model_lm(model(world, "old"), settings), "old", task(world, name), "test", out / name, settings)
    assert any((out / name).rglob("samples_*.jsonl"))  # in every process, once the call has returned
flips = flips_on_validation(
    model(world, "old"), task(world, "scenes"), load_tokenizer(model(world, "new").base), settings
)
counted = flips(load_task_model(model(world, "new")))
(out / f"flips_{PartialState().process_index}_of_{PartialState().num_processes}").write_text(str(counted))
leave()
"""


@pytest.mark.slow
def test_two_processes_write_the_log_of_one(world: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "two").mkdir()
    # Not `accelerate launch`, which starts several CPU processes only through MPI.
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    subprocess.run(
        [sys.executable, *launch, str(tmp_path / "script.py"), str(world), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        timeout=120,
    )
    lm, settings = task_model_lm(model(world, "old"), EvaluationSettings()), EvaluationSettings()
    for name in ("scenes", "sums"):
        evaluate(lm, "old", task(world, name), "test", tmp_path / "one" / name, settings)
    for name in ("scenes", "sums"):
        one, two = rows(tmp_path / "one" / name), rows(tmp_path / "two" / name)
        assert [row["doc_id"] for row in two] == [*range(20)]
        for mine, other in zip(one, two, strict=True):
            if name == "sums":
                assert mine["resps"] == other["resps"]
                continue
            for (a, _), (b, _) in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
                assert float(a) == pytest.approx(float(b), abs=1e-4)
    tokenizer = load_tokenizer(model(world, "new").base)
    flips = flips_on_validation(model(world, "old"), task(world, "scenes"), tokenizer, settings)
    counted = str(flips(load_task_model(model(world, "new"))))
    assert {file.name: file.read_text() for file in (tmp_path / "two").glob("flips_*")} == {
        "flips_0_of_2": counted,
        "flips_1_of_2": counted,
    }


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `adapter`, and both as one checkpoint: `merged`. One token per byte, and a chat template."""
    root = tmp_path_factory.mktemp("merged")
    alphabet = sorted(ByteLevel.alphabet())
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", *alphabet])}
    bytewise = Tokenizer(BPE(words, []))
    bytewise.pre_tokenizer, bytewise.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant]"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(root / "base")
    adapted = add_adapter(load_base(Base(base=str(root / "base"))), LoraSettings(rank=4, alpha=8), 0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(root / "adapter")
    for folder in ("base", "merged"):
        tokenizer.save_pretrained(root / folder)
    whole = load_task_model(TaskModel(base=Base(base=str(root / "base")), adapter=str(root / "adapter")))
    whole.merge_and_unload().save_pretrained(root / "merged")
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a `transformers serve`, which loads the checkpoint that a request names."""
    for library in ("fastapi", "uvicorn", "openai", "tenacity"):
        pytest.importorskip(library, reason=f"{library} is not installed: transformers serve cannot run")
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host=127.0.0.1", f"--port={port}"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--device=cpu"], stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=1).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_a_real_server_answers_like_hf(world: Path, merged: Path, server: str, tmp_path: Path, chat: bool) -> None:
    adapted = TaskModel(base=Base(base=str(merged / "base")), adapter=str(merged / "adapter"))
    sums = task(world, "sums", chat_template=chat)
    evaluate(task_model_lm(adapted, EvaluationSettings()), "hf", sums, "test", tmp_path / "hf", EvaluationSettings())
    route, backend = ("chat/completions", "local-chat-completions") if chat else ("completions", "local-completions")
    lm, settings = served(merged / "merged", f"{server}/{route}", backend=backend)
    evaluate(lm, "served", sums, "test", tmp_path / "served", settings)
    answers = {name: [row["filtered_resps"] for row in rows(tmp_path / name)] for name in ("hf", "served")}
    assert len(answers["served"]) == 20
    assert answers["served"] == answers["hf"]
    assert len({answer for (answer,) in answers["hf"]}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_a_real_server_without_log_probabilities(
    world: Path, merged: Path, server: str, tmp_path: Path, chat: bool
) -> None:
    route, backend = ("chat/completions", "local-chat-completions") if chat else ("completions", "local-completions")
    lm, settings = served(merged / "merged", f"{server}/{route}", backend=backend)
    with pytest.raises(MuscleError, match="'scenes' needs log-probabilities of the prompt"):
        evaluate(lm, "served", task(world, "scenes", chat_template=chat), "test", tmp_path, settings)
    assert not any(tmp_path.iterdir())
