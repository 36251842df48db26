"""Tiny models of the architectures that users update today: two layers, random weights that say something."""

from collections.abc import Callable

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**SHAPE, "num_key_value_heads": 1}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
COMMON = {
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # with the usual 0.02, all logits of so small a model are alike
}


def _config(name: str, **settings: object) -> Callable[[int], PretrainedConfig]:
    make: type[PretrainedConfig] = getattr(transformers, f"{name}Config")
    return lambda vocab_size: make(**{**COMMON, **settings, "vocab_size": vocab_size})


ARCHITECTURES: dict[str, Callable[[int], PretrainedConfig]] = {
    "llama": _config("Llama", **SHAPE),
    "llama_tied": _config("Llama", **SHAPE, tie_word_embeddings=True),
    "mistral": _config("Mistral", **GROUPED, sliding_window=8),
    "qwen2": _config("Qwen2", **GROUPED, tie_word_embeddings=True),
    "qwen3": _config("Qwen3", **GROUPED, head_dim=8),
    "phi": _config("Phi", **SHAPE),
    "phi3": _config("Phi3", **GROUPED),
    "gemma2": _config("Gemma2", **GEMMA, final_logit_softcapping=2.0),
    "gemma3": _config("Gemma3Text", **GEMMA, final_logit_softcapping=2.0),
    "gpt_neox": _config("GPTNeoX", **SHAPE),
    "olmo2": _config("Olmo2", **GROUPED),
    "smollm3": _config("SmolLM3", **GROUPED, no_rope_layer_interval=2),
    "cohere": _config("Cohere", **GROUPED, logit_scale=0.25),
    "granite": _config("Granite", **GROUPED, logits_scaling=4.0),
    "qwen3_moe": _config(
        "Qwen3Moe", **GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
    ),
    "mixtral": _config("Mixtral", **GROUPED, num_local_experts=4, num_experts_per_tok=2),
}
"""By name: the configuration, given the size of the vocabulary."""


def build(name: str, vocab_size: int, seed: int) -> PreTrainedModel:
    """A freshly initialised causal language model, in evaluation mode."""
    torch.manual_seed(seed)
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[name](vocab_size))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # biases start as zeros, norms as ones: what ignores them must not pass for right
                weight += 0.2 * torch.randn_like(weight)
    return model.eval()


def build_tokenizer(words: int, **special: str) -> PreTrainedTokenizerFast:
    """One token per word: <pad>, <eos>, <unk>, w3, w4, ...; `special` names their uses (eos_token="<eos>", ...)."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(3, words))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)
