"""Pushing to a fake Hub on loopback, and the scan for secrets before it."""

from __future__ import annotations

import json

import pytest

from nbutils.core.errors import UserError
from nbutils.publish.export import published_files
from nbutils.publish.push import check_secrets, upload
from tests.publish.conftest import settings_for
from tests.publish.fake_hub import FakeHub

TOKEN = "hf_" + "not-a-real-one-but-long-enough"


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process takes for the real one."""
    import huggingface_hub
    from huggingface_hub import constants

    server = FakeHub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub._commit_api, "is_xet_available", lambda: False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    yield server
    server.close()


@pytest.fixture
def push(published, folder, hub):
    """Pushes the folder to the fake Hub, with changes of the settings."""

    def pushed(**changes) -> str:
        settings = settings_for(published.run, **({"push": True, "repo_id": "me/made-up"} | changes))
        return upload(folder, published_files(folder), settings)

    return pushed


def test_nothing_is_sent_unless_asked(push, hub):
    assert push(push=False) == "" and hub.requests == []


def test_the_repository_is_the_folder_in_one_private_commit(push, folder, hub):
    (folder / "stage.json").write_text("{}")
    address = push()
    repo = hub.repos["me/made-up"]
    assert repo["private"] and len(repo["commits"]) == 1 and address == f"{hub.url}/me/made-up/commit/{'1' * 40}"
    assert repo["files"] == {str(file): (folder / file).read_bytes() for file in published_files(folder)}
    assert f"Bearer {TOKEN}" in hub.tokens


def test_an_interrupted_push_goes_on(push, hub):
    hub.failing_uploads = 3
    with pytest.raises(UserError, match="could not be pushed to me/made-up"):
        push()
    assert hub.repos["me/made-up"]["commits"] == []
    held, before = len(hub.blobs), hub.uploads()
    push()
    assert len(hub.repos["me/made-up"]["commits"]) == 1
    assert hub.uploads() - before == len(hub.blobs) - held > 0


def test_a_public_repository_gets_nothing_private(push, folder, hub):
    push(private=False)
    files = dict(hub.repos["me/made-up"]["files"])
    (folder / "README.md").write_text("not for everybody")
    with pytest.raises(UserError, match=r"me/made-up is public and private is on: make it private there"):
        push()
    assert hub.repos["me/made-up"]["files"] == files


def test_what_an_earlier_push_left_is_deleted_and_what_others_put_there_is_kept(push, folder, hub):
    push()
    left = ["adapter_config.json", "added_tokens.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"]
    kept = ["mine.txt", "onnx/model.safetensors", ".gitattributes"]
    hub.repos["me/made-up"]["files"].update(dict.fromkeys([*left, *kept], b"x"))
    (folder / "figures" / "memory.png").unlink()
    push()
    assert set(hub.repos["me/made-up"]["files"]) == {*map(str, published_files(folder)), *kept}


def test_refusals_are_one_sentence_without_the_token(push, hub):
    hub.metadata_errors = ['"license" must be one of [apache-2.0, mit]', '"language[0]" must only contain lowercase']
    with pytest.raises(UserError, match=r'Invalid metadata.*"license" must be one of.*"language\[0\]"') as caught:
        push()
    assert "\n" not in str(caught.value) and hub.repos["me/made-up"]["commits"] == []
    hub.allow = False
    with pytest.raises(UserError, match="403") as caught:
        push()
    assert TOKEN not in str(caught.value)


def test_what_is_missing_is_said(push, hub, monkeypatch):
    with pytest.raises(UserError, match="repo_id is empty"):
        push(repo_id="")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="HF_TOKEN"):
        push()
    assert hub.requests == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("token: hf_" + "a1B2" * 9, "a Hugging Face token"),
        ("ghp_" + "a" * 36, "a GitHub token"),
        (json.dumps({"content": "my token is\nhf_" + "a1B2" * 9}), "a Hugging Face token"),
        (json.dumps({"content": "mine:\tsk-" + "a1B2" * 9}), "an API key"),
        ("> it is hf\\_" + "a1B2" * 9, "a Hugging Face token"),
        ("id AKIA" + "A1B2" * 4, "an AWS key"),
        ('{"username": "me", "key": "' + "0f" * 16 + '"}', "a Kaggle key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("password is correct-horse-battery", "secret environment variable"),
    ],
)
def test_secrets_stop_a_push(push, folder, hub, monkeypatch, text, what):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    (folder / "run" / "parameters.yaml").write_text(f"a: 1\n{text}\n")
    with pytest.raises(UserError, match=rf"run/parameters.yaml, line 2, holds what looks like .*{what}"):
        push()
    assert hub.requests == []


def test_a_clean_folder_passes(folder):
    assert check_secrets(folder, published_files(folder)) > 10
