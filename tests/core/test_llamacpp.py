"""llama.cpp's server on a real GGUF file, and what is said where there is none."""

import pytest

from nbutils.core.errors import UserError
from nbutils.core.llamacpp import LlamaServer


def test_a_model_is_asked_and_streamed(llama_cpp, smollm2_gguf, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")  # one number for each level of nesting
    with LlamaServer(smollm2_gguf, 64) as server:
        ids = server.ask("tokenize", content="<|im_start|>user\nHi<|im_end|>", parse_special=True)["tokens"]
        assert ids[0] == 1 and ids[-1] == 2 and server.warnings == []
        pieces = list(server.stream(prompt=ids, n_predict=3, temperature=0))
        whole = server.ask("completion", prompt=ids, n_predict=3, temperature=0, return_tokens=True)
        assert [i for piece in pieces for i in piece["tokens"]] == whole["tokens"]
        with pytest.raises(UserError, match=r"cannot answer a request to /completion: .*exceeds"):
            server.ask("completion", prompt=ids * 100)


def test_a_truncated_file_is_one_sentence(llama_cpp, smollm2_gguf, tmp_path):
    (tmp_path / "half.gguf").write_bytes(smollm2_gguf.read_bytes()[:1_000_000])
    with pytest.raises(UserError, match=r"llama.cpp cannot read .*half.gguf: .*; make the file again"):
        LlamaServer(tmp_path / "half.gguf")
