import pickle
import subprocess
import sys

import numpy as np
import pytest
from absl import logging

from blockjax.data.sources import open_source
from blockjax.data.sources.documents import Documents
from blockjax.data.sources.text import TextSource, open_text
from blockjax.data.tokens import ByteTokens, load_tokens

SEPARATOR = ByteTokens.separator
TEXTS = [b"abc", "é".encode(), b"fghijkl"]


def source_of(texts, context, tokens=None):
    documents = Documents([f"file {i}" for i in range(len(texts))], texts, f"{len(texts)} files")
    return TextSource(documents, tokens or ByteTokens(), context, "title")


def words(path):
    """Words and nothing between them."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "a": 1, "bé": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    return path


def test_documents_are_packed():
    source = source_of(TEXTS, 4)
    stream = [SEPARATOR, *b"abc", SEPARATOR, *"é".encode(), SEPARATOR, *b"fghi"]
    assert source.tokens.reshape(-1).tolist() == stream  # "jkl" is left over
    assert source.tokens.dtype == np.uint16 and source.tokens.shape == (3, 4) and len(source) == 3
    example = source[1]
    assert example.keys() == {"tokens"} and example["tokens"].dtype == np.int32
    assert example["tokens"].tolist() == stream[4:8]
    assert (source.labelled, source.labels, source.class_names) == (False, None, None)
    assert source.description == "title: 3 sequences of 4 tokens (3 files, 0.0 kB, bytes)"
    names = [source.name(i) for i in range(3)]
    assert names == [f"title, sequence {i}, from file {i}" for i in range(3)]
    assert source_of(TEXTS, 3).name(2).endswith("file 1")  # its last byte comes first


def test_bytes_are_those_of_the_sequences():
    source = source_of(TEXTS, 4)
    assert source.text_bytes() == "abcéfghi".encode() and source.bytes == 9
    assert source.lengths.tolist() == [[0, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]]


def test_bytes_of_words_are_those_of_the_text(tmp_path):
    texts = ["a bé\n".encode(), b"  ", b" a x a a"]
    source = source_of(texts, 3, load_tokens(words(tmp_path / "t.json")))
    assert source.tokens.tolist() == [[3, 1, 2], [3, 1, 0]]  # no token of "  ", so no document
    assert source.lengths.tolist() == [[0, 1, 5], [0, 2, 2]]
    assert source.text_bytes() == "a bé\n a x".encode() and source.bytes == 10
    assert source.description.endswith("t.json)")


def test_large_vocabularies_have_wider_tokens():
    class Wide(ByteTokens):
        vocabulary = 2**16 + 1

    assert source_of(TEXTS, 4, Wide()).tokens.dtype == np.int32


def test_sources_can_be_pickled(tmp_path):
    source = source_of(["a bé a".encode()] * 4, 4, load_tokens(words(tmp_path / "t.json")))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.tokens, source.tokens)
    assert (copy.bytes, copy.description, copy.name(1)) == (
        source.bytes,
        source.description,
        source.name(1),
    )


def test_a_text_shorter_than_a_sequence_is_refused(tmp_path):
    message = (
        r"title has 15 tokens.*model\.context=16; set model\.context to at most 15, or data\.source"
    )
    with pytest.raises(ValueError, match=message):
        source_of(TEXTS, 16)
    assert len(source_of(TEXTS, 15)) == 1
    with pytest.raises(ValueError, match=r"no tokens \(t\.json\); change .*data\.tokenizer"):
        source_of([b" \n"], 4, load_tokens(words(tmp_path / "t.json")))


def test_text_is_opened_with_its_tokens(tmp_path):
    (tmp_path / "train.txt").write_text("a bé a bé a bé a bé\n" * 20)
    spec = f"text:{tmp_path}/train.txt"
    source = open_text(spec, "train", context=8)
    assert source.tokenizer.vocabulary == 258
    assert source.description.startswith(f"{spec} train: ")
    source = open_text(spec, "train", context=8, tokenizer=words(tmp_path / "t.json"))
    assert source.tokenizer.vocabulary == 5
    assert source.tokens[0].tolist() == [3, 1, 2, 1, 2, 1, 2, 1]
    with pytest.raises(ValueError, match=r"data\.tokenizer names"):
        open_text(spec, "train", context=8, tokenizer=tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"model\.context must be at least 1, not 0"):
        open_text(spec, "train", context=0)


def test_tokenizers_that_lose_text_are_named(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    (tmp_path / "a.txt").write_text("a bé  a" * 20)
    open_text(f"text:{tmp_path}/a.txt", "train", context=8)
    assert not lines
    open_text(f"text:{tmp_path}/a.txt", "train", context=8, tokenizer=words(tmp_path / "t.json"))
    assert len(lines) == 1 and "a.txt, turned into tokens" in lines[0] and "t.json" in lines[0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("embedded", "'embedded', which holds images; set objective.*text:stdlib"),
        ("embedded:scenes", "which holds images"),
        ("folder:/x", "which holds images"),
        ("arrays:/x.npz", "which holds images"),
        ("txt:/x", r"not text; did you mean 'text:/x'\? it may be one of text:<file>"),
        ("stdlib", r"did you mean 'text:stdlib'\?"),
        ("text:", "'text:', which is not text"),
        ("", "'', which is not text; it may be one of"),
    ],
)
def test_what_is_no_text_is_refused(spec, message):
    with pytest.raises(ValueError, match=rf"data\.source is .*{message}"):
        open_text(spec, "train", context=8)


def test_paths_without_a_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"did you mean 'text:{tmp_path}'\?"):
        open_text(str(tmp_path), "train", context=8)


def test_text_is_no_source_of_images():
    with pytest.raises(ValueError, match=r"is 'text:stdlib', which is text, for .*next_token.*obj"):
        open_source("text:stdlib", "train")


def test_text_is_read_without_jax():
    code = "import sys, blockjax.data.sources.text; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
