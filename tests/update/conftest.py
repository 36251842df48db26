"""Tiny models and a tiny world, built on the fly."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from muscle.demo import stages
from muscle.demo.bases import build_tokenizer
from muscle.update.lora import add_adapter
from muscle.update.models import load_base
from muscle.update.recipe import Base, LoraSettings

torch.set_num_threads(1)  # tiny tensors, and tests run side by side

ITEMS = {"train": 24, "validation": 12, "test": 20, "unlabelled": 10}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `tasks` (both lm-eval tasks with data), `v1` and `v2` (bases), `old` and `new` (random adapters)."""
    root = tmp_path_factory.mktemp("world")
    (root / "tasks").mkdir()
    stages.write_tasks(root / "tasks", lambda *_: None, seed=0, items={"scenes": ITEMS, "sums": ITEMS})
    tokenizer = build_tokenizer()
    for seed, (base, adapter) in enumerate((("v1", "old"), ("v2", "new"))):
        torch.manual_seed(seed)
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
        )
        LlamaForCausalLM(config).save_pretrained(root / base)
        tokenizer.save_pretrained(root / base)
        model = add_adapter(load_base(Base(base=str(root / base))), LoraSettings(rank=4, alpha=8), seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # a fresh adapter is the identity; this one says something
                torch.nn.init.normal_(weight, std=0.1)
        model.save_pretrained(root / adapter)
    return root
