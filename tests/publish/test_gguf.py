"""GGUF files: proven in llama.cpp itself, and what is caught, refused or left unproven. The Modelfile for Ollama."""

import json
import resource
import shutil
from urllib.request import urlopen

import pytest
import torch
from gguf import GGUFReader
from jinja2 import TemplateSyntaxError
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from nbutils.core import llamacpp
from nbutils.core.chat_engine.window import rotated, rotation
from nbutils.core.chatml import TEMPLATE, add_chatml, encode
from nbutils.core.errors import UserError
from nbutils.core.run.models import ModelRef, tiny_model
from nbutils.publish.architecture import extension, parameter_counts, tensor_shapes
from nbutils.publish.card import render_card
from nbutils.publish.export import published_files
from nbutils.publish.gguf_export import OLLAMA, check_convertible, check_template, make_gguf, read_gguf
from nbutils.publish.gguf_parity import GREEDY, Spoken, prove
from nbutils.publish.gguf_writer import bytes_of, write_gguf
from tests.bases import conversations, make_base
from tests.builders import chitchat, small_tokenizer
from tests.conftest import sentencepiece_tokenizer
from tests.publish.conftest import read, settings_for

FEW = {"parity_conversations": 12, "parity_replies": 3, "parity_tokens": 8}


def with_chatml(folder, model, tokenizer):
    """A trained model's folder."""
    add_chatml(tokenizer, model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def proof(folder, known, to, kinds=("f16",), **other):
    """What llama.cpp says of files of a model's folder, whose vocabulary may be changed first.

    `known`: what the session does, or the conversations to try it with.
    """
    words = check_convertible(ModelRef.parse(str(folder)))
    words |= {name: change(words[name]) for name, change in other.items()}
    files = {kind: to / f"{kind}.gguf" for kind in kinds}
    for kind, path in files.items():
        write_gguf(path, kind, folder, words, {})
    return prove(files, spoken(folder, known) if isinstance(known, list) else known)


def spoken(folder, rows, **changes):
    """What the session does with these conversations."""
    return Spoken(folder, rows, settings_for(folder, **FEW | changes))


@pytest.fixture(scope="module")
def made(published, llama_cpp, tmp_path_factory):
    """A copy of the made-up run with a file of each kind, and what was made."""
    copy = shutil.copytree(published.run, tmp_path_factory.mktemp("gguf") / "run")
    run = read(copy, gguf=["f16", "q8_0"], repo_id="me/made-up", **FEW)
    make_gguf(run.facts, run.settings, run.folder)
    return run, read_gguf(run.folder)


def test_both_kinds_are_proven_and_say_where_q8_0_does_not_fit(made):
    run, found = made
    assert (found["conversations"], found["hostile_texts"]) == (12, 18)
    half, eight = found["files"]["f16"], found["files"]["q8_0"]
    assert half["equal_share"] == 1 - (half["ties"] + half["rounded"]) / half["reply_tokens"]
    assert eight["kept_f16"] == [f"blk.{i}.ffn_down.weight" for i in range(4)] and not half["kept_f16"]  # rows of 344
    weights = parameter_counts(tensor_shapes(run.facts.model_folder)).total()
    assert 0 < half["bytes"] - bytes_of(weights, "f16") < 20_000
    value, low, high = eight["against_f16"]
    assert low <= value <= high and abs(value) < 0.05 and eight["bytes"] < half["bytes"]
    names = {"smallchat-demo-F16.gguf", "smallchat-demo-Q8_0.gguf", "Modelfile", "proof.json"}
    assert {f"gguf/{name}" for name in names} <= {str(file) for file in published_files(run.folder)}


def test_the_file_says_what_it_is(made):
    run, found = made
    fields = GGUFReader(run.folder / "gguf" / found["files"]["f16"]["name"]).fields
    said = {name: fields[name].contents() for name in fields}
    expected = {
        "general.name": "smallchat-demo", "general.license": "apache-2.0", "llama.context_length": 256,
        "general.url": "https://huggingface.co/me/made-up", "tokenizer.chat_template": TEMPLATE,
        "tokenizer.ggml.eos_token_id": 331, "tokenizer.ggml.padding_token_id": 332,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 331, "general.sampling.sequence": "penalties;temperature;top_p",
        "general.sampling.temp": 0.75, "general.sampling.top_k": 0, "general.sampling.penalty_last_n": -1,
    }  # fmt: skip
    assert said == said | expected and "general.base_model.count" not in said  # `tiny` has none
    assert said["tokenizer.ggml.token_type"][329:] == [1, 3, 3, 3]
    lines = (run.folder / "gguf" / "Modelfile").read_text().splitlines()
    assert {line.removeprefix("PARAMETER ") for line in lines if line.startswith("PARAMETER")} == {
        "temperature 0.75", "top_p 0.9", "top_k 0", "min_p 0.0", "repeat_penalty 1.2", "repeat_last_n -1",
        'stop "<|im_end|>"', "num_predict 250", "num_ctx 256",
    }  # fmt: skip


def test_the_card_gives_commands_and_says_what_was_tried(published, made):
    run, found = made
    card = render_card(run.facts, read(run.run, repo_id="me/made-up", push_page=True).settings)
    eight = found["files"]["q8_0"]
    for words in (
        "llama-server -m gguf/smallchat-demo-F16.gguf", "ollama create made-up -f gguf/Modelfile && ollama run made-up",
        "# LM Studio: not tried here", "# llama.cpp: tried here", "https://huggingface.co/spaces/me/made-up",
        "| `gguf/smallchat-demo-Q8_0.gguf` |", "Q8_0, 4 tensors in F16",
        f"| {eight['equal_share']:.1%} of {eight['reply_tokens']} |", "parse control tokens in what people type",
        f"Proven in llama.cpp (xllamacpp {found['llama_cpp']}): {found['token_ids']:,} token ids of 12 held-out",
        "`-c 512 --override-kv llama.context_length=int:512 --rope-freq-base 32279.69",
    ):  # fmt: skip
        assert words in card
    assert "llama-server" not in published.card and "Unproven" not in card


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model that has merges to go wrong, and its session."""
    texts = [message["content"] for talk in chitchat(12) for message in talk]
    tokenizer = small_tokenizer([*texts, *["1234567"] * 99], 330)
    tokenizer.add_special_tokens({"extra_special_tokens": ["</s>"]}, replace_extra_special_tokens=False)
    folder = with_chatml(tmp_path_factory.mktemp("small"), tiny_model(tokenizer, 256, seed=3), tokenizer)
    return folder, spoken(folder, chitchat(12), parity_replies=12, parity_tokens=12)


@pytest.mark.parametrize(
    "words,fault",
    {
        r"its template parts in held-out conversation 0 at character \d+.*look at tokenizer.chat_template":
            ("TEMPLATE", TEMPLATE.replace("+ '<|im_end|>' + '\\n'", "+ '<|im_end|>'")),
        r"greedy replies part in held-out conversation \d+ at token \d+.*rows of q and k":
            ("interleaved", lambda array, heads: array),
        r"its end token is '</s>', and '<\|im_end\|>' ends a reply.*eos_token_id":
            {"eos_token_id": lambda _: 333, "eot_token_id": lambda _: 333},
        r"it reads the control token '<\|pad\|>' as \[.*not as 332.*tokenizer.ggml.tokens":
            {"token_list": lambda tokens: [token.replace("<|pad|>", "[PAD332]") for token in tokens]},
        r"token ids part in .* at token \d+.*tokenizer.ggml.pre": {"tokenizer_pre": lambda _: "llama-bpe"},
    }.items(),
)  # fmt: skip
def test_a_planted_fault_is_caught_and_named(llama_cpp, small, tmp_path, monkeypatch, words, fault):
    """In what the writer takes, or in the vocabulary."""
    if isinstance(fault, tuple):
        monkeypatch.setattr(f"nbutils.publish.gguf_writer.{fault[0]}", fault[1])
        fault = {}
    with pytest.raises(UserError, match=rf"f16.gguf does not answer in llama.cpp as the model does here: {words}"):
        proof(*small, tmp_path, **fault)


def test_a_reply_that_llama_cpp_ends_early_is_named(llama_cpp, tmp_path):
    """`<|endoftext|>` ends one there, whatever the file says; this model writes nothing else."""
    tokenizer = small_tokenizer(["What is it? What is that?"], 300)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|endoftext|>"]}, replace_extra_special_tokens=False)
    model, end = tiny_model(tokenizer, 256, seed=3), tokenizer.convert_tokens_to_ids("<|endoftext|>")
    prompt = encode(tokenizer, conversations(1)[0][:1], add_generation_prompt=True).input_ids
    with torch.no_grad():
        model.get_input_embeddings().weight[end] = model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
    folder = with_chatml(tmp_path / "final", model, tokenizer)
    with pytest.raises(
        UserError, match=r"greedy replies part in .* 0 at token 1: .*'<.endoftext.>', which .*, llama.cpp ''"
    ):
        proof(folder, conversations(12), tmp_path)


@pytest.mark.parametrize(
    "chosen",
    [{}, {"model": "mistral"}, {"model": "qwen2", "normalizer": "nfc"},
     *({"field": field} for field in ("linear", "grouped", "untied", "dynamic"))],
    ids=str,
)  # fmt: skip
def test_architectures(llama_cpp, tmp_path, chosen):
    names = {"tokenizer": "byte_level", "normalizer": "none", "special": "bos", "template": "none"}
    base = ModelRef.parse(str(make_base(tmp_path / "base", names | {"model": "llama", "field": "plain"} | chosen)))
    folder = with_chatml(tmp_path / "final", base.load(), base.raw_tokenizer())
    assert proof(folder, conversations(12), tmp_path)["files"]["f16"]["replies"] == 3


def test_the_reference_with_its_real_sentencepiece(llama_cpp, tmp_path):
    config = LlamaConfig(vocab_size=32000, num_hidden_layers=2, num_attention_heads=4, hidden_size=64,
                         intermediate_size=128, max_position_embeddings=1024)  # fmt: skip
    torch.manual_seed(0)
    folder = with_chatml(tmp_path / "final", LlamaForCausalLM(config), sentencepiece_tokenizer())
    known = spoken(folder, chitchat(12))
    found = proof(folder, known, tmp_path, ("f16", "q8_0"))
    assert found["hostile_texts"] == 18 and found["files"]["q8_0"]["likelihoods"] == 12
    nats = sum(
        cross_entropy(known.model(torch.tensor([a + b])).logits[0, len(a) - 1 : -1], torch.tensor(b), reduction="sum")
        for a, b in known.held_out
    ) / sum(len(b) for _, b in known.held_out)
    assert found["files"]["f16"]["log_likelihood"] == pytest.approx(-float(nats.detach()), abs=1e-3)


OPTIONS = {
    "--rope-freq-base": ("rope_freq_base", float), "--rope-scale": ("rope_freq_scale", lambda scale: 1 / float(scale)),
    "--rope-scaling": ("rope_scaling_type", lambda kind: {"linear": 1, "yarn": 2}[kind]),
    "--yarn-orig-ctx": ("yarn_orig_ctx", int),
}  # fmt: skip
"""llama-server's options on the card → its parameters in xllamacpp."""


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "linear"])
def test_the_cards_options_extend_the_context_as_the_chat_does(llama_cpp, small, tmp_path, monkeypatch, kind):
    """A greedy reply behind more tokens than the model was trained on: the chat finds each of its tokens as likely."""
    import xllamacpp

    folder, known = small
    monkeypatch.setattr("nbutils.publish.gguf_writer.readable_context", lambda _: 512)  # the card's --override-kv
    write_gguf(tmp_path / "it.gguf", "f16", folder, check_convertible(ModelRef.parse(str(folder))), {})
    params = llamacpp.parameters(str(tmp_path / "it.gguf"), 512)
    given = extension(known.model.config, kind)[2].split()
    for option, value in zip(given[::2], given[1::2], strict=True):
        name, read = OPTIONS[option]
        setattr(params, name, type(getattr(params, name))(read(value)))
    llama, prompt = xllamacpp.Server(params), (known.replies[0][0] * 20)[:400]
    asked = json.dumps({"prompt": prompt, "n_predict": 40, **GREEDY}).encode()
    said = json.load(urlopen(f"{llama.listening_address}/completion", asked))
    steps = [step["top_logprobs"][0] for step in said["completion_probabilities"]]

    def chat(extension):
        with torch.inference_mode(), rotated(known.model, rotation(known.model, extension, 512)):
            logits = known.model(torch.tensor([prompt + said["tokens"]])).logits[0, len(prompt) - 1 : -1]  # (N, V)
        return [float(row.log_softmax(0)[step["id"]]) for row, step in zip(logits, steps, strict=True)]

    theirs = pytest.approx([step["logprob"] for step in steps], abs=5e-3)
    assert len(steps) > 10 and chat(kind) == theirs != chat("none")


