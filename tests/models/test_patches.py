import numpy as np

from blockjax.models.patches import patchify, standardize, unpatchify, unstandardize


def test_patchify_keeps_pixels_together():
    """A missing transpose would mix pixels of neighbouring patches."""
    images = np.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    np.testing.assert_array_equal(patches[1, 4].reshape(4, 4, 3), images[1, 4:8, 4:8])
    np.testing.assert_array_equal(unpatchify(patches, 4, (2, 3)), images)


def test_standardize_is_per_channel_and_undone():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 12), dtype=np.uint8)
    values = np.asarray(standardize(pixels)).reshape(2, 3, 4, 3)
    expected = (pixels.reshape(2, 3, 4, 3) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(unstandardize(standardize(pixels)), pixels / 255.0, atol=1e-6)
    wild = np.full((1, 1, 12), 9.0, np.float32)
    assert np.all(unstandardize(wild) == 1.0) and np.all(unstandardize(-wild) == 0.0)
