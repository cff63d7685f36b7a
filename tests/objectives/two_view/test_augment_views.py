import colorsys
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from blockjax.objectives.resample import crop_and_resize
from blockjax.objectives.two_view import augment as augment_lib
from blockjax.objectives.two_view.augment import RECIPES, View, augment, two_views

RNG = jax.random.key(0)
WHOLE = View(scale=(1.0, 1.0), flip=0.0)  # no window but the whole square fits
CROP = jax.jit(crop_and_resize, static_argnames="size")
AUGMENT = jax.jit(augment, static_argnames=("view", "size"))
TRACES = []
# One shape for most tests, because programs take longer to compile than to run.
COUNT, SIDE = 500, 20


@functools.partial(jax.jit, static_argnames=("recipe_name", "size"))
def draw_two_views(rng, images, recipe_name, size):
    TRACES.append((images.shape, recipe_name, size))
    return two_views(rng, images, recipe_name, size)


def noise(count=COUNT, height=SIDE, width=SIDE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def unit_noise():
    return noise().astype(np.float32) / 255


def flat_colours():
    colours = np.random.default_rng(0).uniform(0.1, 0.9, (COUNT, 1, 1, 3))
    return np.broadcast_to(colours, (COUNT, SIDE, SIDE, 3)).astype(np.float32)


def two_byol(images, rng=RNG):
    return np.asarray(draw_two_views(rng, images, recipe_name="byol", size=SIDE))


def step_alone(images, **fields):
    """Leaves the window at the whole image; not jitted, so that views share the compiled operations."""
    return np.asarray(augment(RNG, jnp.asarray(images), dataclasses.replace(WHOLE, **fields), SIDE))


def assert_share(which, expected):
    deviation = (expected * (1 - expected) / len(which)) ** 0.5
    assert abs(np.mean(which) - expected) < 4 * deviation


def whole(images):
    count, height, width, _ = images.shape
    zeros = jnp.zeros(count)
    return zeros, zeros, jnp.full(count, float(height)), jnp.full(count, float(width))


def windows_of_ramps(count, height, width, view):
    """Returns tops, lefts, heights and widths of the windows that are drawn."""
    y, x = np.mgrid[:height, :width] + 0.5
    scale = max(height, width)
    ramps = np.stack([x, y, y], axis=-1).astype(np.float32) / scale
    ramps = np.broadcast_to(ramps, (count, *ramps.shape))
    result = scale * np.asarray(AUGMENT(RNG, ramps, view=view, size=64), np.float64)
    # In the middle: at the borders a ramp does not go on. Enlarging keeps it a ramp.
    x, y = result[:, 32, 28:36:7, 0], result[:, 28:36:7, 32, 1]
    width, height = (x[:, 1] - x[:, 0]) * 64 / 7, (y[:, 1] - y[:, 0]) * 64 / 7
    return y.mean(axis=1) - height / 2, x.mean(axis=1) - width / 2, height, width


def test_the_whole_image_at_its_size_is_itself():
    images = noise(3, 16, 16)
    np.testing.assert_array_equal(CROP(images, *whole(images), size=16), images)


@pytest.mark.parametrize(("scale", "size"), [(1, 12), (1, 40), (3, 40)])
def test_crops_are_those_of_pillow(scale, size):
    images = noise(12, 24 * scale, 36 * scale)  # large images go through it in parts
    generator = np.random.default_rng(size)
    height, width = generator.uniform(2, 24, 12), generator.uniform(2, 36, 12)
    top, left = generator.random(12) * (24 - height), generator.random(12) * (36 - width)
    top, left, height, width = (scale * field for field in (top, left, height, width))
    ours = CROP(images, *map(jnp.asarray, (top, left, height, width)), size=size)
    for i, image in enumerate(images):
        box = (left[i], top[i], left[i] + width[i], top[i] + height[i])
        theirs = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
        # Pillow rounds to integers after each of the two axes.
        np.testing.assert_allclose(ours[i], np.asarray(theirs), atol=1.6)


def test_flips_mirror_single_images_from_left_to_right():
    images = noise(3, 16, 16)
    window = [jnp.array([1.0, 2.5, 3]), jnp.array([0.0, 4, 2.2])]
    window += [jnp.array([8.0, 9, 11]), jnp.array([16.0, 7, 9])]
    plain = CROP(images, *window, size=8)
    flipped = CROP(images, *window, size=8, flip_B=jnp.array([True, False, True]))
    np.testing.assert_allclose(flipped[1], plain[1], atol=1e-3)
    for i in (0, 2):
        np.testing.assert_allclose(flipped[i], plain[i][:, ::-1], atol=1e-3)


def test_beyond_the_border_the_last_pixels_go_on():
    images = noise(1, 8, 8)
    window = (jnp.array([-4.0]), jnp.array([0.0]), jnp.array([16.0]), jnp.array([8.0]))
    tall = np.asarray(CROP(images, *window, size=16))[0, :, ::2]
    assert np.isfinite(tall).all()
    np.testing.assert_allclose(tall[:4], np.broadcast_to(tall[4], tall[:4].shape), atol=1e-3)


def test_windows_lie_inside_and_have_the_recipes_area_and_ratio():
    view = View(scale=(0.2, 0.8), flip=0.0)
    top, left, height, width = windows_of_ramps(2000, 8, 8, view)
    area, ratio = height * width / 64, width / height
    assert min(top.min(), left.min()) > -1e-3
    assert max((top + height).max(), (left + width).max()) < 8 + 1e-3
    assert 0.199 < area.min() < 0.21 and 0.78 < area.max() < 0.801
    assert 0.47 < area.mean() < 0.5  # large windows fit less often
    assert 0.749 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.335
    assert abs(np.log(ratio).mean()) < 0.02  # as often tall as wide
    free_top, free_left = top / (8 - height), left / (8 - width)
    assert abs(free_left.mean() - 0.5) < 0.03 and 0.27 < free_left.std() < 0.31
    assert abs(np.corrcoef([free_top, free_left, area, ratio]) - np.eye(4)).max() < 0.1


def test_where_no_window_fits_the_largest_of_an_allowed_ratio_is_taken():
    view = View(scale=(0.5, 1.0), flip=0.0)
    _, left, height, width = windows_of_ramps(16, 6, 32, view)
    np.testing.assert_allclose(np.stack([height, width]).T, [[6, 8]] * 16, atol=1e-2)
    assert left.min() > -0.01 and (left + width).max() < 32.01 and left.std() > 3
    _, _, height, width = windows_of_ramps(16, 32, 6, view)
    np.testing.assert_allclose(np.stack([height, width]).T, [[8, 6]] * 16, atol=1e-2)


def test_one_colour_stays_one_colour():
    """At borders too, where weights that are not normalised would darken the crop and the blur."""
    images = flat_colours()
    for view in (View(), View(blur=1.0)):
        result = augment(RNG, jnp.asarray(images), view, SIDE)
        np.testing.assert_allclose(result, images, atol=1e-5)


def test_each_step_has_its_probability_and_a_draw_of_its_own():
    images = unit_noise()
    np.testing.assert_allclose(step_alone(images), images, atol=1e-6)
    steps = {"flip": 0.5, "jitter": 0.8, "gray": 0.2, "solarise": 0.2, "blur": 0.5}
    changed = []
    for name, probability in steps.items():
        # Jitter is seen by its contrast. Blurs of the least sigmas change nothing.
        result = step_alone(images, contrast=0.4, **{name: probability})
        changed.append(abs(result - images).max(axis=(1, 2, 3)) > 1e-7)
        assert_share(changed[-1], probability * (0.98 if name == "blur" else 1))
    assert abs(np.corrcoef(changed) - np.eye(len(steps))).max() < 0.2


def test_a_fifth_of_the_views_is_gray_in_either_view():
    gray = np.ptp(two_byol(noise()), axis=-1).max(axis=(2, 3)) < 1e-6
    assert_share(gray[:, 0], 0.2)
    assert_share(gray[:, 1], 0.2)
    assert abs(np.corrcoef(gray.T)[0, 1]) < 0.2  # the views are drawn independently


def test_gray_is_the_luma():
    images = flat_colours()
    luma = images @ np.array([0.2989, 0.587, 0.114], np.float32)
    gray = np.repeat(luma[..., None], 3, axis=-1)
    np.testing.assert_allclose(step_alone(images, gray=1.0), gray, atol=1e-5)


def test_byol_solarises_second_views_only():
    """White stays above the threshold by jitter alone, and falls below it by solarisation."""
    result = two_byol(np.full_like(noise(), 255))
    # 255 is 1, without jitter and where brightness is added; the weights of gray sum to 0.9999.
    assert_share(result[:, 0].min(axis=(1, 2, 3)) > 1 - 2e-4, 0.2 + 0.8 / 2)
    inverted = result.max(axis=(2, 3, 4)) < 0.5
    assert not inverted[:, 0].any()
    assert_share(inverted[:, 1], 0.2)


def test_solarisation_inverts_the_bright_half():
    images = unit_noise()
    expected = np.minimum(images, 1 - images)
    np.testing.assert_allclose(step_alone(images, solarise=1.0), expected, atol=1e-6)


def test_brightness_is_added_or_multiplies():
    images = np.broadcast_to(np.array([0.3, 0.5, 0.6], np.float32), (COUNT, SIDE, SIDE, 3))
    change = step_alone(images, jitter=1.0, brightness=0.2, additive=True) - images
    assert np.ptp(change, axis=(1, 2, 3)).max() < 1e-5
    assert -0.2 < change.min() < -0.19 and 0.19 < change.max() < 0.2
    factor = step_alone(images, jitter=1.0, brightness=0.2, additive=False) / images
    assert np.ptp(factor, axis=(1, 2, 3)).max() < 1e-5
    assert 0.8 < factor.min() < 0.81 and 1.19 < factor.max() < 1.2


def test_contrast_scales_around_the_mean_of_each_channel():
    offsets = np.array([0.3, 0.4, 0.5], np.float32)
    images = offsets + 0.1 * unit_noise()
    result = step_alone(images, jitter=1.0, contrast=0.4)
    mean = images.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(result.mean(axis=(1, 2)), mean[:, 0, 0], atol=1e-5)
    factor = (result - mean).std(axis=(1, 2, 3)) / (images - mean).std(axis=(1, 2, 3))
    expected = mean + factor[:, None, None, None] * (images - mean)
    np.testing.assert_allclose(result, expected, atol=1e-4)
    assert 0.6 < factor.min() < 0.62 and 1.38 < factor.max() < 1.4


def test_saturation_and_hue_move_in_hsv_space():
    images = flat_colours()

    def hsv(images):
        return np.array([colorsys.rgb_to_hsv(*image[0, 0]) for image in images])

    before = hsv(images)
    saturated = hsv(step_alone(images, jitter=1.0, saturation=0.2))
    np.testing.assert_allclose(saturated[:, [0, 2]], before[:, [0, 2]], atol=1e-4)
    inside = saturated[:, 1] < 0.999
    factor = saturated[inside, 1] / before[inside, 1]
    assert 0.799 < factor.min() < 0.82 and 1.18 < factor.max() < 1.201
    shifted = hsv(step_alone(images, jitter=1.0, hue=0.1))
    np.testing.assert_allclose(shifted[:, 1:], before[:, 1:], atol=1e-4)
    shift = (shifted[:, 0] - before[:, 0] + 0.5) % 1 - 0.5
    assert -0.1001 < shift.min() < -0.09 and 0.09 < shift.max() < 0.1001


def test_the_order_of_the_jitter_is_random():
    images = noise(1, 8, 8).astype(np.float32) / 255
    view = View(jitter=1.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    drawn = {name: jnp.full(1, 0.9) for name in ("brightness", "contrast", "saturation", "hue")}
    jittered = jax.jit(lambda rng: augment_lib._jitter(drawn, rng, images, view))
    results = np.stack([jittered(rng) for rng in jax.random.split(RNG, 60)])
    assert 12 <= len(np.unique(results.round(3), axis=0)) <= 24  # of 24 orders some agree


def test_blur_is_a_gaussian_of_byols_width():
    """At 40 pixels the kernel has 2 · int(40 / 10 / 2) + 1 = 5 pixels; sigma is uniform from 0.1 to 2."""
    images = np.zeros((200, 40, 40, 3), np.float32)
    images[:, 20, 20] = 1
    view = dataclasses.replace(WHOLE, blur=1.0)
    result = np.asarray(AUGMENT(RNG, images, view=view, size=40), np.float64)[..., 0]
    kernel = result.sum(axis=1)
    np.testing.assert_allclose(kernel[:, 18:23].sum(axis=1), 1, atol=1e-4)
    assert not kernel[:, :18].any() and not kernel[:, 23:].any()
    outer = result.sum(axis=2)[:, :, None] * kernel[:, None, :]
    np.testing.assert_allclose(result, outer, atol=1e-4)
    np.testing.assert_allclose(kernel[:, 18:20], kernel[:, 22:20:-1], atol=1e-5)
    near, far = kernel[:, 21] / kernel[:, 20], kernel[:, 22] / kernel[:, 20]
    np.testing.assert_allclose(far, near**4, atol=1e-4)
    sigma = (-0.5 / np.log(near[near > 0.01])) ** 0.5
    assert 1.95 < sigma.max() < 2.001
    assert_share(near > np.exp(-0.5), 1 / 1.9)  # sigma above 1


@pytest.mark.parametrize("name", ["byol", "simclr"])
def test_views_are_images_in_the_unit_range(name):
    images = np.where(np.arange(COUNT)[:, None, None, None] % 2, noise(), 255 * (noise() >> 7))
    images = images.astype(np.uint8)  # every other one black and white
    result = draw_two_views(RNG, images, recipe_name=name, size=SIDE)
    assert result.shape == (COUNT, 2, SIDE, SIDE, 3) and result.dtype == jnp.float32
    values = np.asarray(result)
    assert np.isfinite(values).all() and values.min() == 0 and values.max() == 1
    assert values.std() > 0.1  # divided by 255 once only
    assert np.abs(values[:, 0] - values[:, 1]).mean(axis=(1, 2, 3)).min() > 0.001


def test_copies_of_an_image_get_views_of_their_own_and_an_rng_repeats_them():
    images = np.repeat(noise(1), COUNT, axis=0)
    first = two_byol(images)
    assert len(np.unique(first.reshape(2 * COUNT, -1).round(4), axis=0)) == 2 * COUNT
    np.testing.assert_array_equal(first, two_byol(images))
    other = two_byol(images, jax.random.key(1))
    assert np.abs(first - other).mean(axis=(2, 3, 4)).min() > 1e-3


def test_views_do_not_depend_on_the_other_images():
    images = noise()
    others = np.concatenate([images[:1], noise(seed=1)[1:]])
    first, second = two_byol(images), two_byol(others)
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    assert np.abs(first[1:] - second[1:]).mean() > 0.05


def test_one_program_serves_every_batch():
    for seed in range(3):
        two_byol(noise(seed=seed), jax.random.key(seed))
    assert TRACES.count(((COUNT, SIDE, SIDE, 3), "byol", SIDE)) == 1


def test_recipes_are_those_of_their_sources():
    """Jitter strengths, and probabilities of gray, blur and solarisation in both views."""
    tables = {
        "mim": (0.2, 0, None, 0, (0, 0), (0, 0)),
        "byol": (0.08, 0.8, (0.4, 0.4, 0.2, 0.1, True), 0.2, (1, 0.1), (0, 0.2)),
        "simclr": (0.08, 0.8, (0.8, 0.8, 0.8, 0.2, False), 0.2, (0.5, 0.5), (0, 0)),
        "moco2": (0.2, 0.8, (0.4, 0.4, 0.4, 0.1, False), 0.2, (0.5, 0.5), (0, 0)),
        "cifar-simclr": (0.08, 0.8, (0.4, 0.4, 0.4, 0.1, False), 0.2, (0, 0), (0, 0)),
        "cifar-byol": (0.08, 0.8, (0.4, 0.4, 0.2, 0.1, True), 0.2, (0, 0), (0, 0.2)),
        "cifar-mim": (0.08, 0, None, 0, (0, 0), (0, 0)),
        "digits": (0.5, 0.8, (0.4, 0.4, 0.2, 0.1, True), 0.2, (0, 0), (0, 0.2)),
    }
    assert set(tables) == set(RECIPES)
    for name, (low, jitter, strengths, gray, blur, solarise) in tables.items():
        for i, view in enumerate(RECIPES[name]):
            assert view.scale == (low, 1) and view.ratio == (3 / 4, 4 / 3), name
            assert view.flip == (0 if name == "digits" else 0.5), name
            assert (view.jitter, view.gray) == (jitter, gray), name
            assert (view.blur, view.solarise) == (blur[i], solarise[i]), name
            found = (view.brightness, view.contrast, view.saturation, view.hue, view.additive)
            assert strengths is None or found == strengths, name


def test_mistakes_are_named():
    images = noise(1, 8, 8)
    with pytest.raises(ValueError, match=r"views.recipe 'cifar-boyl'.*'cifar-byol'.*one of mim"):
        two_views(RNG, images, "cifar-boyl", 8)
    with pytest.raises(ValueError, match="uint8 images, 0 to 255, and got float32"):
        two_views(RNG, images.astype(np.float32), "byol", 8)
    with pytest.raises(ValueError, match="got int32 images"):
        augment(RNG, images.astype(np.int32), View(), 8)
