"""Augmented views of images, drawn and computed on the device for a whole batch at once.

Every random number belongs to one image, except the order in which colours are jittered. The colour operations are
those of dm_pix, which are the ones of BYOL's and SimCLR's published code.
"""

import dataclasses
import math

import dm_pix as pix
import jax
import jax.numpy as jnp

from blockjax.checks import one_of
from blockjax.objectives.objective import SMALL
from blockjax.objectives.resample import crop_and_resize, mix_axes

_ATTEMPTS = 10  # at a window that fits into the image, as in torchvision's RandomResizedCrop
_SIGMA = (0.1, 2.0)  # of the blur, in pixels: BYOL, SimCLR and MoCo v2 draw from the same range
_THRESHOLD = 0.5  # of solarisation, as in BYOL
# What is drawn for an image beside the windows that are tried, uniform in [0, 1).
_NUMBERS = (
    *("top", "left", "flip", "jitter", "brightness", "contrast", "saturation", "hue"),
    *("gray", "blur", "sigma", "solarise"),
)


@dataclasses.dataclass(frozen=True)
class View:
    """How one view of an image is drawn. The steps are those of the fields, from top to bottom.

    A probability of 0 leaves the step out; the others are drawn for each image.
    """

    scale: tuple[float, float] = (0.08, 1.0)  # of the window's area, as a share of the image's
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # of the window's width to its height, log-uniform
    flip: float = 0.5  # probability, from left to right
    jitter: float = 0.0  # probability of the next four, in random order, each clipped to [0, 1]
    brightness: float = 0.0  # the greatest change
    additive: bool = False  # brightness: whether the change is added, or 1 + change multiplies
    contrast: float = 0.0  # the greatest change of the factor around each channel's mean
    saturation: float = 0.0  # the greatest change of the factor in HSV space
    hue: float = 0.0  # the greatest shift, as a share of the colour circle
    gray: float = 0.0  # probability, by the luma weights .2989, .587, .114
    blur: float = 0.0  # probability
    solarise: float = 0.0  # probability: values from 0.5 on are inverted


def _alike(view):
    return view, view


