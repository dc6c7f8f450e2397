"""Pushing to a fake Hub on loopback, and the scan for secrets before it."""

import json

import pytest

from nbutils.core.errors import UserError
from nbutils.publish.export import published_files
from nbutils.publish.push import upload
from tests.kaggle.mirror_hub import REPO, TOKEN
from tests.publish.conftest import settings_for


@pytest.fixture
def push(published, folder, hub):
    """Pushes the folder to the fake Hub, with changes of the settings."""

    def pushed(found=(), **changes):
        settings = settings_for(published.run, **({"push": True, "repo_id": REPO} | changes))
        return upload(folder, published_files(folder), settings, published.facts.repeats | {"found": found})

    return pushed


def test_nothing_is_sent_unless_asked_and_to_no_place(push, hub):
    """More of what is missing in `tests/pipeline/test_ahead.py`."""
    assert push(push=False) == ""
    with pytest.raises(UserError, match="repo_id is empty"):
        push(repo_id="")
    assert hub.requests == []


def test_the_repository_is_the_folder_in_one_private_commit(push, folder, hub):
    (folder / "stage.json").write_text("{}")
    assert push() == f"{hub.url}/{REPO}/commit/{'1' * 40}"
    files = {str(file): (folder / file).read_bytes() for file in published_files(folder)}
    (summary,) = hub.repos[REPO]["commits"]
    assert hub.repos[REPO] == {"private": True, "files": files, "commits": [summary]}
    assert f"Bearer {TOKEN}" in hub.tokens


def test_an_interrupted_push_goes_on(push, hub):
    hub.failing_uploads = 3
    with pytest.raises(UserError, match=f"could not be pushed to {REPO}"):
        push()
    assert hub.repos[REPO]["commits"] == []
    held, before = len(hub.blobs), hub.uploads()
    push()
    assert len(hub.repos[REPO]["commits"]) == 1
    assert hub.uploads() - before == len(hub.blobs) - held > 0


def test_a_public_repository_gets_nothing_private(push, folder, hub):
    push(private=False)
    files = dict(hub.repos[REPO]["files"])
    (folder / "README.md").write_text("not for everybody")
    with pytest.raises(UserError, match=f"{REPO} is public and private is on: make it private there"):
        push()
    assert hub.repos[REPO]["files"] == files


def test_what_an_earlier_push_left_is_deleted_and_what_others_put_there_is_kept(push, folder, hub):
    push()
    left = ["adapter_config.json", "added_tokens.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"]
    kept = ["mine.txt", "onnx/model.safetensors", ".gitattributes"]
    hub.repos[REPO]["files"].update(dict.fromkeys([*left, *kept], b"x"))
    (folder / "figures" / "memory.png").unlink()
    push()
    assert set(hub.repos[REPO]["files"]) == {*map(str, published_files(folder)), *kept}


def test_refusals_are_one_sentence_without_the_token(push, hub):
    hub.metadata_errors = ['"license" must be one of [apache-2.0, mit]', '"language[0]" must only contain lowercase']
    with pytest.raises(UserError, match=r'Invalid metadata.*"license" must be one of.*"language\[0\]"') as caught:
        push()
    assert "\n" not in str(caught.value) and hub.repos[REPO]["commits"] == []
    hub.allow = False
    with pytest.raises(UserError, match="403") as caught:
        push()
    assert TOKEN not in str(caught.value)


def test_what_the_model_repeats_is_pushed_only_when_a_person_has_accepted_it(push, hub):
    with pytest.raises(UserError, match=r"1 in \d+ replies.*notebook 06, and set accept_repeats to true"):
        push(found=["an address"])
    assert hub.requests == []
    push(found=["an address"], accept_repeats=True)
    assert len(hub.repos[REPO]["commits"]) == 1


LETTERS = "a1B2" * 9


@pytest.mark.parametrize(
    "text,what",
    {
        f"token: hf_{LETTERS}": "a Hugging Face token",
        f"ghp_{LETTERS}": "a GitHub token",
        json.dumps({"content": f"my token is\nhf_{LETTERS}"}): "a Hugging Face token",
        json.dumps({"content": f"mine:\tsk-{LETTERS}"}): "an API key",
        f"> it is hf\\_{LETTERS}": "a Hugging Face token",
        "id AKIA" + "A1B2" * 4: "an AWS key",
        json.dumps({"username": "me", "key": "0f" * 16}): "a Kaggle key",
        "-----BEGIN OPENSSH PRIVATE KEY-----": "a private key",
        "password is correct-horse-battery": "secret environment variable",
    }.items(),
)
def test_secrets_stop_a_push(push, folder, hub, monkeypatch, text, what):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    (folder / "run" / "parameters.yaml").write_text(f"a: 1\n{text}\n")
    with pytest.raises(UserError, match=rf"run/parameters.yaml, line 2, holds what looks like .*{what}"):
        push()
    assert hub.requests == []
