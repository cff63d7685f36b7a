"""Training batches of text: shuffled, sharded over processes, resumable."""

import numpy as np

from blockjax.data.iterator import Order, TrainIterator
from blockjax.data.sources.source import Source


class _TextBatches:
    def __init__(self, source: Source, order: Order):
        self._source, self._order = source, order

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        sequences = [self._source[int(i)]["tokens"] for i in self._order.indices(position)]
        return {"tokens": np.stack(sequences)}


def text_train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    rows: np.ndarray | None = None,
    workers: int = 0,
) -> TrainIterator:
    """Makes the training batches of this process, without end: "tokens", int32 [B, context].

    Every epoch has an order of its own and contains every sequence once, over all processes.

    Args:
      source: the sequences, a `TextSource` or a part of one.
      batch_size: of all processes together.
      seed: of the order.
      rows: which sequences of each batch this process makes, [B]; default all.
      workers: processes that make batches, each with a copy of the text; 0 means threads, which are enough.
    """
    rows_B = np.arange(batch_size) if rows is None else np.asarray(rows)
    order = Order(len(source), seed, batch_size, rows_B)
    fields = "data.source, data.train_split, data.tokenizer and model.context"
    return TrainIterator(_TextBatches(source, order), order, workers, "sequences", fields)
