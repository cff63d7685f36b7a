import json
import pickle
import sys

import numpy as np
import pytest

from blockjax.data.tokens import ByteTokens, load_tokens

TEXT = "naïve <s> 😀\n\n  def f(x):\n\treturn x  "


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A byte-level BPE with a special of its own, which truncates and pads what it encodes."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def f(x): return x\n"] * 20, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=200)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def words_file(path, words):
    """Whole words, between white space that is left out; what is unknown is [UNK]."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    return path


def test_bytes_are_tokens():
    tokens = load_tokens(None)
    ids = tokens.encode(TEXT)
    assert ids.dtype == np.int32 and ids.tolist() == list(TEXT.encode())
    np.testing.assert_array_equal(tokens.encode(TEXT.encode()), ids)
    assert (tokens.separator, tokens.mask, tokens.vocabulary) == (256, 257, 258)
    assert tokens.lengths(TEXT).tolist() == [1] * len(TEXT.encode())
    assert tokens.decode([256, *ids, 257]) == TEXT
    assert tokens.decode([0x61, 0xC3, 256, 0x62]) == "a\ufffdb"
    assert len(tokens.encode("")) == 0 and tokens.decode([]) == ""


def test_a_file_gives_its_tokens_and_two_more(tokenizer_file):
    tokens = load_tokens(tokenizer_file)
    file = json.loads(tokenizer_file.read_text())
    own = {*file["model"]["vocab"].values(), *(added["id"] for added in file["added_tokens"])}
    assert tokens.separator == max(own) + 1
    assert (tokens.mask, tokens.vocabulary) == (max(own) + 2, max(own) + 3)
    ids = tokens.encode(TEXT)
    assert ids.dtype == np.int32 and 4 < len(ids) < len(TEXT.encode())
    assert 0 not in ids  # <s> is what the text spells
    np.testing.assert_array_equal(tokens.encode(TEXT.encode()), ids)
    assert tokens.decode([tokens.separator, *ids, tokens.mask]) == TEXT
    copy = pickle.loads(pickle.dumps(tokens))
    np.testing.assert_array_equal(copy.encode(TEXT), ids)
    assert copy.name == tokens.name == "tokenizer.json"


def test_every_byte_belongs_to_one_token(tokenizer_file, tmp_path):
    tokens = load_tokens(tokenizer_file)
    ids, lengths = tokens.encode(TEXT), tokens.lengths(TEXT)
    assert lengths.dtype == np.int32 and lengths.shape == ids.shape
    assert lengths.sum() == len(TEXT.encode())
    # A token that ends at a whole character has the bytes of its text, after those that began the character.
    at = 0
    for i, length in enumerate(lengths):
        at += length
        text = tokens.decode(ids[: i + 1])
        if not text.endswith("\ufffd"):
            assert TEXT.encode()[:at].decode() == text
    words = load_tokens(words_file(tmp_path / "t.json", {"[UNK]": 0, "a": 1, "bé": 7}))
    assert words.separator == 8  # ids have gaps
    assert words.encode("  a bé\n x  ").tolist() == [1, 7, 0]
    assert words.lengths("  a bé\n x  ").tolist() == [3, 4, 5]
    assert words.lengths(" ").tolist() == [] and words.encode(" ").dtype == np.int32


@pytest.mark.parametrize("content", [b"no json", b"{}", b"\xff\xfe", b""])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    pytest.importorskip("tokenizers")
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"data\.tokenizer names .*t\.json, which is not a tokenizer"
    ):
        load_tokens(tmp_path / "t.json")


def test_paths_that_lead_to_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.tokenizer names .*which is a folder; name a tok"):
        load_tokens(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(ValueError, match=r"a folder; name the file in it, .*/tokenizer\.json"):
        load_tokens(tmp_path)
    near = rf"does not exist; did you mean '{tmp_path}/tokenizer.json'\?"
    with pytest.raises(ValueError, match=near):
        load_tokens(tmp_path / "tokeniser.json")
    with pytest.raises(ValueError, match=r"does not exist; name a tokenizer"):
        load_tokens(tmp_path / "no" / "where.json")


def test_the_library_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not installed; run pip install 'blockjax\[text\]'"):
        load_tokens(tmp_path / "t.json")
    assert isinstance(load_tokens(None), ByteTokens)
