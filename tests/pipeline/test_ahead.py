"""What 02 to 06 would stop over is said before 01, by `run` and by `doctor`; and what is fine is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from nbutils.cli import main
from nbutils.core.errors import UserError
from nbutils.pipeline import ahead, fetch
from nbutils.pipeline.ahead import problems
from nbutils.pipeline.parameters import plan
from tests.conftest import ROOT

DEMO = ROOT / "params" / "demo.yaml"
NO_WAY = "python -m nbutils fetch params/demo.yaml"


@pytest.fixture(scope="module")
def learned_positions(tmp_path_factory) -> Path:
    """A base of 64 tokens whose context no chat can extend."""
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    return folder


@pytest.fixture
def look(tmp_path, monkeypatch, learned_positions):
    """The problems of the demo with other parameters, where nothing is cached and the hub cannot be asked."""
    monkeypatch.setattr(fetch.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def found(overrides: list[str], stages: slice = slice(None)) -> list[str]:
        texts = [text.replace("GPT2", str(learned_positions)) for text in overrides]
        planned = plan(DEMO, texts, str(tmp_path / "run"))
        return problems(planned, planned.stages[stages])

    return found


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["max_length=128"], "max_new_tokens is 250, more than half of the 256 tokens"),
        (["max_length=256"], ""),
        (["max_length=256", "context_extension=none"], "choose at most 128"),
        (["max_length=128", "max_new_tokens=100", "parity_tokens=129"], "parity_tokens is 129"),
        (["max_length=64", "max_new_tokens=33", "base_model=GPT2", "reply_tokens=9", "parity_tokens=32"], "at most 32"),
        (["compare_with=GPT2"], "more than half of the 64 tokens"),
        (["max_length=128", "max_new_tokens=100", "reply_tokens=113"], "reply_tokens is 113"),
        (["max_length=128", "max_new_tokens=100", "reply_tokens=112"], ""),
        (["tasks=[heldout_perplexity, hellaswga]"], "No task is called 'hellaswga'"),
        (["task_path=no/such"], "The folder no/such"),
        (["peers=[no/such.gguf]"], "GGUF file no/such.gguf does not exist"),
        (["peers=[params]"], "holds no model"),
        (["push=true"], "repo_id is empty"),
        (["push=true", "repo_id=me/it"], "there is no token"),
        (["report_to=[tensorbord]"], "no tracker tensorbord"),
        (["precision=fp16"], "precision is fp16"),
        (["base_model=GPT2", "max_new_tokens=9", "reply_tokens=9", "parity_tokens=9"], "max_length is 1024 tokens"),
    ],
)
def test_what_a_later_notebook_would_stop_over(look, monkeypatch, overrides, words):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr(ahead, "nvidia_gpus", lambda: ())
    try:
        found = look(overrides)
    except UserError as error:
        found = [str(error)]
    assert len(found) == bool(words) and words in "".join(found), found


def test_a_stage_that_is_not_asked_for_is_not_asked_about(look):
    """--until metrics asks nothing of 04 to 06, a whole local profile nothing of the network."""
    ask = ["max_length=128", "tasks=[hellaswga]", "peers=[a/b]", "push=true", "compare_with=c/d"]
    assert look(ask, slice(3)) == []


@pytest.mark.parametrize(
    "override,words",
    [
        ("base_model=nobody/base", "base model nobody/base"),
        ("datasets=[chitchat, some/set]", "conversations some/set"),
        ("peers=[a/b@v1]", "peer a/b"),
        ("model=c/d", "model of the chat c/d"),
        ("tasks=[sciq]", "task sciq allenai/sciq"),
        ("contamination_tasks=[sciq]", "task sciq allenai/sciq"),
    ],
)
def test_what_is_on_the_hub_alone_is_missed_before_01(look, tmp_path, monkeypatch, override, words):
    with pytest.raises(UserError, match=f"There is no way to {words} .offline.*{NO_WAY}"):
        look([override])
    monkeypatch.setattr(ahead, "CHECKS", {})
    kind, name = ("model" if "model" in override or "peer" in override else "dataset"), words.split()[-1]
    cached = tmp_path / "cache" / f"{kind}s--{name.replace('/', '--')}" / "snapshots" / "1"
    cached.mkdir(parents=True)
    (cached / "config.json").touch()  # of a model its weights count
    if kind == "model":
        with pytest.raises(UserError, match=words):
            look([override])
        (cached / "model.safetensors").touch()
    assert look([override]) == []


def test_a_push_wants_the_hub(look, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert "no way to push to me/it" in look(["push=true", "repo_id=me/it"])[0]
    monkeypatch.setattr(ahead, "hub_answers", lambda: True)
    assert look(["push=true", "repo_id=me/it"]) == []


def test_the_network_is_left_alone_where_all_is_local(look, monkeypatch):
    def asked() -> bool:
        raise AssertionError("the hub was asked")

    for module in (ahead, fetch):
        monkeypatch.setattr(module, "hub_answers", asked)
    assert look(["compare_with=''"]) == []


def test_tasks_groups_and_tags_of_lm_eval_are_known(look, monkeypatch):
    monkeypatch.setattr(ahead, "need_hub", lambda wanted, profile: None)
    assert look(["tasks=[hellaswag, arc_challenge, mmlu, ai2_arc]"]) == []


def test_run_says_it_before_the_first_notebook_and_asks_of_what_is_left_alone(tmp_path, capsys):
    run = tmp_path / "run"
    line = ["run", str(DEMO), "--run-dir", str(run), "-p", "max_length=128"]
    assert main(line) == 1
    assert "max_new_tokens is 250" in capsys.readouterr().err
    assert not run.exists()


def test_a_file_that_an_own_task_lacks_is_named_before_the_first_notebook(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_target: 0\ndoc_to_choice: [a, b]\n"
    )
    given = ["-p", "tasks=[mine]", "-p", f"task_path={tmp_path}"]
    assert main(["run", str(DEMO), "--run-dir", str(tmp_path / "run"), *given]) == 1
    said = capsys.readouterr().err
    assert "mine" in said and "gone.jsonl" in said and "beside its YAML" in said


def test_doctor_says_what_it_did_not_look_at(tmp_path, capsys, monkeypatch, learned_positions):
    """A base on the hub, of which the configuration alone is read."""
    from nbutils.core.run.models import ModelRef

    monkeypatch.setattr("nbutils.pipeline.fetch.hub_answers", lambda: True)
    config = GPT2Config(**json.loads((learned_positions / "config.json").read_text()) | {"n_positions": 1024})
    monkeypatch.setattr(ModelRef, "config", lambda self: config)
    main(["doctor", str(DEMO), "--run-dir", str(tmp_path / "run"), "-p", "base_model=nobody/base"])
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  note")]
    assert "weights of nobody/base" in note and NO_WAY in note
