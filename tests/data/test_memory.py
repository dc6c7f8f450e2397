"""Memory stays flat as the input grows: the whole stage on 10,000 and on 100,000 rows, no two alike."""

import random
import sys
import time
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nbutils.core.files import read_json
from nbutils.core.run.models import tiny_config
from tests.conftest import ROOT
from tests.data.making import chat, make, write_lines

WORDS = [f"word{number:04d}" for number in range(1_000)]
FEW, MANY = 10_000, 100_000


def write_base(folder):
    """A tokenizer that costs next to nothing: a piece for each word."""
    pieces = {word: number for number, word in enumerate(["?", *WORDS, "user", "assistant"])}
    raw = Tokenizer(models.WordLevel(pieces, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    tokenizer.save_pretrained(folder)
    tiny_config(len(tokenizer), 1024, 0, 0).save_pretrained(folder)
    return str(folder)


def rows(count):
    """Conversations of two turns with 150 words each; one in fifty is too long."""
    rng = random.Random(0)
    for number in range(count):
        asked, answered = (" ".join(rng.choices(WORDS, k=150)) for _ in "ab")
        yield chat(asked, answered * (10 if number % 50 == 0 else 1))


def peak(*arguments):
    """Peak memory in MiB of the stage and all its children, without what is mapped from files.

    Pages of files are the system's to take back: how many are there is chance. Shared ones are divided among sharers.
    """
    process = psutil.Popen([sys.executable, "-m", __name__, *arguments], cwd=ROOT)
    highest = 0.0
    while process.poll() is None:
        total = 0
        for one in (process, *process.children(recursive=True)):
            try:
                lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # it has just ended
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
        highest = max(highest, total / 2**10)
        time.sleep(0.3)
    assert process.returncode == 0
    return highest


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="proportional memory is told by Linux alone")
def test_peak_memory_is_flat(tmp_path):
    base, peaks = write_base(tmp_path / "base"), {}
    for count in (FEW, MANY):
        path, run = tmp_path / f"{count}.jsonl", tmp_path / str(count)
        peaks[count] = peak(base, write_lines(path, rows(count)), str(run))
        assert read_json(run / "data" / "summary.json")["rows"] == count
    print(f"peak memory: {peaks[FEW]:.0f} MiB, {peaks[MANY]:.0f} MiB on {path.stat().st_size / 2**20:.0f} MiB of text")
    # One hash for each row is kept; 128 MiB of ids would not be let pass, nor the texts.
    assert peaks[MANY] <= 1.2 * peaks[FEW]


if __name__ == "__main__":
    base, path, run = sys.argv[1:]
    make(Path(run), [path], base_model=base, max_length=1024, eval_fraction=0.08, data_processes=2)
