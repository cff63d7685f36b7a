import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from blockjax.data import augment
from blockjax.data import decode as decode_lib

WHOLE = dict(crop_scale=(1, 1), shift=0, flip=False)


def random_images(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def encoded(picture, form="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def interpolate(image_HWC, y, x):
    """The value of an image at a place between pixels: the plain definition."""
    height, width, _ = image_HWC.shape
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image_HWC[top, left] * (1 - x + left) + image_HWC[top, right] * (x - left)
    lower = image_HWC[bottom, left] * (1 - x + left) + image_HWC[bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


@pytest.mark.parametrize(("height", "width", "size"), [(12, 12, 12), (9, 14, 12), (20, 16, 8)])
@pytest.mark.parametrize("crop_scale", [(1, 1), (0.3, 0.9)])
def test_crops_follow_the_definition(height, width, size, crop_scale):
    images = random_images(40, height, width)
    draws = dict(crop_scale=crop_scale, shift=2, flip=True)
    crops = augment.draw_crops(40, height, width, np.random.default_rng(1), **draws)
    result = augment.augment_batch(images, size, np.random.default_rng(1), **draws)
    assert result.shape == (40, size, size, 3) and result.dtype == np.uint8
    for i in (0, 1, 2, 33, 39):
        top, left, crop_height, crop_width, down, right, flip = (field[i] for field in crops)
        for row, column in [(0, 0), (3, size - 1), (size - 2, 4)]:
            source = size - 1 - column if flip else column
            expected = interpolate(
                images[i],
                top + (row - down + 0.5) / size * crop_height - 0.5,
                left + (source - right + 0.5) / size * crop_width - 0.5,
            )
            # Weights of 1/256 precision and two roundings.
            np.testing.assert_allclose(result[i, row, column], expected, atol=3)


def test_whole_images_stay_as_they_are():
    images = random_images(5, 8, 8)
    result = augment.augment_batch(images, 8, np.random.default_rng(0), **WHOLE)
    np.testing.assert_array_equal(result, images)


def test_shift_moves_whole_pixels_and_repeats_the_edge():
    images = random_images(200, 8, 8)
    result = augment.augment_batch(
        images, 8, np.random.default_rng(0), crop_scale=(1, 1), shift=2, flip=True
    )
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    seen = set()
    for i in range(200):
        candidates = {
            (y, x, flip): padded[i, y : y + 8, x : x + 8][:, ::flip]
            for y in range(5)
            for x in range(5)
            for flip in (1, -1)
        }
        found = [key for key, image in candidates.items() if np.array_equal(image, result[i])]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 40  # of 50
    assert 0.3 < np.mean([flip == 1 for *_, flip in seen]) < 0.7


def test_draws_stay_in_their_ranges():
    crops = augment.draw_crops(
        5000, 30, 40, np.random.default_rng(0), crop_scale=(0.2, 0.5), shift=3, flip=True
    )
    area = crops.height_B * crops.width_B / (30 * 40)
    assert 0.2 - 1e-9 <= area.min() < 0.21 and 0.49 < area.max() <= 0.5 + 1e-9
    aspect = crops.width_B / crops.height_B
    assert 0.75 - 1e-9 <= aspect.min() < 0.76 and 1.32 < aspect.max() <= 4 / 3 + 1e-9
    assert abs(np.log(aspect).mean()) < 0.01
    assert crops.top_B.min() >= 0 and (crops.top_B + crops.height_B).max() <= 30 + 1e-9
    assert crops.left_B.min() >= 0 and (crops.left_B + crops.width_B).max() <= 40 + 1e-9
    assert set(crops.down_B) == set(crops.right_B) == set(range(-3, 4))
    assert 0.45 < crops.flip_B.mean() < 0.55


@pytest.mark.parametrize("crop_scale", [(0, 1), (0.5, 0.2), (0.2, 1.1)])
def test_bad_crop_scale(crop_scale):
    with pytest.raises(ValueError, match=r"data\.crop_scale"):
        augment.draw_crops(
            1, 8, 8, np.random.default_rng(0), crop_scale=crop_scale, shift=0, flip=False
        )


def gradient(mode):
    """A picture that becomes darker to the right, in `mode`."""
    ramp = np.tile(np.linspace(250, 5, 16).astype(np.uint8), (12, 1))
    if mode == "I;16":
        return Image.fromarray(ramp.astype(np.uint16) * 257)
    picture = Image.fromarray(ramp).convert("RGB")
    return picture.quantize(64) if mode == "P" else picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("RGB", "BMP"),
        ("RGB", "WEBP"),
        ("RGBA", "PNG"),
        ("I;16", "PNG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
    ],
)
def test_decodes_every_mode_to_the_same_picture(mode, form):
    data = encoded(gradient(mode), form, **({"lossless": True} if form == "WEBP" else {}))
    expected = np.asarray(gradient("RGB"))
    image = decode_lib.decode(data)
    assert image.dtype == np.uint8 and image.shape == (12, 16, 3)
    np.testing.assert_allclose(image.astype(int), expected, atol=12)
    assert decode_lib.image_shape(data) == (12, 16)


def test_decodes_one_bit_and_transparent_palette():
    black_white = np.zeros((4, 6), bool)
    black_white[:, 3:] = True
    image = decode_lib.decode(encoded(Image.fromarray(black_white)))
    np.testing.assert_array_equal(image[..., 0], black_white * 255)
    data = encoded(gradient("P"), "PNG", transparency=bytes(range(64)))
    np.testing.assert_allclose(decode_lib.decode(data), np.asarray(gradient("RGB")), atol=12)


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_decodes_arrays(channels):
    shape = (4, 6) if channels is None else (4, 6, channels)
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    image = decode_lib.decode(array)
    assert image.shape == (4, 6, 3)
    expected = array[..., :3] if channels in (3, 4) else array.reshape(4, 6, 1)
    np.testing.assert_array_equal(image, np.broadcast_to(expected, (4, 6, 3)))
    assert decode_lib.image_shape(array) == (4, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_applies_exif_orientation(orientation):
    upright = Image.fromarray(random_images(1, 4, 6)[0])
    stored = {  # what a camera stores, given how it was held
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_lib.decode(data), np.asarray(upright))
    assert decode_lib.image_shape(data) == (4, 6)
    crop, _ = augment.decode_and_crop(data, 4, np.random.default_rng(0), **WHOLE)
    np.testing.assert_array_equal(crop, np.asarray(upright)[:, 1:5])


def test_broken_exif_does_not_matter():
    picture, text = gradient("RGB"), PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "exif\n8\nthese are\nno digits")
    data = encoded(picture, pnginfo=text)
    np.testing.assert_array_equal(decode_lib.decode(data), np.asarray(picture))
    assert decode_lib.image_shape(data) == (12, 16)


WHOLE_FILES = {
    form: encoded(Image.fromarray(random_images(1, 40, 40)[0]), form)
    for form in ("JPEG", "PNG", "WEBP", "GIF")
}


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", b"\xff\xd8\xff", *(data[: len(data) // 2] for data in WHOLE_FILES.values())],
    ids=["empty", "text", "header", *WHOLE_FILES],
)
def test_corrupt_images(data):
    with pytest.raises(decode_lib.CorruptImage) as error:
        decode_lib.decode(data)
    assert "BytesIO" not in str(error.value)
    with pytest.raises(decode_lib.CorruptImage):
        augment.decode_and_crop(data, 8, np.random.default_rng(0), **WHOLE)


def test_decode_and_crop_takes_the_crop_that_was_drawn():
    rows, columns = np.mgrid[0:200, 0:300]
    smooth = np.stack([rows, columns * 0.8, rows * 0], axis=-1).astype(np.uint8)
    draws = dict(crop_scale=(0.1, 0.5), shift=0, flip=True)
    flips = set()
    for seed in range(8):
        crops = augment.draw_crops(1, 200, 300, np.random.default_rng(seed), **draws)
        top, left, height, width, _, _, flip = (field.item() for field in crops)
        image, _ = augment.decode_and_crop(smooth, 32, np.random.default_rng(seed), **draws)
        assert image.shape == (32, 32, 3)
        # The middle of the crop keeps its place whatever the filter.
        np.testing.assert_allclose(image[15:17, :, 0].mean(), top + height / 2, atol=1.5)
        np.testing.assert_allclose(image[:, 15:17, 1].mean(), (left + width / 2) * 0.8, atol=1.5)
        assert (image[0, 0, 1] > image[0, -1, 1]) == flip
        flips.add(flip)
    assert flips == {True, False}


def test_decode_and_crop_shifts():
    image = random_images(1, 8, 8)[0]
    result, _ = augment.decode_and_crop(
        image, 8, np.random.default_rng(3), crop_scale=(1, 1), shift=2, flip=True
    )
    expected = augment.augment_batch(
        image[None], 8, np.random.default_rng(3), crop_scale=(1, 1), shift=2, flip=True
    )[0]
    np.testing.assert_array_equal(result, expected)
    assert not np.array_equal(result, image)
