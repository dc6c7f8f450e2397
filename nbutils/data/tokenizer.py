"""The tokenizer of a run: the base model's own, or for `tiny` a byte-level BPE trained on the run's train side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nbutils.core.files import replaced
from nbutils.core.run.models import TINY, ModelRef, train_bpe
from nbutils.data.batches import Source
from nbutils.data.fates import KEPT, opening_hash
from nbutils.data.row_filter import RowFilter, loaded_tokenizer
from nbutils.data.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_tokenizer(settings: DataSettings, sources: Sequence[Source], folder: Path) -> PreTrainedTokenizerBase:
    """The run's tokenizer with ChatML added, saved as `tokenizer/` in the stage's folder."""
    if settings.base_model == TINY:
        tokenizer = train_bpe(train_texts(settings, sources))
    else:
        tokenizer = ModelRef.parse(settings.base_model, revision=settings.base_revision).tokenizer()
    with replaced(folder / "tokenizer") as partial:
        tokenizer.save_pretrained(partial)
    loaded_tokenizer.cache_clear()
    return tokenizer


def train_texts(settings: DataSettings, sources: Sequence[Source]) -> Iterator[str]:
    """Texts of all conversations on the train side, cleaned as the filter cleans them."""
    for source in sources:
        rows = RowFilter(source.spec, source.shape.name, settings, Path())
        for batch in source.batches():
            for judged in rows.judged(batch.read(), batch.start)[1]:
                if judged.fate == KEPT and rows.side(opening_hash(judged.turns)) == "train":
                    yield from (text for _, text in judged.turns)