@pytest.mark.soak
def test_a_real_model(llama_cpp, smollm2_folder, tmp_path):
    ref = ModelRef.parse(str(smollm2_folder))
    folder = with_chatml(tmp_path / "final", ref.load(), ref.raw_tokenizer())
    assert proof(folder, chitchat(2), tmp_path)["files"]["f16"]["reply_tokens"] > 8


@pytest.mark.parametrize(
    "chosen,words",
    [
        ({"field": "yarn"}, "rotary embedding is scaled by 'yarn'"),
        ({"tokenizer": "unigram"}, "its tokenizer is of the kind Unigram"),
        ({"normalizer": "lower"}, "splits a text in its own way"),
        ({"normalizer": "nfkc", "tokenizer": "sentencepiece"}, "is neither a byte-level BPE nor one like"),
    ],
    ids=str,
)
def test_what_llama_cpp_has_nothing_like_is_refused(tmp_path, chosen, words):
    names = {"tokenizer": "byte_level", "normalizer": "none", "special": "bos", "template": "none", "model": "llama"}
    folder = make_base(tmp_path / "base", names | {"field": "plain"} | chosen)
    with pytest.raises(UserError, match=rf"^No GGUF file can be made of .*{words}.*; set gguf to \[\]\.$|{words}"):
        check_convertible(ModelRef.parse(str(folder)))


