"""Tiny random encoder–decoder models, made in memory: real architectures, no download, milliseconds to run."""

from pathlib import Path
from typing import Any

import torch

from plaudit_trainer.models import POLICY, REFERENCE
from plaudit_trainer.seq2seq import Seq2SeqBackbone

VOCABULARY = 64
PAD, END = 0, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!:'\n-"


def tiny_t5(*, flan: bool = False, encoder: int = 2, decoder: int = 3, seed: int = 0) -> Any:
    """A random T5: tied and scaled as the first ones, or with an own output matrix and gated layers as Flan's."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=encoder,
        num_decoder_layers=decoder,
        num_heads=4,
        feed_forward_proj="gated-gelu" if flan else "relu",
        tie_word_embeddings=not flan,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        initializer_factor=1.0,
    )
    model = T5ForConditionalGeneration(config).eval()
    if flan:
        own = torch.randn(VOCABULARY, 32) * 0.3
        model.lm_head.weight = torch.nn.Parameter(own)
        model.config.tie_word_embeddings = False
    else:
        with torch.no_grad():  # wide enough that log-probabilities differ visibly
            model.shared.weight.mul_(2)
    return model


def tiny_bart() -> Any:
    """A random BART: positions are learned and counted from the first place."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=128,
        pad_token_id=PAD,
        bos_token_id=3,
        eos_token_id=END,
        decoder_start_token_id=END,
        forced_eos_token_id=None,
        init_std=0.3,
    )
    return BartForConditionalGeneration(config).eval()


def seq2seq_backbone(
    model: Any | None = None, cut: int = 3, rank: int = 4, token_budget: int = 4096
) -> Seq2SeqBackbone:
    """A backbone with POLICY and REFERENCE adapters that change nothing yet."""
    backbone = Seq2SeqBackbone(model if model is not None else tiny_t5(), cut, token_budget)
    for name in (POLICY, REFERENCE):
        backbone.add_adapter(name, rank)
    return backbone


def save_tiny_t5(folder: Path, model: Any | None = None) -> Path:
    """A Hugging Face folder of a tiny T5, with a tokenizer of single characters that ends what it reads, as theirs."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": PAD, "</s>": END, "<unk>": 1}
    vocabulary = special | {c: i + 3 for i, c in enumerate(LETTERS[: VOCABULARY - 3])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids"],
    )
    (model if model is not None else tiny_t5()).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
