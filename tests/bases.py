"""Random base models of a few thousand parameters: kinds of tokenizers, special tokens, templates, configurations."""

import random
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from nbutils.core.files import read_json, write_json
from tests.core.test_chatml import raw_unigram, turns

SPECIAL = ["<unk>", "<s>", "</s>"]
TALK = [
    ["What is %d plus two?", "That makes %d (I think).", "Are you sure?", "Yes, I am. Ask me more!"],
    ["Hello there, number %d", "Hello! <sep> How are\nyou today?"],
    ["Tell me a story of %d words.", "Once upon a time there was a cat; it said 'miau' %d times."],
]


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Made-up talk in plain ASCII."""
    return [turns(*(text.replace("%d", str(i)) for text in TALK[i % len(TALK)])) for i in range(count)]


TEXTS = [m["content"] for c in conversations(60) for m in c] + ["user\nassistant\nsystem\n"] * 20
ASCII = ["\n", *map(chr, range(32, 127))]


def byte_level(special):
    """As GPT-2's: BPE over bytes."""
    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(TEXTS, vocab_size=330, show_progress=False, special_tokens=special)
    return raw


def sentencepiece(special):
    """BPE over "▁" with bytes for what it does not know, as Llama's and Mistral's."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(parts)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, special_tokens=[*special, *fallback])
    raw.train_from_iterator(TEXTS, trainer)
    return raw


unigram = partial(raw_unigram, single=["▁", "\n", *ASCII[2:]], pieces=["▁you", "▁What", "▁Hello", "▁I", "▁am", "▁a"])


def word_piece(special):
    """As BERT's: white space is gone."""
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = [*special, *ASCII[2:], *(f"##{letter}" for letter in ASCII[2:]), *words]
    numbered = {piece: i for i, piece in enumerate(dict.fromkeys(vocabulary))}
    raw = Tokenizer(models.WordPiece(numbered, unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return raw


def characters(special):
    """One piece for each character of ASCII, and nothing else."""
    numbered = {piece: i for i, piece in enumerate([*special, *ASCII])}
    raw = Tokenizer(models.WordLevel(numbered, unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return raw


TOKENIZERS = {
    "byte_level": byte_level, "sentencepiece": sentencepiece, "unigram": unigram, "word_piece": word_piece,
    "characters": characters, "no_fallback": partial(unigram, bytes_too=False),
}  # fmt: skip
NORMALIZERS = {
    "none": None, "nfc": normalizers.NFC(), "nfkc": normalizers.NFKC(), "lower": normalizers.Lowercase(),
    "strip": normalizers.Strip(), "nmt": normalizers.Nmt(),
}  # fmt: skip
TEMPLATES = {
    "none": None,
    "inst": "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}",
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "broken": "{% for m in messages %}",
}
SPECIALS = {name: {} for name in ("eos", "has_chatml", "has_im_end", "many", "strips")} | {
    "bos": {"bos_token": "<s>"}, "adds_bos": {"bos_token": "<s>"},
    "pads_with_eos": {"pad_token": "</s>"}, "pads_with_unk": {"pad_token": "<unk>"},
}  # fmt: skip
UNLIMITED = ("bloom", "mpt", "recurrent_gemma")
"""Architectures whose positions have no limit."""
REFUSED = {"odd_heads": "3 num_key_value_heads"} | dict.fromkeys(
    ("codegen", "cohere", "gemma2", "granite", "llama4_text", "phi", "recurrent_gemma"),
    "more than hidden states times the output embedding",
)
"""What is refused before training, and what the sentence names."""
ARCHITECTURES = {
    **{name: {} for name in (
        "llama", "bloom", "cohere", "gpt2", "gpt_bigcode", "gpt_neox", "mistral", "mpt", "olmo", "openai-gpt", "opt",
        "phi", "qwen2", "recurrent_gemma", "stablelm", "starcoder2",
    )},
    **{name: {"head_dim": 16} for name in ("gemma", "gemma2", "llama4_text", "qwen3")},
    "granite": {"logits_scaling": 2.0}, "lfm2": {"layer_types": ["conv", "full_attention"]},
    "codegen": {"rotary_dim": 8}, "falcon": {"alibi": False}, "gpt_neo": {"attention_types": [[["global"], 2]]},
}  # fmt: skip
HARMS = {"pads_beyond": {"pad_token_id": 5000}, "odd_heads": {"num_key_value_heads": 3},
         "two_matrices": {"tie_word_embeddings": True}}  # fmt: skip
"""What config.json says in place of what the model was made with."""
FIELDS = {
    **{name: {} for name in ("plain", "half", "padded_rows", "too_few_rows", *HARMS)},
    "tied": {"tie_word_embeddings": True},
    **{name: {"tie_word_embeddings": False} for name in ("untied", "two_matrices")},
    "short": {"max_position_embeddings": 96}, "grouped": {"num_key_value_heads": 1},
    "dropout": {"attention_dropout": 0.1},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}},
}  # fmt: skip


def choices(seed: int) -> dict[str, str]:
    """What the base of this seed is: one of each."""
    draw = random.Random(seed)
    tables = {"tokenizer": TOKENIZERS, "normalizer": NORMALIZERS, "special": SPECIALS, "template": TEMPLATES,
              "model": ARCHITECTURES, "field": FIELDS}  # fmt: skip
    return {
        name: draw.choice(sorted(table)) if draw.random() < 0.7 else next(iter(table)) for name, table in tables.items()
    }


def make_base(folder: Path, chosen: dict[str, str]) -> Path:
    """Writes the base: config.json, weights and tokenizer."""
    special = SPECIAL + {"has_chatml": ["<|im_start|>", "<|im_end|>"], "has_im_end": ["<|im_end|>"],
                         "many": [f"<|reserved_{i}|>" for i in range(20)]}.get(chosen["special"], [])  # fmt: skip
    raw = Tokenizer.from_str(TOKENIZERS[chosen["tokenizer"]](special).to_str())
    if (normalizer := NORMALIZERS[chosen["normalizer"]]) is not None:
        raw.normalizer = normalizers.Sequence([normalizer, raw.normalizer]) if raw.normalizer else normalizer
    if chosen["special"] == "adds_bos":
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", special.index("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>",
                                        clean_up_tokenization_spaces=False, **SPECIALS[chosen["special"]])  # fmt: skip
    if chosen["special"] == "strips":
        tokenizer.add_tokens(AddedToken("<sep>", lstrip=True, rstrip=True))
    tokenizer.chat_template = TEMPLATES[chosen["template"]]
    field = chosen["field"]
    rows = len(tokenizer) + {"padded_rows": 30, "too_few_rows": -5}.get(field, 0)
    given = {
        "vocab_size": rows, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    given = deepcopy(given | ARCHITECTURES[chosen["model"]] | FIELDS[field])
    if chosen["model"] in UNLIMITED:
        del given["max_position_embeddings"]
        given.pop("rope_scaling", None)
    config = AutoConfig.for_model(chosen["model"], **given)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    if field == "half":
        model = model.half()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | HARMS.get(field, {}))
    return folder
