import gzip
import lzma
import math
import random

import pytest

from blockjax.data.text_baselines import bits_per_byte_of_compressors


def test_repetition_is_found_by_compressors_and_not_by_frequencies():
    text = b"abcd" * 5_000
    bits = bits_per_byte_of_compressors(text, text)
    assert bits["unigram"] == pytest.approx(2)
    assert 0 < bits["gzip"] < 0.1 and 0 < bits["lzma"] < 0.1
    noise = random.Random(0).randbytes(50_000)  # longer than what gzip looks back
    bits = bits_per_byte_of_compressors(noise, noise * 2)
    assert bits["lzma"] < 4.1 and bits["gzip"] > 8


def test_random_bytes_take_eight_bits():
    noise = random.Random(0).randbytes(50_000)
    bits = bits_per_byte_of_compressors(noise, noise)
    assert 7.9 < bits["unigram"] <= bits["train_unigram"] < 8
    assert 8 <= bits["gzip"] < 8.1 and 8 <= bits["lzma"] < 8.1


def test_what_is_written_counts_as_a_whole():
    text = "".join(map(str, range(3_000))).encode()
    bits = bits_per_byte_of_compressors(b"x", text)
    assert bits["gzip"] == 8 * len(gzip.compress(text, 9)) / len(text)
    written = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert bits["lzma"] == 8 * written / len(text)


def test_frequencies_of_the_training_text_code_the_test_text():
    train, test = b"aab", b"abz"
    bits = bits_per_byte_of_compressors(train, test)
    expected = -sum(math.log2(count / (3 + 256)) for count in (3, 2, 1)) / 3
    assert bits["train_unigram"] == pytest.approx(expected)
    assert bits["unigram"] == pytest.approx(math.log2(3))


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match=r"test text is empty; change data\.source"):
        bits_per_byte_of_compressors(b"a", b"")