_BYOL = View(
    jitter=0.8, brightness=0.4, additive=True, contrast=0.4, saturation=0.2, hue=0.1, gray=0.2
)
_SIMCLR = View(jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, gray=0.2)
# The same at strength 0.5.
_SIMCLR_HALF = dataclasses.replace(_SIMCLR, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
# A recipe is a pair: how the first and how the second view are drawn. Those that are published with cubic resampling
# are bilinear here, and those that are published with torchvision's contrast and saturation, which change towards the
# luma, have those of BYOL. The recipes for 32 pixels do not blur.
RECIPES: dict[str, tuple[View, View]] = {
    # MAE: facebookresearch/mae, main_pretrain.py.
    "mim": _alike(View(scale=(0.2, 1.0))),
    # BYOL, also used by Barlow Twins, MoCo v3 and VICReg: google-deepmind/deepmind-research,
    # byol/utils/augmentations.py.
    "byol": (
        dataclasses.replace(_BYOL, blur=1.0),
        dataclasses.replace(_BYOL, blur=0.1, solarise=0.2),
    ),
    # SimCLR at strength 1, in its second version: google-research/simclr, data_util.py.
    "simclr": _alike(dataclasses.replace(_SIMCLR, blur=0.5)),
    # MoCo v2: facebookresearch/moco, main_moco.py.
    "moco2": _alike(dataclasses.replace(_SIMCLR_HALF, scale=(0.2, 1.0), blur=0.5)),
    # CIFAR-10 in the README of google-research/simclr.
    "cifar-simclr": _alike(_SIMCLR_HALF),
    # vturrisi/solo-learn, scripts/pretrain/cifar/augmentations/asymmetric.yaml; brightness as in BYOL.
    "cifar-byol": (_BYOL, dataclasses.replace(_BYOL, solarise=0.2)),
    # vturrisi/solo-learn, scripts/pretrain/cifar/augmentations/reconstruction.yaml.
    "cifar-mim": _alike(View()),
    # Digits on photos: a mirrored digit is another sign, and a small window holds a part of it.
    "digits": (
        dataclasses.replace(_BYOL, flip=0.0, scale=(0.5, 1.0)),
        dataclasses.replace(_BYOL, flip=0.0, scale=(0.5, 1.0), solarise=0.2),
    ),
}


def find_recipe(name: str) -> tuple[View, View]:
    """Returns the two views of a recipe.

    Raises:
      ValueError: there is no recipe of this name.
    """
    one_of("views.recipe", name, RECIPES)
    return RECIPES[name]


def two_views(
    rng: jax.Array,
    images_BHWC: jax.Array,
    recipe_name: str,
    size: int,
    aspect_B: jax.Array | None = None,
) -> jax.Array:
    """Draws two views of each image.

    Args:
      rng: all randomness comes from here.
      images_BHWC: uint8, RGB.
      recipe_name: a key of `RECIPES`.
      size: the side of the views, in pixels.
      aspect_B: see `augment`.

    Returns:
      float32 [B, 2, size, size, 3] in [0, 1].

    Raises:
      ValueError: the recipe is unknown, or the images are not uint8.
    """
    recipe = find_recipe(recipe_name)
    if images_BHWC.dtype != jnp.uint8:
        raise ValueError(
            f"two_views wants uint8 images, 0 to 255, and got {images_BHWC.dtype}; augment takes "
            "floats in [0, 1]"
        )
    if max(images_BHWC.shape[1:3]) <= SMALL:
        images_BHWC = images_BHWC.astype(jnp.float32) / 255.0  # once for both views
    rngs = jax.random.split(rng, 2)
    views = [augment(r, images_BHWC, v, size, aspect_B) for r, v in zip(rngs, recipe, strict=True)]
    return jnp.stack(views, axis=1)


def augment(
    rng: jax.Array,
    images_BHWC: jax.Array,
    view: View,
    size: int,
    aspect_B: jax.Array | None = None,
) -> jax.Array:
    """Draws one view of each image.

    Args:
      rng: all randomness comes from here.
      images_BHWC: RGB, float in [0, 1] or uint8.
      view: what is drawn, and how strongly.
      size: the side of the result, in pixels.
      aspect_B: float, width / height that the images had before they were stretched to this size: windows have their
        area, ratio and place in the image as it was. None where they were not.

    Returns:
      float32 [B, size, size, 3] in [0, 1].

    Raises:
      ValueError: the images are other integers.
    """
    is_uint8 = images_BHWC.dtype == jnp.uint8
    if not is_uint8 and not jnp.issubdtype(images_BHWC.dtype, jnp.floating):
        raise ValueError(
            f"augment wants floats in [0, 1] or uint8, and got {images_BHWC.dtype} images"
        )
    count, height, width, _ = images_BHWC.shape
    numbers_rng, order_rng = jax.random.split(rng)
    # An image's numbers are one row, drawn in one call: a dozen calls took longer to compile than all that follows.
    numbers_BR = jax.random.uniform(numbers_rng, (count, len(_NUMBERS) + 2 * _ATTEMPTS))
    drawn = dict(zip(_NUMBERS, numbers_BR.T, strict=False))
    numbers_BR = numbers_BR[:, len(_NUMBERS) :]
    if aspect_B is None:
        windows = _windows(drawn, numbers_BR, height, width, view)
    else:
        stretched_B = width / (height * aspect_B)
        top_B, left_B, height_B, width_B = _windows(
            drawn, numbers_BR, height, height * aspect_B, view
        )
        windows = top_B, left_B * stretched_B, height_B, width_B * stretched_B
    flip_B = drawn["flip"] < view.flip if view.flip else None
    images_BHWC = crop_and_resize(images_BHWC, *windows, size, flip_B)
    if is_uint8:
        images_BHWC = images_BHWC / 255.0
    steps = (
        ("jitter", view.jitter, lambda x: _jitter(drawn, order_rng, x, view)),
        ("gray", view.gray, _gray),
        ("blur", view.blur, lambda x: _blur(drawn["sigma"], x)),
        ("solarise", view.solarise, lambda x: pix.solarize(x, _THRESHOLD)),
    )
    for name, probability, change in steps:
        if probability:
            changes_B111 = (drawn[name] < probability)[:, None, None, None]
            images_BHWC = jnp.where(changes_B111, change(images_BHWC), images_BHWC)
    return jnp.clip(images_BHWC, 0.0, 1.0)


def _windows(drawn, numbers_BR, height, width, view):
    """Returns tops, lefts, heights and widths; where no attempt fits, the largest window of an allowed ratio.

    The images' height and width are numbers, or arrays [B].
    """
    height_B1, width_B1 = (jnp.reshape(side, (-1, 1)) for side in (height, width))
    area_BA = _between(numbers_BR[:, :_ATTEMPTS], *view.scale) * (height_B1 * width_B1)
    ratio_BA = jnp.exp(_between(numbers_BR[:, _ATTEMPTS:], *map(math.log, view.ratio)))
    height_BA = jnp.sqrt(area_BA / ratio_BA)
    width_BA = jnp.sqrt(area_BA * ratio_BA)
    fits_BA = (height_BA <= height_B1) & (width_BA <= width_B1)
    fits_B = fits_BA.any(axis=1)
    first_B1 = fits_BA.argmax(axis=1, keepdims=True)
    nearest_B = jnp.clip(width / height, *view.ratio)

    def chosen(sides_BA, largest):
        return jnp.where(fits_B, jnp.take_along_axis(sides_BA, first_B1, axis=1)[:, 0], largest)

    height_B = chosen(height_BA, jnp.minimum(height, width / nearest_B))
    width_B = chosen(width_BA, jnp.minimum(width, height * nearest_B))
    return drawn["top"] * (height - height_B), drawn["left"] * (width - width_B), height_B, width_B


def _between(numbers, low, high):
    return low + numbers * (high - low)


def _jitter(drawn, order_rng, images_BHWC, view):
    brightness_B, contrast_B, saturation_B, hue_B = (
        _between(drawn[name], -getattr(view, name), getattr(view, name))
        for name in ("brightness", "contrast", "saturation", "hue")
    )
    brightness_B111 = brightness_B[:, None, None, None]
    operations = (
        lambda x: x + brightness_B111 if view.additive else x * (1 + brightness_B111),
        lambda x: jax.vmap(pix.adjust_contrast)(x, 1 + contrast_B),
        lambda x: jax.vmap(pix.adjust_saturation)(x, 1 + saturation_B),
        lambda x: jax.vmap(pix.adjust_hue)(x, hue_B),
    )

    def step(images_BHWC, operation):
        return jnp.clip(jax.lax.switch(operation, operations, images_BHWC), 0.0, 1.0), None

    # One order for the batch: with an order of its own for each image, every step would have to compute all four
    # operations and select, which costs four times as much.
    order = jax.random.uniform(order_rng, (len(operations),)).argsort()
    return jax.lax.scan(step, images_BHWC, order)[0]


def _gray(images_BHWC):
    with jax.default_matmul_precision("highest"):
        return pix.rgb_to_grayscale(images_BHWC, keep_dims=True)


def _blur(numbers_B, images_BHWC):
    """Blurs by a Gaussian that is cut off at BYOL's radius and, at the borders, normalised over the pixels that exist.

    BYOL and SimCLR let black surround the image; the dark frame that results tells how strongly a view was blurred, and
    MoCo's code has none. Otherwise this is dm_pix's gaussian_blur under vmap, whose convolution has as many groups as
    the batch has channels: on CPUs that takes more than ten times as long as products with banded matrices.
    """
    side = images_BHWC.shape[1]
    sigma_B11 = _between(numbers_B, *_SIGMA)[:, None, None]
    pixel_S = jnp.arange(side)
    distance_1SS = jnp.abs(pixel_S[:, None] - pixel_S[None])[None]
    within_1SS = distance_1SS <= int(side / 10 / 2)
    weights_BSS = jnp.where(within_1SS, jnp.exp(-(distance_1SS**2) / (2 * sigma_B11**2)), 0.0)
    weights_BSS = weights_BSS / weights_BSS.sum(axis=2, keepdims=True)
    return mix_axes(weights_BSS, weights_BSS, images_BHWC)
