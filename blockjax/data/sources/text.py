"""Text as sequences of tokens, all of the same length."""

import difflib
import functools
import os

import numpy as np
from absl import logging

from blockjax.checks import Bound
from blockjax.data.sources.documents import (
    STDLIB,
    Documents,
    path_documents,
    stdlib_documents,
    tfds_documents,
)
from blockjax.data.sources.source import Source
from blockjax.data.tokens import Tokens, load_tokens

KINDS = ("text:<file>", "text:<folder>", f"text:{STDLIB}", "tfds:<name>")
_SAMPLE = 2**14  # bytes of text that show whether a tokenizer keeps all of it
_IMAGES = ("embedded", "folder", "arrays")


class TextSource(Source):
    """Documents one after another, a separator before each, cut into sequences; what is left at the end is dropped.

    `source[i]` is a dict with `tokens`, int32 [context].

    Attributes:
      tokens: all sequences, [N, context], uint16 where the vocabulary allows it, else int32.
      tokenizer: what the tokens are of: encodes and decodes, and says which are separator and mask.
    """

    labelled = False
    class_names = None

    def __init__(self, documents: Documents, tokenizer: Tokens, context: int, title: str):
        """Encodes all documents; those that have no token are left out.

        Args:
          documents: in the order in which they are read.
          tokenizer: bytes, or those of a file.
          context: tokens of a sequence, separators among them.
          title: the start of the description, and what to call the text in messages.

        Raises:
          ValueError: it is not as long as one sequence.
        """
        self.tokenizer, self._title = tokenizer, title
        dtype = np.uint16 if tokenizer.vocabulary <= 2**16 else np.int32
        parts, names, texts = [], [], []
        for name, text in zip(documents.names, documents.texts, strict=True):
            ids_T = tokenizer.encode(text).astype(dtype)
            if len(ids_T):
                parts += [np.array([tokenizer.separator], dtype), ids_T]
                names.append(name)
                texts.append(text)
        stream_T = np.concatenate(parts) if parts else np.zeros(0, dtype)
        count = len(stream_T) // context
        if not count:
            raise ValueError(
                f"{title} has {len(stream_T):,} tokens ({tokenizer.name}, separators among them), and a sequence is "
                f"model.context={context}; set model.context to at most {len(stream_T)}, or data.source to more text"
                if len(stream_T)
                else f"{title} has no tokens ({tokenizer.name}); change data.source or data.tokenizer"
            )
        self.tokens = stream_T[: count * context].reshape(count, context)
        self._names, self._texts = names, texts
        # Where each document's separator is.
        self._starts = np.cumsum([0, *(1 + len(part) for part in parts[1::2])])[:-1]
        size = sum(map(len, texts)) / 1e6
        size = f"{size:,.1f} MB" if size >= 1 else f"{size * 1e3:,.1f} kB"
        of = f"{documents.what}, {size}, {tokenizer.name}"
        self.description = f"{title}: {count:,} sequences of {context} tokens ({of})"

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict:
        return {"tokens": self.tokens[index].astype(np.int32)}

    @property
    def labels(self) -> None:
        return None

    def name(self, index: int) -> str:
        first = index * self.tokens.shape[1]
        document = np.searchsorted(self._starts, first, side="right") - 1
        return f"{self._title}, sequence {index}, from {self._names[document]}"

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """How many bytes of text each token stands for, int32 [N, context]; separators stand for none.

        With them a loss in bits becomes one per byte of text, whatever the tokenizer; see `FileTokens.lengths`.
        Encodes the text again, once.
        """
        parts = [
            part
            for text in self._texts
            for part in (np.zeros(1, np.int32), self.tokenizer.lengths(text))
        ]
        return np.concatenate(parts)[: self.tokens.size].reshape(self.tokens.shape)

    def text_bytes(self) -> bytes:
        """Returns the text of all sequences in UTF-8; it may end within a character."""
        return b"".join(self._texts)[: self.bytes]

    @property
    def bytes(self) -> int:
        """How many bytes of UTF-8 the text of all sequences has."""
        return int(self.lengths.sum(dtype=np.int64))


def open_text(
    spec: str,
    split: str,
    *,
    context: int,
    tokenizer: str | os.PathLike | None = None,
    data_dir: str | None = None,
) -> TextSource:
    """Opens one split of a text; never downloads.

    Args:
      spec: `text:<file>`; `text:<folder>`, all files below it; `text:stdlib`, the source files of Python's standard
        library; `tfds:<name>`, a prepared TFDS data set with a Text feature.
      split: `train`, `test` or another split of the text, or a slice such as `train[:10%]`, which is of files or
        examples. Where there is no test part it is one file in ten, or of a single file the last tenth.
      context: tokens of a sequence.
      tokenizer: a tokenizer.json; None means bytes.
      data_dir: the directory of TFDS data sets; None means $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      DatasetUnavailable: the TFDS data set is unknown or not prepared, or has no text.
      ValueError: `spec`, `split` or `tokenizer` does not name anything that can be read, the text is not UTF-8, or it
        is shorter than `context`.
    """
    Bound(low=1).check("model.context", context)
    kind, _, rest = spec.partition(":")
    tokens = load_tokens(tokenizer)
    if kind == "text" and rest == STDLIB:
        documents = stdlib_documents(split)
    elif kind == "text" and rest:
        documents = path_documents(rest, split)
    elif kind == "tfds" and rest:
        documents = tfds_documents(rest, split, data_dir)
    elif kind in _IMAGES:
        raise ValueError(
            f"data.source is {spec!r}, which holds images; set objective to one of images, such as mae, or data.source "
            f"to text: {', '.join(KINDS)}"
        )
    else:
        raise ValueError(
            f"data.source is {spec!r}, which is not text; {_did_you_mean(spec)}it may be one of {', '.join(KINDS)}"
        )
    _warn_of_losses(documents, tokens)
    return TextSource(documents, tokens, context, f"{spec} {split}")


def _warn_of_losses(documents, tokens):
    text = documents.texts[0][:_SAMPLE].decode(errors="ignore")
    if tokens.decode(tokens.encode(text)) != text:
        logging.warning(
            "%s, turned into tokens of data.tokenizer=%s and back, is not what it was: losses per byte look better "
            "than those of tokenizers that keep all of the text.",
            documents.names[0],
            tokens.name,
        )


def _did_you_mean(spec: str) -> str:
    kind, _, rest = spec.partition(":")
    if spec == STDLIB or (spec and os.path.exists(spec)):
        near = f"text:{spec}"
    else:
        kinds = difflib.get_close_matches(kind, ("text", "tfds"), n=1)
        near = f"{kinds[0]}:{rest or '...'}" if kinds else ""
    return f"did you mean {near!r}? " if near else ""
