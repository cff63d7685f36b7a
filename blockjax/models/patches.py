"""Images as patches, and pixels as the numbers a network sees."""

import jax
import jax.numpy as jnp
import numpy as np

# Per-channel mean and standard deviation of ImageNet's training images, of pixels in [0, 1], as in MAE's recipe.
CHANNEL_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
CHANNEL_STD = np.array([0.229, 0.224, 0.225], np.float32)


def patchify(images_BHWC: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images into patches in raster order; a patch is flattened as (row, column, channel). [B, N, P]."""
    batch, height, width, channels = images_BHWC.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images_BHWC.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches_BNP: jax.Array, patch_size: int, grid: tuple[int, int]) -> jax.Array:
    """Undoes `patchify`: [B, N, P] to [B, H, W, C]."""
    rows, columns = grid
    cut = patches_BNP.reshape(patches_BNP.shape[0], rows, columns, patch_size, patch_size, -1)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(
        patches_BNP.shape[0], rows * patch_size, columns * patch_size, -1
    )


def standardize(patches_BNP: jax.Array) -> jax.Array:
    """Turns uint8 pixels of patches into float32 of about zero mean and unit variance per channel."""
    return standardize_unit(patches_BNP.astype(jnp.float32) / 255.0)


def standardize_unit(patches: jax.Array) -> jax.Array:
    """Does what `standardize` does, for float pixels in [0, 1], [..., P]."""
    mean, std = _statistics_for(patches)
    return (patches - mean) / std


def unstandardize(patches_BNP: jax.Array) -> jax.Array:
    """Undoes `standardize`, to float pixels in [0, 1]."""
    mean, std = _statistics_for(patches_BNP)
    return jnp.clip(patches_BNP * std + mean, 0.0, 1.0)


def pixel_statistics(values: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of each of a patch's values, of pixels in [0, 1]; each [P]."""
    return np.tile(CHANNEL_MEAN, values // 3), np.tile(CHANNEL_STD, values // 3)


def _statistics_for(patches):
    return (
        np.expand_dims(x, tuple(range(patches.ndim - 1)))
        for x in pixel_statistics(patches.shape[-1])
    )
