"""Local files that a stage reads from outside its run folder: another content under the same name is another input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbutils.core.files import hash_of, local_hashes
from nbutils.core.run.models import TOKENIZER_FILES, files_of
from nbutils.core.stages import spec
from nbutils.pipeline.parameters import settings_of

FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"}


def model(folder: Path) -> Path:
    """Files of the names that a model's folder has, and two that are not the model's."""
    (folder / "runs").mkdir(parents=True)
    for name in (*FILES, "optimizer.pt", "runs/events.json"):
        (folder / name).write_text(f"{folder.name} {name}")
    return folder


def test_a_file_is_read_again_only_where_it_has_changed(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("one")
    before, stat = hash_of(file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_of(file) == before  # not looked into: as old and as large as before
    os.utime(file)
    assert hash_of(file) != before


def test_which_files_count(tmp_path):
    folder = model(tmp_path / "model")
    assert set(files_of(folder)) == FILES
    assert set(files_of(folder, TOKENIZER_FILES)) == FILES - {"model.safetensors"}
    (tmp_path / "model.gguf").write_text("quantised")
    assert set(files_of(tmp_path / "model.gguf", TOKENIZER_FILES)) == {"model.gguf"}
    assert files_of("tiny") == files_of("someone/on-the-hub") == files_of("") == {}
    assert list(local_hashes([folder / "runs", tmp_path / "absent", ""])) == [str(folder / "runs" / "events.json")]


CASES = [
    ("data", {"base_model": "model"}, "model/tokenizer.model"),
    ("data", {"base_model": "model"}, "model/tokenizer_config.json"),
    ("data", {"base_model": "model.gguf"}, "model.gguf"),
    ("data", {"datasets": ["rows.jsonl"]}, "rows.jsonl"),
    ("data", {"task_path": "tasks", "contamination_tasks": ["mine"]}, "tasks/mine.yaml"),
    ("train", {"base_model": "model"}, "model/model.safetensors"),
    ("train", {"base_model": "model.gguf"}, "model.gguf"),
    ("evaluate", {"peers": ["model"]}, "model/model.safetensors"),
    ("evaluate", {"task_path": "tasks"}, "tasks/mine.yaml"),
    ("chat", {"model": "model"}, "model/model.safetensors"),
    ("chat", {"compare_with": "model.gguf"}, "model.gguf"),
    ("chat", {"model": "step-000500"}, "run/train/checkpoints/step-000500/model.safetensors"),
]


@pytest.mark.parametrize("stage,values,file", CASES)
def test_the_content_of_what_a_stage_reads_is_part_of_its_key(tmp_path, monkeypatch, stage, values, file):
    monkeypatch.setattr("nbutils.core.files.project_root", lambda: tmp_path)
    model(tmp_path / "model")
    model(tmp_path / "run" / "train" / "checkpoints" / "step-000500")
    (tmp_path / "tasks").mkdir()
    for path in ("model.gguf", "rows.jsonl", "tasks/mine.yaml"):
        (tmp_path / path).write_text(path)
    asked = settings_of(spec(stage), {"run_dir": "run"} | values)
    before = asked.result_parameters()
    assert asked.result_parameters() == before
    (tmp_path / file).write_text("other content")
    assert asked.result_parameters() != before