def test_without_llama_cpp_files_are_unproven_and_stay_home(spare, monkeypatch):
    run = read(spare, gguf=["q8_0"])
    before = run.settings.result_parameters()
    monkeypatch.setattr("nbutils.core.llamacpp.PACKAGE", "no_such_package")
    assert run.settings.result_parameters() != before  # so that they are made anew once it is there
    files = make_gguf(run.facts, run.settings, run.folder)
    assert sorted(file.name for file in files) == ["Modelfile", "proof.json", "smallchat-demo-Q8_0.unproven.gguf"]
    card = render_card(run.facts, run.settings)
    assert "| Q8_0, 4 tensors in F16 | unproven | — |" in card and "stays F16.\n\n**Unproven**" in card
    assert "# llama.cpp: not tried here" in card
    assert published_files(run.folder) == []
    assert make_gguf(run.facts, read(spare).settings, run.folder) == [] and not list(run.folder.iterdir())


def test_a_full_disk_leaves_nothing(published, tmp_path, monkeypatch):
    monkeypatch.setattr("nbutils.publish.gguf_export.installed", lambda: False)
    run, limits = read(published.run, gguf=["f16"]), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"gguf cannot be written \(.*\): make room"):
            make_gguf(run.facts, run.settings, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "template,words",
    {
        OLLAMA.replace("<|im_end|>\n", "<|im_end|>"): r"writes held-out conversation 0 as .*look at OLLAMA",
        OLLAMA.replace("range .Messages", "if .System"): "unknown tag",
    }.items(),
)
def test_another_template_for_ollama_is_caught(template, words):
    with pytest.raises((UserError, TemplateSyntaxError), match=words):
        check_template(template, conversations(3))
