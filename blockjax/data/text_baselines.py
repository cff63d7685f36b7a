"""What general compressors make of a text, in the unit of language models: bits per byte."""

import gzip
import lzma

import numpy as np


def bits_per_byte_of_compressors(train: bytes, test: bytes) -> dict[str, float]:
    """Returns how many bits a byte of the test text takes, by the name of what codes it; a uniform code takes 8.

    Args:
      train: the text that only the last one learns from.
      test: the text that is coded.

    Returns:
      "gzip": by gzip at level 9, header included;
      "lzma": by xz at its preset 9, extreme, header included;
      "unigram": the entropy of the test text's own byte frequencies;
      "train_unigram": the cross-entropy of the training text's byte frequencies on the test text, each of the 256
        counts raised by one so that a byte which only the test text has is not impossible.

    Raises:
      ValueError: there is no test text.
    """
    if not test:
        raise ValueError("the test text is empty; change data.source or data.test_split")
    counts_V, train_V = _counts(test), _counts(train) + 1
    return {
        "gzip": 8 * len(gzip.compress(test, compresslevel=9, mtime=0)) / len(test),
        "lzma": 8 * len(lzma.compress(test, preset=9 | lzma.PRESET_EXTREME)) / len(test),
        "unigram": _cross_entropy(counts_V, np.maximum(counts_V, 1), len(test)),
        "train_unigram": _cross_entropy(counts_V, train_V, train_V.sum()),
    }


def _counts(text):
    return np.bincount(np.frombuffer(text, np.uint8), minlength=256)


def _cross_entropy(counts_V, model_V, total):
    """Bits per byte of a text by its counts, under frequencies `model_V` / `total`."""
    return float(-(counts_V / counts_V.sum() * np.log2(model_V / total)).sum())
