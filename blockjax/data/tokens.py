"""Text as numbers: bytes, or the vocabulary of a tokenizer.json."""

import os

import numpy as np

from blockjax.checks import given_path, near_path

_SPECIALS = ("<|doc|>", "<|mask|>")  # the separator, the mask: after the ids of text, in this order


class ByteTokens:
    """Each byte of UTF-8 is a token, 0 to 255; nothing has to be learned or fetched.

    Attributes:
      name: for logs.
      separator: the id that begins every document, 256.
      mask: the id that hides a token, 257.
      vocabulary: how many ids there are, 258.
    """

    name = "bytes"
    separator, mask, vocabulary = 256, 257, 258

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the ids of a text, int32 [T]."""
        raw = text.encode() if isinstance(text, str) else text
        return np.frombuffer(raw, np.uint8).astype(np.int32)

    def lengths(self, text: str | bytes) -> np.ndarray:
        """Returns how many bytes of the text each of its tokens stands for, int32 [T]; the sum is all of them."""
        return np.ones(len(self.encode(text)), np.int32)

    def decode(self, ids) -> str:
        """Returns the text of ids, without specials; bytes that are not UTF-8 become U+FFFD."""
        ids = np.asarray(ids)
        return ids[ids < self.separator].astype(np.uint8).tobytes().decode(errors="replace")


class FileTokens:
    """The tokens of a tokenizer.json, which the library `tokenizers` reads.

    A separator and a mask are appended to the file's own ids, whatever specials it has. Those of the file are never
    inserted, and where a text spells one it is text.

    Attributes:
      name: for logs.
      separator: the id that begins every document, the first after the file's own.
      mask: the id that hides a token, the one after that.
      vocabulary: how many ids there are, with these two.
    """

    def __init__(self, name: str, definition: str):
        """Takes the content of a tokenizer.json.

        Args:
          name: for logs.
          definition: its text.

        Raises:
          ImportError: the library `tokenizers` is not installed.
          Exception: it is not such a file; the library raises nothing more particular.
        """
        import tokenizers

        self.name, self._definition = name, definition
        self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        # Ids may have gaps, so the greatest counts and not their number.
        self.separator = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.mask = self.separator + 1
        self.vocabulary = self.separator + len(_SPECIALS)

    def __reduce__(self):
        # The library's own pickle forgets that spelled specials are text.
        return FileTokens, (self.name, self._definition)

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the ids of a text, int32 [T]."""
        return np.array(self._encoded(text).ids, np.int32)

    def lengths(self, text: str | bytes) -> np.ndarray:
        """Returns how many bytes of the text each of its tokens stands for, int32 [T]; the sum is all of them.

        What the tokenizer leaves out, such as white space, counts with the token after it, and at the end of the text
        with the last; of tokens that share a character the first has all of its bytes.
        """
        text = _string(text)
        offsets_T2 = np.array(self._encoded(text).offsets, np.int64).reshape(-1, 2)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
        places = np.concatenate([[0], np.cumsum(widths)])  # of characters among bytes
        ends_T = np.maximum.accumulate(places[offsets_T2[:, 1]])
        ends_T[-1:] = places[-1]
        return np.diff(ends_T, prepend=0).astype(np.int32)

    def decode(self, ids) -> str:
        """Returns the text of ids, without specials, as far as the tokenizer keeps it."""
        ids = np.asarray(ids)
        return self._tokenizer.decode(ids[ids < self.separator].tolist(), skip_special_tokens=True)

    def _encoded(self, text):
        return self._tokenizer.encode(_string(text), add_special_tokens=False)


Tokens = ByteTokens | FileTokens


def load_tokens(path: str | os.PathLike | None) -> Tokens:
    """Returns the tokens of a tokenizer.json, or bytes where there is none.

    Raises:
      ValueError: the file is not there or is not a tokenizer.json, or the library that reads it is not installed.
    """
    if path is None:
        return ByteTokens()
    path = given_path("data.tokenizer", path)
    if path.is_dir():
        inside = path / "tokenizer.json"
        hint = f"the file in it, {inside}" if inside.is_file() else "a tokenizer.json"
        raise ValueError(
            f"data.tokenizer names {path}, which is a folder; name {hint}, or leave data.tokenizer out for bytes"
        )
    if not path.exists():
        raise ValueError(
            f"data.tokenizer names {path}, which does not exist; {near_path(path)}name a tokenizer.json, or leave "
            "data.tokenizer out for bytes"
        )
    try:
        return FileTokens(path.name, path.read_text("utf-8"))
    except ImportError as error:
        raise ValueError(
            f"data.tokenizer names {path}, and the library that reads it is not installed; run pip install "
            "'blockjax[text]', or leave data.tokenizer out for bytes"
        ) from error
    except Exception as error:  # the library raises no class of its own
        raise ValueError(
            f"data.tokenizer names {path}, which is not a tokenizer.json of the library tokenizers ({error}); name "
            "one, or leave data.tokenizer out for bytes"
        ) from error


def _string(text):
    return text if isinstance(text, str) else text.decode()
