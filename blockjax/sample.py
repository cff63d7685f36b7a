"""Continues a text with what a run of next_token learned, by any of its blocks.

    python -m blockjax.sample --workdir runs/text --blocks 1,4 --prompt "def " --tokens 100

The workdir is that of a run, or a folder that `blockjax.export --format safetensors` wrote. A text ends where the model
says that its document does, or after --tokens.
"""

import argparse
import os
import sys

import jax
import numpy as np
from absl import logging

from blockjax.checks import UINT32, Bound, given_path
from blockjax.data.tokens import Tokens
from blockjax.models.generate import generate
from blockjax.report.command import begin, check_devices
from blockjax.weights.loading import Run, open_text_weights
from blockjax.weights.text import TextWeights

_SAMPLES = 1024  # at most, and that is far more than anybody reads


def main() -> None:
    """Reads the flags, and prints texts."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workdir", required=True, help="a run's workdir, or a folder that was exported")
    add(
        "--blocks",
        help="the first N blocks; for several N, separated by commas, a text of each (default: all)",
    )
    add(
        "--prompt", default="", help="the text to continue (default: none, the start of a document)"
    )
    add(
        "--tokens",
        type=int,
        help="at most so many new tokens (default: as many as the context has)",
    )
    add(
        "--temperature",
        type=float,
        default=1.0,
        help="divides logits; 0 is the most likely token (default: %(default)s)",
    )
    add("--top_k", type=int, help="draw from so many of the likeliest tokens (default: all)")
    add("--samples", type=int, default=1, help="texts of each block (default: %(default)s)")
    add("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    arguments = vars(parser.parse_args())
    logging.set_verbosity(logging.WARNING)
    begin()
    check_devices()
    workdir, blocks, samples = (arguments.pop(n) for n in ("workdir", "blocks", "samples"))
    try:
        depths = _depths(blocks)
        weights = open_text_weights(given_path("--workdir", workdir))
        for depth in depths:
            for i, text in enumerate(
                sample(weights, blocks=depth, samples=samples, **arguments), start=1
            ):
                title = [f"block {depth}"] * (len(depths) > 1) + [f"sample {i}"] * (samples > 1)
                print(f"{', '.join(title)}:\n{text}\n" if title else text, flush=True)
    except ValueError as error:
        sys.exit(f"error: {error}")


def sample(
    source: TextWeights | Run | str | os.PathLike,
    prompt: str = "",
    *,
    blocks: int | None = None,
    tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    samples: int = 1,
    seed: int = 0,
) -> list[str]:
    """Continues a text. As in training the separator stands before it.

    Args:
      source: a run of next_token or its workdir; a folder that was exported in our own format; or what
        `blockjax.weights.loading.open_text_weights` gives, which opens it once for several calls.
      prompt: the text.
      blocks: the first so many, with the head of the last of them; default all.
      tokens: at most so many new ones; default as many as the context has left.
      temperature: divides logits; 0: the most likely token each time.
      top_k: draw from so many of the likeliest tokens.
      samples: how many texts.
      seed: of what is drawn; with the same one the first texts are the same however many there are.

    Returns:
      The new texts, without the prompt; bytes that are not UTF-8 are U+FFFD.

    Raises:
      ValueError: the source is not a model that predicts next tokens, has no such block, or the text does not fit its
        context; or a number cannot be used.
    """
    for name, value, bound in (
        ("--tokens", tokens, Bound(1)),
        ("--temperature", temperature, Bound(0, 100)),
        ("--samples", samples, Bound(1, _SAMPLES)),
        ("--seed", seed, Bound(0, UINT32)),
    ):
        if value is not None:
            bound.check(name, value)
    if isinstance(source, Run):
        weights, name = source.text_weights(), source.workdir
    elif isinstance(source, TextWeights):
        weights, name = source, "the model"
    else:
        weights, name = open_text_weights(source), source
    if prompt != prompt.encode(errors="replace").decode():
        raise ValueError("--prompt holds bytes that are not UTF-8; give text")
    weights = weights.first(blocks)
    model, encoder = weights.model, weights.model.encoder
    if not encoder.causal:
        raise ValueError(
            f"{name} was trained by masked_token, which reads what comes after a token too; sample is for next_token"
        )
    if top_k is not None:
        Bound(1, encoder.vocabulary - 1).check("--top_k", top_k)
    tokenizer = weights.tokens()
    prompt_P = np.concatenate([[model.separator], tokenizer.encode(prompt)]).astype(np.int32)
    room = encoder.context + 1 - len(prompt_P)
    if room < 1 or (tokens or 1) > room:
        what = (
            f"give at most --tokens {room}, or a shorter one" if room > 0 else "give a shorter one"
        )
        raise ValueError(
            f"the prompt has {len(prompt_P) - 1} tokens, which with {tokens or 1} new ones are more than the "
            f"{encoder.context} of the context (model.context); {what}"
        )
    # A few lengths, and so a few programs.
    padded = np.zeros(min(encoder.context, _power_of_two(len(prompt_P))), np.int32)
    padded[: len(prompt_P)] = prompt_P
    rngs = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(samples))
    written = generate(
        model,
        weights.params,
        padded,
        rngs,
        length=len(prompt_P),
        most=tokens or room,
        temperature=float(temperature),
        top_k=top_k,
    )
    return [_text(tokenizer, model.separator, prompt_P, row) for row in np.asarray(written)]


def _text(tokenizer: Tokens, separator, prompt_P, new_N):
    """Returns the text of new tokens up to the separator."""
    is_end_N = new_N == separator
    new_N = new_N[: np.argmax(is_end_N)] if is_end_N.any() else new_N
    # Some tokenizers decode a token in another way where nothing stands before it.
    before, whole = tokenizer.decode(prompt_P), tokenizer.decode(np.concatenate([prompt_P, new_N]))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new_N)


def _power_of_two(number):
    return 1 << (number - 1).bit_length()


def _depths(text):
    try:
        return [None] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--blocks {text!r} should be numbers separated by commas") from None


if __name__ == "__main__":
    main()
