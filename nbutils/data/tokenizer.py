"""The tokenizer of a run: the base model's own, or for `tiny` a byte-level BPE trained on the run's train side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nbutils.core.chatml import add_chatml
from nbutils.core.files import replaced
from nbutils.core.models import TINY, load_tokenizer
from nbutils.data.driver import row_work
from nbutils.data.fates import KEPT, conversation_hash, side_of
from nbutils.data.settings import DataSettings
from nbutils.data.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECES = 4093
"""With the three control tokens of ChatML the tiny model's vocabulary has 4,096 entries."""


def make_tokenizer(settings: DataSettings, sources: Sequence[Source], folder: Path) -> PreTrainedTokenizerBase:
    """The run's tokenizer with ChatML added, saved as `tokenizer/` in the stage's folder."""
    if settings.base_model == TINY:
        tokenizer = train_bpe(train_texts(settings, sources))
    else:
        tokenizer = load_tokenizer(settings.base_model, settings.base_revision)
    with replaced(folder / "tokenizer") as partial:
        tokenizer.save_pretrained(partial)
    return tokenizer


def train_bpe(texts: Iterable[str], pieces: int = PIECES) -> PreTrainedTokenizerBase:
    """A byte-level BPE of up to `pieces` pieces (256 of them the bytes), with ChatML's control tokens on top."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return add_chatml(PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False))


def train_texts(settings: DataSettings, sources: Sequence[Source]) -> Iterator[str]:
    """Texts of all conversations on the train side, cleaned as the batch function cleans them."""
    for source in sources:
        work = row_work(settings, source, Path())
        for batch in source.batches():
            for judged in work.judged(batch.read(), batch.start)[1]:
                if judged.fate == KEPT:
                    side = side_of(conversation_hash(judged.turns), settings.split_seed, settings.eval_fraction)
                    if side == "train":
                        yield from (text for _, text in judged.turns)
