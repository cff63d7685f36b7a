"""What a batch holds: the one description that loading, compiling, measuring and reading go by."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a batch.

    Attributes:
      shape: of one example; a batch adds a leading axis B.
      dtype: of its values.
      values: integers are from 0 to this, exclusive; None for floats.
    """

    shape: tuple[int, ...]
    dtype: str
    values: int | None = None

    def random(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Returns a host batch of this array, uniform values; floats are from 1/2 to 2, as aspects are."""
        shape, dtype = (size, *self.shape), np.dtype(self.dtype)
        if np.issubdtype(dtype, np.floating):
            return rng.uniform(0.5, 2.0, shape).astype(dtype)
        return rng.integers(0, self.values, shape, dtype)


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """The arrays of a batch, by name. Hashable, so that compiled functions can be chosen by it.

    Attributes:
      arrays: (name, `ArraySpec`) pairs. The first is what the encoder reads.
      unit: in which speed is told, "images" or "tokens".
      units: of an example.
    """

    arrays: tuple[tuple[str, ArraySpec], ...]
    unit: str = "images"
    units: int = 1

    @property
    def encoded(self) -> str:
        """The name of the array that the encoder reads."""
        return self.arrays[0][0]

    @property
    def example_bytes(self) -> int:
        """Bytes of one example."""
        return sum(
            int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
            for _, spec in self.arrays
        )

    def abstract(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a batch of `size` examples."""
        return {
            name: jax.ShapeDtypeStruct((size, *spec.shape), np.dtype(spec.dtype))
            for name, spec in self.arrays
        }

    def stacked(self, batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns several host batches as one array for each name, [batches, B, values of an example].

        Examples are flat because of the layouts that XLA gives them: it would lay out images of all batches anew for
        patches, in a copy, before it takes the first.
        """
        return {
            name: np.stack([batch[name] for batch in batches]).reshape(
                _stacked(spec.shape, len(batches), len(batches[0][name]))
            )
            for name, spec in self.arrays
        }

    def abstract_stacked(self, batches: int, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of what `stacked` makes of so many batches of `size` examples."""
        return {
            name: jax.ShapeDtypeStruct(_stacked(spec.shape, batches, size), np.dtype(spec.dtype))
            for name, spec in self.arrays
        }

    def shaped(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns one batch with every example in its own shape, of one that may be a part of `stacked`."""
        return {name: batch[name].reshape(-1, *spec.shape) for name, spec in self.arrays}

    def chosen(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns those arrays of a host batch that are described; a source may give more."""
        return {name: batch[name] for name, _ in self.arrays}

    def random(self, size: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Returns a host batch of so many examples with uniform values, to time and measure with."""
        rng = np.random.default_rng(seed)
        return {name: spec.random(size, rng) for name, spec in self.arrays}


def _stacked(shape, batches, size):
    return (batches, size, math.prod(shape)) if shape else (batches, size)


def image_batch(
    image_size: int, classes: int | None = None, *, stretched: bool = False
) -> BatchSpec:
    """Returns the description of what `blockjax.data.train` makes of images.

    Args:
      image_size: side in pixels.
      classes: number of labels; None where a batch has no labels.
      stretched: whether images of any aspect became squares.

    Returns:
      "image", uint8 [B, image_size, image_size, 3]; "label", int32 [B], from 0 to `classes`, exclusive; and of
      stretched images "aspect", float32 [B], their width / height before.
    """
    arrays = [("image", ArraySpec((image_size, image_size, 3), "uint8", 256))]
    if classes is not None:
        arrays.append(("label", ArraySpec((), "int32", classes)))
    if stretched:
        arrays.append(("aspect", ArraySpec((), "float32")))
    return BatchSpec(tuple(arrays))


def text_batch(context: int, vocabulary: int) -> BatchSpec:
    """Returns the description of what `blockjax.data.text_batches` makes of text.

    Args:
      context: tokens of a sequence.
      vocabulary: how many tokens there are, with a separator and a mask.

    Returns:
      "tokens", int32 [B, context], from 0 to `vocabulary`, exclusive.
    """
    arrays = (("tokens", ArraySpec((context,), "int32", vocabulary)),)
    return BatchSpec(arrays, unit="tokens", units=context)
