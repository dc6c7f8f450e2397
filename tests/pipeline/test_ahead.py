"""What 02 to 06 would stop over is said before 01, by `run` and by `doctor`; and what is fine is not."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, T5Config

from nbutils.cli import main
from nbutils.core.errors import UserError
from nbutils.core.run.models import ModelRef, train_bpe
from nbutils.pipeline import ahead, fetch
from nbutils.pipeline.ahead import problems
from nbutils.pipeline.parameters import plan
from tests.bases import make_base
from tests.conftest import ROOT

DEMO = ROOT / "params" / "demo.yaml"
NO_WAY = "python -m nbutils fetch params/demo.yaml"


def gpt2(positions):
    """The configuration of one that reads so many tokens."""
    return GPT2Config(vocab_size=300, n_positions=positions, n_embd=8, n_layer=1, n_head=1)


@pytest.fixture(scope="module")
def learned_positions(tmp_path_factory):
    """A base of 64 tokens whose context no chat can extend."""
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(gpt2(64)).save_pretrained(folder)
    T5Config().save_pretrained(folder / "t5")
    gpt2(64).save_pretrained(folder / "bare")
    (folder / "chats.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return folder


@pytest.fixture
def look(tmp_path, monkeypatch, learned_positions):
    """The problems of the demo with other parameters, where nothing is cached and the hub cannot be asked."""
    monkeypatch.setattr(fetch.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def found(*overrides, until=6):
        given = f"run_dir={tmp_path}/run", "datasets=[GPT2/chats.jsonl]", *overrides
        texts = [text.replace("GPT2", str(learned_positions)) for text in given]
        planned = plan(DEMO, texts)
        return problems(planned, planned.stages[:until])

    return found


SHORT = "max_new_tokens=9", "reply_tokens=9", "parity_tokens=9"


@pytest.mark.parametrize(
    "case",
    [
        ("max_new_tokens is 250, more than half of the 256 tokens", "max_length=128"),
        ("", "max_length=256"),
        ("choose at most 128", "max_length=256", "context_extension=none"),
        ("parity_tokens is 129", "max_length=128", "max_new_tokens=100", "parity_tokens=129"),
        ("at most 32", "max_length=64", "max_new_tokens=33", "base_model=GPT2", "reply_tokens=9", "parity_tokens=32"),
        ("more than half of the 64 tokens", "compare_with=GPT2"),
        ("reply_tokens is 113", "max_length=128", "max_new_tokens=100", "reply_tokens=113"),
        ("", "max_length=128", "max_new_tokens=100", "reply_tokens=112"),
        ("No task is called 'hellaswga'", "tasks=[heldout_perplexity, hellaswga]"),
        ("No task is called 'sqic'", "contamination_tasks=[sqic]"),
        ("no/such/train/metrics.jsonl does not exist", "compare_runs=[no/such]"),
        ("The folder no/such", "task_path=no/such"),
        ("GGUF file no/such.gguf does not exist", "peers=[no/such.gguf]"),
        ("holds no model", "peers=[params]"),
        ("reads 64 tokens at once", "peers=[GPT2]"),
        ("peers holds 'tiny'", "peers=[tiny]"),
        ("could not be loaded", "compare_with=GPT2/t5"),
        ("could not be loaded", "compare_with=GPT2/bare"),
        ("a file is there", "cache_dir=GPT2/chats.jsonl"),
        ("no step-000500", "compare_with=step-000500"),
        ("no step-000400", "compare_with=step-000400", "checkpoint_steps=0"),
        ("", "compare_with=step-000400"),
        ("no/such.jsonl does not exist", "datasets=[no/such.jsonl]"),
        ("a file or folder that is there", "datasets=[/no/such]"),
        ("data files found", "datasets=[nbutils/metrics]"),
        ("repo_id is empty", "push=true"),
        ("architecture 'gpt2' with", "gguf=[f16]", "base_model=GPT2", "max_length=64", *SHORT),
        ("there is no token", "push=true", "repo_id=me/it"),
        ("no tracker tensorbord", "report_to=[tensorbord]"),
        ("precision is fp16", "precision=fp16"),
        ("max_length is 1024 tokens", "base_model=GPT2", *SHORT),
    ],
)
def test_what_a_later_notebook_would_stop_over(look, monkeypatch, case):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr(ahead, "nvidia_gpus", lambda: ())
    words, *overrides = case
    try:
        found = look(*overrides)
    except UserError as error:
        found = [str(error)]
    assert len(found) == bool(words) and words in "".join(found), found


def test_a_stage_that_is_not_asked_for_is_not_asked_about(look):
    """--until metrics asks nothing of 04 to 06, a whole local profile nothing of the network."""
    ask = ["max_length=128", "tasks=[hellaswga]", "peers=[a/b]", "push=true", "compare_with=c/d"]
    assert look(*ask, until=3) == []


@pytest.mark.parametrize(
    "override,words,cached",
    [
        ("base_model=nobody/base", "base model nobody/base", "models--nobody--base"),
        ("datasets=[chitchat, some/set]", "conversations some/set", "datasets--some--set"),
        ("peers=[a/b@v1]", "peer a/b", "models--a--b"),
        ("model=c/d", "model of the chat c/d", "models--c--d"),
        ("tasks=[sciq]", "task sciq allenai/sciq", "datasets--allenai--sciq"),
        ("contamination_tasks=[sciq]", "task sciq allenai/sciq", "datasets--allenai--sciq"),
    ],
)
def test_what_is_on_the_hub_alone_is_missed_before_01(look, tmp_path, monkeypatch, override, words, cached):
    monkeypatch.setattr(ahead, "asks", lambda *_: [])
    folder = tmp_path / "cache" / cached / "snapshots" / "1"
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors")[cached.startswith("datasets") :]:
        with pytest.raises(UserError, match=f"There is no way to {words} .offline.*{NO_WAY}"):
            look(override)
        (folder / file).touch()
    assert look(override) == []


def test_a_message_of_the_chat_is_measured_as_soon_as_there_is_a_tokenizer(look, tmp_path):
    train_bpe([]).save_pretrained(tmp_path / "run" / "data" / "tokenizer")
    said = look("max_length=128", "max_new_tokens=100", f"scripted_messages=[Hi, {'x' * 150}]")
    assert "takes 169 tokens, and final can read 156 beside a reply: shorten 'xxx" in said[0]


def test_a_push_wants_the_hub(look, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert "no way to push to me/it" in look("push=true", "repo_id=me/it")[0]
    monkeypatch.setattr(ahead, "hub_answers", lambda: True)
    assert look("push=true", "repo_id=me/it") == []
    assert "page is off, so that there is nothing to push" in look("push_page=true", "repo_id=me/it")[0]
    assert "add q8_0 to gguf" in look("page=true")[0]


def test_a_page_is_refused_whose_model_no_browser_could_read(look, tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "check_page", lambda _: None)  # asks npm's registry
    plain = {"tokenizer": "byte_level", "normalizer": "none", "special": "bos", "template": "none", "model": "llama"}
    base = make_base(tmp_path / "base", plain | {"field": "plain"})
    ask = f"base_model={base}", "page=true", "gguf=[q8_0, f16]", "max_length=128", *SHORT
    assert look(*ask) == []
    monkeypatch.setattr("nbutils.publish.page.make.LARGEST", 10_000)
    assert "The model as Q8_0 has" in "".join(look(*ask))


def test_the_network_is_left_alone_where_all_is_local(look, monkeypatch):
    for module in (ahead, fetch):
        monkeypatch.setattr(module, "hub_answers", lambda: pytest.fail("the hub was asked"))
    assert look("compare_with=''") == []


def test_with_a_network_lm_evals_tasks_groups_and_tags_are_known_and_paths_looked_for(look, monkeypatch):
    monkeypatch.setattr(ahead, "need_hub", lambda wanted, profile: None)
    assert look("tasks=[hellaswag, arc_challenge, mmlu, ai2_arc]") == []
    assert "any data file at /no/such" in look("datasets=[/no/such]")[0]


def test_a_file_that_an_own_task_lacks_is_named(look, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_target: 0\ndoc_to_choice: [a, b]\n"
    )
    (said,) = look("tasks=[mine]", f"task_path={tmp_path}")
    assert "mine" in said and "gone.jsonl" in said and "beside its YAML" in said


def test_doctor_says_what_it_did_not_look_at(tmp_path, capsys, monkeypatch):
    """A base on the hub, of which the configuration alone is read."""
    monkeypatch.setattr(fetch, "hub_answers", lambda: True)
    monkeypatch.setattr(ModelRef, "config", lambda self: gpt2(1024))
    main(["doctor", str(DEMO), "--run-dir", str(tmp_path / "run"), "-p", "base_model=nobody/base"])
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  note")]
    assert "weights of nobody/base" in note and NO_WAY in note
