"""The page that talks: what is put together, where wllama comes from, and how it is sent."""

import io
import json
import os
import shutil
import socket
import tarfile
import threading
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from gguf import GGUFWriter, TokenType

from nbutils.cli import main
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_bytes
from nbutils.core.run.layout import Run
from nbutils.core.run.record import RECORD, outputs_of, write_record
from nbutils.publish.export import published_files
from nbutils.publish.page import make, wllama
from nbutils.publish.page.make import check_page, make_page
from nbutils.publish.push import upload, upload_page
from tests.cells import run_cells
from tests.kaggle.mirror_hub import REPO
from tests.publish.conftest import settings_for

FILES = {"esm/index.min.js": b"code", "esm/wasm/wllama.wasm": b"wasm", "LICENCE": b"MIT"}
ON = {"page": True, "gguf": ["q8_0"], "repo_id": REPO}


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """npm's registry, as a folder: its package of wllama has three files, which the pins are those of."""
    folder = tmp_path / "registry"
    package = folder / "@wllama" / "wllama" / "-" / f"wllama-{wllama.VERSION}.tgz"
    package.parent.mkdir(parents=True)
    with tarfile.open(package, "w:gz") as tar:
        for name, content in FILES.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(wllama, "PINNED", {name: sha256_of_bytes(content) for name, content in FILES.items()})
    monkeypatch.setattr(wllama, "project_root", lambda: tmp_path)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", folder.as_uri() + "/")
    return package


