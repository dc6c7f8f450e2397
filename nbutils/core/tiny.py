"""`tiny`, the embedded base model: a small Llama made from nothing, and a tokenizer trained on the run's own texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nbutils.core.chatml import add_chatml

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

PIECES = 4093
VOCABULARY = PIECES + 3
"""Entries of the vocabulary, with the three control tokens of ChatML."""


def train_bpe(texts: Iterable[str], pieces: int = PIECES) -> PreTrainedTokenizerBase:
    """A byte-level BPE of up to `pieces` pieces (256 of them the bytes), with ChatML's control tokens on top."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return add_chatml(PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False))


def tiny_config(vocabulary: int, context: int, pad: int, eos: int) -> LlamaConfig:
    """The embedded model's architecture: a Llama of 4 layers and hidden size 128."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=eos,
        initializer_range=0.04,
    )


def tiny_model(tokenizer: PreTrainedTokenizerBase, context: int, seed: int) -> PreTrainedModel:
    """An untrained `tiny` model around a tokenizer; the same weights for the same seed."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(tiny_config(len(tokenizer), context, tokenizer.pad_token_id, tokenizer.eos_token_id))
