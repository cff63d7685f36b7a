import functools
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from blockjax.data import augment, turbo
from blockjax.data.cut import Box, cut, fit, resize_and_center_crop
from blockjax.data.decode import CorruptImage, OpenImage, decode
from blockjax.data.embedded.compose import read_photos

PILLOW = "pillow"
TURBO = pytest.param(
    "turbo", marks=pytest.mark.skipif(not turbo.INSTALLED, reason="needs the extra turbo")
)
CROP = dict(crop_scale=(0.2, 1), shift=0, flip=True)


@pytest.fixture(params=[PILLOW, TURBO])
def path(request, monkeypatch):
    """Everything that reads images, with the extra and without it."""
    monkeypatch.setattr(turbo, "INSTALLED", request.param == "turbo")
    return request.param


def encoded(picture, form="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def photo(width, height, index=4):
    return Image.fromarray(read_photos()[index]).resize((width, height), Image.Resampling.BICUBIC)


def both_ways(monkeypatch, function):
    results = []
    for installed in (False, True):
        monkeypatch.setattr(turbo, "INSTALLED", installed)
        results.append(function())
    return results


def cut_box(image, box, size):
    return cut(image, lambda *_: box, size, size)


def random_boxes(height, width, count, seed=0):
    rng = np.random.default_rng(seed)
    crops = augment.draw_crops(count, height, width, rng, **CROP)
    boxes = [Box(0, 0, height, width), Box(height - 50.5, width - 60.25, 50.5, 60.25)]
    return boxes + [Box(*map(float, crop)) for crop in zip(*crops[:4], strict=True)]


@pytest.mark.parametrize("size", [40, 90, 170, 340])  # a JPEG is read at 1/8, 1/4, 1/2 and 1/1
@pytest.mark.parametrize(("height", "width"), [(803, 1001), (800, 1000)])
def test_a_cut_lies_where_its_box_does(path, size, height, width):
    down = np.tile(np.linspace(10, 245, height)[:, None], width)
    right = np.tile(np.linspace(10, 245, width), (height, 1))
    ramps = np.rint(np.stack([down, right, 0 * right], axis=-1)).astype(np.uint8)
    form = "PNG" if size == 90 and height == 800 else "JPEG"
    data = encoded(Image.fromarray(ramps), form, quality=100, subsampling=0)
    for top, left in ((0, 0), (31.25, 77.5), (height - 411, width - 503.5)):
        image = cut_box(data, Box(top, left, 411, 503.5), size)
        for line, start, extent, limit in (
            (image[..., 0].mean(axis=1), top, 411, height),
            (image[..., 1].mean(axis=0), left, 503.5, width),
        ):
            places = start + (np.arange(size) + 0.5) / size * extent - 0.5
            found = (line.astype(float) - 10) / 235 * (limit - 1)
            inner = slice(1, -1)  # a filter is lopsided where the image ends
            # Levels are up to 4.3 pixels apart. To count the reduced image's pixels from the wrong end, or to divide by
            # a rounded size, is more than that for single ones, or more than one pixel on average.
            np.testing.assert_allclose(found[inner], places[inner], atol=3.2)
            assert abs(np.mean(found[inner] - places[inner])) < 1.0


@pytest.mark.parametrize("size", [30, 60, 100])
def test_a_jpeg_read_at_a_fraction_looks_like_the_whole(path, size, monkeypatch):
    data = encoded(photo(600, 450), quality=95)
    whole, read = decode(data), []
    original = OpenImage.read
    monkeypatch.setattr(
        OpenImage,
        "read",
        lambda self, reduction=1: read.append(reduction) or original(self, reduction),
    )
    box = Box(40.5, 100.25, 240, 250)
    image = cut_box(data, box, size).astype(int)
    assert read == [max(k for k in (1, 2, 4, 8) if k <= 240 / size)] and read[0] > 1

    def difference(moved):
        other = cut_box(whole, box._replace(left=box.left + moved), size)
        return np.abs(image - other).mean()

    # libjpeg cuts frequencies off where the filter dims them: a level or two on average. To be off by a pixel of the
    # result, or by half of one, is worse.
    assert difference(0) < 2.0
    assert 1.5 * difference(0) < min(difference(125 / size), difference(-125 / size))


@pytest.mark.skipif(not turbo.INSTALLED, reason="needs the extra turbo")
@pytest.mark.parametrize("size", [24, 100, 224])
@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "JPEG", {"quality": 92}),
        ("RGB", "JPEG", {"quality": 75, "progressive": True}),
        ("RGB", "JPEG", {"subsampling": 0, "keep_rgb": True}),
        ("RGB", "JPEG", {"subsampling": 1, "restart_marker_blocks": 3}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("P", "PNG", {}),
    ],
)
def test_both_ways_agree(mode, form, options, size, monkeypatch):
    picture = photo(333, 251)
    picture = picture.quantize(32) if mode == "P" else picture.convert(mode)
    data = encoded(picture, form, **options)
    for box in random_boxes(251, 333, 6):
        plain, fast = both_ways(monkeypatch, functools.partial(cut_box, data, box, size))
        assert plain.shape == fast.shape == (size, size, 3) and fast.dtype == np.uint8
        # One decoder and one filter; its weights are rounded in other ways.
        assert np.abs(plain.astype(int) - fast).max() <= 1
    np.testing.assert_array_equal(*both_ways(monkeypatch, lambda: decode(data)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [24, 60])
def test_orientation_of_a_jpeg(path, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(300, 200), exif=exif)
    stored = decode(encoded(photo(300, 200)))
    transposed = [1, 2, 3, 4, 5, 6, 7, 8].index(orientation) >= 4
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    assert OpenImage(data).shape == upright.shape[:2] == ((300, 200) if transposed else (200, 300))
    np.testing.assert_array_equal(decode(data), upright)
    box = Box(10.5, 5, 150, 140)
    image = cut_box(data, box, size)
    expected = cut_box(upright, box, size)
    assert np.abs(image.astype(int) - expected).mean() < 2.0  # size 24 is read at 1/4


@pytest.mark.skipif(not turbo.INSTALLED, reason="needs the extra turbo")
def test_who_decodes(monkeypatch):
    calls = []
    original = turbo.decode_jpeg
    monkeypatch.setattr(
        turbo, "decode_jpeg", lambda *args: calls.append(args[3]) or original(*args)
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = photo(300, 200)
    for data, expected in (
        (encoded(picture), [2]),
        (encoded(picture.convert("L")), [2]),
        (encoded(picture, exif=exif), [2]),
        (encoded(picture.convert("CMYK")), []),
        (encoded(picture, "PNG"), []),
    ):
        calls.clear()
        cut_box(data, Box(0, 0, 200, 200), 100)
        assert calls == expected


@pytest.mark.parametrize("keep", [1.0, 0.9, 0.5, 0.02])
@pytest.mark.skipif(not turbo.INSTALLED, reason="needs the extra turbo")
def test_broken_jpegs_are_judged_as_by_pillow(keep, monkeypatch):
    whole = encoded(photo(300, 200))
    cases = [whole[: int(keep * len(whole))]]
    if keep == 1.0:  # readable, if not quite right
        cases = [whole + b"more", whole[:-2], whole[:2] + b"\xff\xff" + whole[3:]]
    for data in cases:

        def attempt(data=data):
            try:
                return decode(data)
            except CorruptImage as error:
                return str(error)

        plain, fast = both_ways(monkeypatch, attempt)
        assert isinstance(plain, str) == (keep < 1.0 or data is cases[1])
        np.testing.assert_array_equal(plain, fast)


@pytest.mark.skipif(not turbo.INSTALLED, reason="needs the extra turbo")
def test_a_file_that_only_pillow_reads_is_cropped_where_it_was_drawn(monkeypatch):
    data = encoded(photo(300, 200)) + b"more"
    draws = dict(crop_scale=(0.2, 0.5), shift=0, flip=True)
    plain, fast = both_ways(
        monkeypatch,
        lambda: augment.decode_and_crop(data, 64, np.random.default_rng(5), **draws)[0],
    )
    assert np.abs(plain.astype(int) - fast).max() <= 1


def test_a_bomb_is_refused(path, monkeypatch):
    data = encoded(photo(300, 200))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # twice as many are too many
    with pytest.raises(CorruptImage, match="bomb"):
        cut(data, lambda height, width: Box(0, 0, height, width), 10, 10)


def test_boxes_that_end_with_the_image(path):
    data = encoded(photo(333, 251))
    for seed in range(300):  # sums of floats end a little before or behind the edge
        rng = np.random.default_rng(seed)
        height, width = rng.integers(20, 200, 2)
        picture = np.zeros((height, width, 3), np.uint8)
        extent = rng.uniform(0.1, 1) * height
        box = Box(height - extent, 0.0, extent, float(width))
        assert cut_box(picture, box, 8).shape == (8, 8, 3)
        box = Box(0.0, height - extent, float(width), extent)
        assert cut_box(picture.swapaxes(0, 1), box, 8).shape == (8, 8, 3)
    for seed in range(20):
        image, _ = augment.decode_and_crop(
            data, 16, np.random.default_rng(seed), crop_scale=(0.9, 1), shift=0, flip=False
        )
        assert image.shape == (16, 16, 3)


def test_threads_cut_the_same(path):
    data = [encoded(photo(300, 200, index)) for index in (3, 4, 8, 10)] * 8

    def crops(item):
        index, image = item
        return augment.decode_and_crop(image, 64, np.random.default_rng(index), **CROP)[0]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(crops, enumerate(data)))
    for item, image in zip(enumerate(data), together, strict=True):
        np.testing.assert_array_equal(crops(item), image)


@pytest.mark.parametrize("shift", [0, 3])
def test_mirrored_crops(path, shift):
    data = encoded(photo(300, 200))
    draws = dict(crop_scale=(0.3, 0.8), shift=shift)
    flips = set()
    for seed in range(8):
        crops = augment.draw_crops(1, 200, 300, np.random.default_rng(seed), flip=True, **draws)
        flip = bool(crops.flip_B.item())
        flips.add(flip)
        image, _ = augment.decode_and_crop(
            data, 32, np.random.default_rng(seed), flip=True, **draws
        )
        plain, _ = augment.decode_and_crop(
            data, 32, np.random.default_rng(seed), flip=False, **draws
        )
        np.testing.assert_array_equal(image, plain[:, ::-1] if flip else plain)
    assert flips == {True, False}


@pytest.mark.parametrize(
    ("height", "width", "size", "seen"),
    [
        (32, 32, 32, 32),
        (28, 40, 32, 28),  # small: all of the shorter side
        (512, 640, 224, 448),  # large: 224 / 256 of it
        (300, 224, 224, 196),
    ],
)
def test_center_crop(height, width, size, seen):
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows / height, columns / width, rows * 0], axis=-1) * 255
    result = resize_and_center_crop(image.astype(np.uint8), size)
    assert result.shape == (size, size, 3)
    for axis, side in ((0, height), (1, width)):
        line = np.moveaxis(result[..., axis].astype(float), axis, 0).mean(axis=1)
        np.testing.assert_allclose(line.mean(), 127, atol=5)
        slope = (line[-1] - line[0]) / (size - 1)  # per pixel of the result
        np.testing.assert_allclose(slope, seen / size / side * 255, rtol=0.06)


def test_fit_keeps_the_aspect():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 200
    assert fit(image, 10, 10).min() >= 150  # the filter sees a little of the rest
    assert np.shares_memory(fit(image, 20, 40), image)
    assert fit(image, 12, 18).shape == (12, 18, 3)