def small_gguf(file):
    """A GGUF file with a vocabulary and no weights."""
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(512)
    writer.add_token_list(["<unk>", "\n", "a", "<|im_start|>", "<|im_end|>", "<|pad|>"])
    writer.add_token_types([TokenType.UNKNOWN, TokenType.CONTROL, TokenType.NORMAL, *[TokenType.CONTROL] * 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def whole(folder):
    """A published folder with a GGUF file."""
    (folder / "gguf").mkdir()
    small_gguf(folder / "gguf" / "it-Q8_0.gguf")
    return folder


def made(folder, **changes):
    """The page of a published folder, as notebook 06 makes it; None where page is off."""
    return make_page(settings_for(folder, **(ON | changes)), folder)


def test_the_page_is_whole_and_says_what_it_runs(whole, registry):
    assert made(whole, page=False) is None
    page = made(whole)
    assert {file.name for file in page.iterdir()} == {
        "index.html", "page.css", "page.js", "chat.json", "README.md", "it-Q8_0.gguf",
        "wllama.js", "wllama.wasm", "wllama-LICENCE.txt",
    }  # fmt: skip
    assert {(page / name).read_bytes() for name in make.THEIRS} == {*FILES.values()}
    chat = read_json(page / "chat.json")
    assert chat["files"] == {name: (page / name).stat().st_size for name in ("wllama.wasm", chat["file"])}
    assert chat["models"] == [REPO]
    assert chat["specials"] == ["<unk>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    assert (chat["context"], chat["reply"]) == (512, 128)
    assert chat["about"].startswith("A chat model of 1,234,567 parameters: a Llama built from its configuration, fine-")
    assert chat["about"].endswith("100 conversations of chitchat with smallchat. Licence: apache-2.0.")
    space = yaml.safe_load((page / "README.md").read_text().split("---")[1])
    assert space["sdk"] == "static" and space["app_file"] == "index.html" and space["models"] == [REPO]
    registry.unlink()  # it is in the cache now
    assert made(whole, wllama_dir="") == page
    assert not [file for file in published_files(whole) if "page" in file.parts]


@pytest.mark.parametrize(
    "spoil,words",
    [
        (lambda _, package: package.unlink(), "npm's registry at .* does not give it .*wllama_dir"),
        (
            lambda *_: wllama.PINNED.update(LICENCE=""),
            "not what was pinned .LICENCE is not that of .*: nothing",
        ),
        (lambda _, package: package.write_bytes(package.read_bytes()[:60] + b"?" * 40), "not what was pinned"),
        (lambda model, _: model.unlink(), "no GGUF file for it to load: add q8_0 to gguf"),
        (lambda model, _: model.write_bytes(model.read_bytes()[:90]), "it-Q8_0.gguf is no whole GGUF file"),
        (lambda model, _: os.truncate(model, 2**31), "has 2.0 GiB, and a browser reads none"),
    ],
)
def test_what_is_missing_or_not_itself_is_one_sentence_and_leaves_nothing(whole, registry, tmp_path, spoil, words):
    spoil(whole / "gguf" / "it-Q8_0.gguf", registry)
    with pytest.raises(UserError, match=words):
        made(whole)
    assert not [*whole.glob("*page*")] and not [*tmp_path.glob("runs/.cache/.*")]


def test_an_unpacked_package_is_taken_where_its_files_are_those(whole, registry, tmp_path):
    own = tmp_path / "own"
    with pytest.raises(UserError, match="add q8_0 to gguf"):
        check_page(settings_for(own, page=True))
    settings = settings_for(own, **ON, wllama_dir=str(own))
    with pytest.raises(UserError, match=r"wllama_dir is .*own, where there is no esm/index.min.js: name the unpacked"):
        check_page(settings)
    with tarfile.open(registry) as tar:
        tar.extractall(own, filter="data")
    registry.unlink()
    assert made(whole, wllama_dir=str(own / "package"))
    (own / "package" / "LICENCE").write_bytes(b"mine")
    with pytest.raises(UserError, match="LICENCE is not that of version"):
        made(whole, wllama_dir=str(own / "package"))


def test_the_page_is_sent_as_a_private_static_space_and_the_model_without_it(whole, registry, hub, monkeypatch):
    settings, repeats = settings_for(whole, **ON, push_page=True), {"found": []}
    page = make_page(settings, whole)
    assert upload(whole, published_files(whole), settings, repeats) == ""
    assert upload_page(page, settings, repeats).startswith(f"{hub.url}/")
    assert hub.repos[REPO]["private"] and hub.repos[REPO]["sdk"] == "static"
    assert hub.repos[REPO]["files"] == {file.name: file.read_bytes() for file in page.iterdir()}
    assert upload_page(page, settings_for(whole, **ON), repeats) == ""
    (page / "it-Q8_0.gguf").rename(page / "it-Q8_0.unproven.gguf")
    monkeypatch.setattr("nbutils.core.llamacpp.PACKAGE", "no_such_package")
    for refused in (lambda: upload_page(page, settings, repeats), lambda: check_page(settings)):
        with pytest.raises(UserError, match=r"llama.cpp is not there to prove"):
            refused()


def test_the_command_makes_a_page_beside_the_run_and_hands_it_out_where_a_port_is_free(
    spare, registry, monkeypatch, capsys
):
    executed, before = [], {*spare.rglob("*")}

    def executes(job):
        executed.append(job.source.name)
        run_cells(job.source, **job.parameters)

    def serves(server):
        threading.Thread(target=server.handle_request).start()
        with urlopen(f"http://127.0.0.1:{server.server_port}/chat.json") as answer:
            assert json.load(answer)["about"].startswith("A chat model of")
        raise KeyboardInterrupt

    monkeypatch.setattr("nbutils.pipeline.run._execute", executes)
    monkeypatch.setenv("NBUTILS_PIPELINE", "tests")  # the cells run in this process, which holds the lock
    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", serves)
    few = ["-ppush=true", *(f"-pparity_{what}=2" for what in ("conversations", "replies", "tokens"))]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("nbutils.pipeline.page.PORT", port)
        line, own = ["page", "params/demo.yaml", "--run-dir", str(spare), *few], Run(Path(f"{spare}-page"))
        for options in ([], [], ["-pparity_replies=3", "--accept"]):
            if options:  # long work that is stale
                write_record(own.folder("publish") / RECORD, own.record("publish") | {"work_seconds": 3600.0})
                assert main([*line, options[0]]) == 1 and "--accept" in capsys.readouterr().err
            assert main([*line, *options]) == 0
            said = capsys.readouterr().out
            assert "The page is at http://127.0.0.1:" in said and f":{port}" not in said
    assert executed == ["06_publish.ipynb"] and {*spare.rglob("*")} - {spare / ".lock"} == before


def test_the_command_touches_no_other_run_that_is_called_like_the_pages(spare, refused):
    other = shutil.copytree(spare, spare.with_name(f"{spare.name}-page"))
    before = outputs_of(other)
    assert "no page has been made in it" in refused("page", "params/demo.yaml", "--run-dir", spare)
    assert outputs_of(other) == before
