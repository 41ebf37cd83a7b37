"""Tiny random models, made in memory: real architectures, no download, milliseconds to run."""

from pathlib import Path
from typing import Any

import torch

from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import POLICY, REFERENCE, Backbone

VOCABULARY = 64
END = 2


def tiny_llama(layers: int = 4, seed: int = 0, vocabulary: int = VOCABULARY) -> Any:
    """A random Llama, by default with 64 tokens; weights are wide enough that log-probabilities differ visibly."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=END,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(layers: int = 3, seed: int = 0) -> Any:
    """A random GPT-2: learned positions and transposed weights, so its body cannot be cut in two."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=256,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        bos_token_id=1,
        eos_token_id=END,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).eval()


def tiny_backbone(model: Any | None = None, cut: int = 2, rank: int = 4, token_budget: int = 4096) -> Backbone:
    """A backbone with POLICY and REFERENCE adapters that change nothing yet."""
    backbone = Backbone(model if model is not None else tiny_llama(), cut, token_budget)
    for name in (POLICY, REFERENCE):
        backbone.add_adapter(name, rank)
    return backbone


def stir(backbone: Backbone, name: str, size: float = 0.1, seed: int = 1) -> None:
    """Give an adapter random weights, so that it changes something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in backbone.adapter(name).values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)


def tiny_config(**changes: Any) -> TrainerConfig:
    """Settings for tiny models: float32, few steps."""
    settings: dict[str, Any] = {"precision": "float32", "device": "cpu", "threads": 1, "max_new_tokens": 12}
    settings |= {"gate_answers": 16, "rollout_prompts": 8, "minibatch": 8, "lora_rank": 4, "probe_min_tokens": 64}
    return TrainerConfig(**(settings | changes))


def save_tiny_base(folder: Path, model: Any | None = None) -> Path:
    """A Hugging Face folder of a tiny Llama, with a tokenizer of single characters and a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!:'\n-"
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": END} | {c: i + 3 for i, c in enumerate(letters[: VOCABULARY - 3])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    (model if model is not None else tiny_llama()).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
