"""All implementations of the masked reconstruction loss against its formula, alone and in a training step."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from blockjax.benchmark import kernels as benchmark
from blockjax.kernels.masked_reconstruction import (
    IMPLEMENTATIONS,
    MEASURED_BEST,
    SHAPES,
    api,
    gradient,
    head_tpu,
    masked_reconstruction_loss,
    pallas_gpu,
    pallas_tpu,
    projected_reconstruction_loss,
    shapes,
    why_no_head,
    why_not,
)
from blockjax.kernels.masked_reconstruction.reference import loss_and_gradient
from blockjax.kernels.masked_reconstruction.shapes import gpu_blocks, tpu_blocks
from blockjax.sharding.mesh import make_mesh
from tests.objectives.test_local_losses import train
from tests.tiny import tiny_learner

KERNELS = ("interpret_tpu", "interpret_gpu")
EVERY = ("xla", *KERNELS)
DTYPES = {
    "float32": ("float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "uint8": ("bfloat16", "uint8"),
}
# Relative errors, of the loss and of the gradient's largest value. A bfloat16 gradient has 8 bits.
LOSS_ERROR = 2e-6
GRADIENT_ERROR = {"float32": 2e-6, "bfloat16": 5e-3}


def pixel_statistics(count):
    values = np.arange(count, dtype=np.float32)
    return 0.4 + 0.1 * np.sin(values), 0.2 + 0.1 * np.cos(values)


def arrays(shape, dtypes="float32", mask=None, constant=None):
    """Returns predictions, targets, mask and pixel statistics; the first patch is constant, if one is given."""
    keys = jax.random.split(jax.random.key(0), 3)
    of_predictions, of_targets = DTYPES[dtypes]
    predictions = jax.random.normal(keys[0], shape).astype(of_predictions)
    if of_targets == "uint8":
        targets = jax.random.randint(keys[1], shape, 0, 256).astype(jnp.uint8)
        pixels = pixel_statistics(shape[-1])
    else:
        targets, pixels = jax.random.normal(keys[1], shape).astype(of_targets), None
    if constant is not None:
        targets = targets.at[(0,) * (len(shape) - 1)].set(constant)
    rows = shape[:-1]
    if mask == "random":
        mask = jax.random.bernoulli(keys[2], 0.6, rows)
        mask = mask.at[0].set(False)  # an image of which nothing counts
    elif mask == "weights":
        mask = jax.random.uniform(keys[2], rows)
    elif mask is not None:
        mask = jnp.full(rows, {"none": 0.0, "all": 1.0}[mask])
    return predictions, targets, mask, pixels


@functools.cache
def compiled_loss(values, normalize, implementation):
    """A jitted loss with its gradient, with the pixel statistics of so many values; none for None."""

    def loss(predictions, targets, mask):
        return masked_reconstruction_loss(
            predictions,
            targets,
            mask,
            normalize=normalize,
            pixels=None if values is None else pixel_statistics(values),
            implementation=implementation,
        )

    return jax.jit(jax.value_and_grad(loss))


def value_and_gradient(predictions, targets, mask, pixels, *, normalize, implementation):
    values = None if pixels is None else targets.shape[-1]
    return compiled_loss(values, normalize, implementation)(predictions, targets, mask)


def check(found, expected):
    loss, gradient = found
    true_loss, true_gradient = expected
    np.testing.assert_allclose(loss, true_loss, rtol=LOSS_ERROR)
    largest = float(np.abs(true_gradient).max())
    error = np.abs(np.asarray(gradient, np.float32) - np.asarray(true_gradient)).max()
    assert error <= GRADIENT_ERROR[gradient.dtype.name] * largest
    assert loss.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("shape", [(2, 13, 48), (3, 37, 108), (2, 21, 588), (2, 49, 768)])
def test_values_and_gradients(shape, dtypes):
    for mask in (None, "random", "none", "all", "weights"):
        # Constant and 0: what rounding leaves of a mean that is not 0 would be multiplied by 1000.
        inputs = predictions, targets, weights, pixels = arrays(shape, dtypes, mask, constant=0)
        if weights is not None:  # of one dtype, and so one program; others are in the tests below
            inputs = predictions, targets, weights.astype(jnp.float32), pixels
        for normalize in (True, False):
            expected = loss_and_gradient(
                predictions, targets, weights, normalize=normalize, pixels=pixels
            )
            for name in EVERY:
                found = value_and_gradient(*inputs, normalize=normalize, implementation=name)
                check(found, expected)
                assert found[1].dtype == predictions.dtype
                if mask == "none":
                    assert float(found[0]) == 0.0 and not np.asarray(found[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, "random"])
def test_blocks_of_which_the_last_is_not_full(mask):
    """An image of more patches than a block of the TPU kernel has rows."""
    inputs = arrays((2, 300, 1200), mask=mask)
    _, rows = tpu_blocks((2, 300, 1200))
    assert rows == 128
    found = value_and_gradient(*inputs, normalize=True, implementation="interpret_tpu")
    check(found, loss_and_gradient(*inputs[:3], normalize=True))


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(2, 150)),
    implementation=st.sampled_from(KERNELS),
    dtypes=st.sampled_from(list(DTYPES)),
    mask=st.sampled_from([None, "random", "weights"]),
    normalize=st.booleans(),
)
def test_any_shape(shape, implementation, dtypes, mask, normalize):
    inputs = arrays(shape, dtypes, mask)
    found = value_and_gradient(*inputs, normalize=normalize, implementation=implementation)
    predictions, targets, weights, pixels = inputs
    expected = loss_and_gradient(predictions, targets, weights, normalize=normalize, pixels=pixels)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    error = np.abs(np.asarray(found[1], np.float32) - np.asarray(expected[1])).max()
    # With two values a patch, normalised ones are far from what bfloat16 holds.
    assert error <= 1e-2 * float(np.abs(expected[1]).max())


@pytest.mark.parametrize("implementation", EVERY)
def test_what_does_not_count_may_be_anything(implementation):
    predictions, targets, mask, _ = arrays((2, 9, 48), mask="random")
    for spoiled in ("predictions", "targets"):
        some = {"predictions": predictions, "targets": targets}
        some[spoiled] = jnp.where(mask[..., None], some[spoiled], jnp.nan)
        found = value_and_gradient(
            some["predictions"],
            some["targets"],
            mask,
            None,
            normalize=True,
            implementation=implementation,
        )
        check(found, loss_and_gradient(predictions, targets, mask, normalize=True))
        assert not np.asarray(found[1])[~np.asarray(mask)].any()


@pytest.mark.parametrize("implementation", EVERY)
def test_the_loss_of_predicting_nothing(implementation):
    """MAE's loss at the start: the variance of a normalised patch over its values."""
    for values in (48, 768):
        targets = 50.0 * jax.random.normal(jax.random.key(0), (2, 8, values))
        loss = masked_reconstruction_loss(
            jnp.zeros_like(targets), targets, normalize=True, implementation=implementation
        )
        assert float(loss) == pytest.approx((values - 1) / values, rel=1e-5)


@pytest.mark.parametrize("implementation", KERNELS)
def test_the_value_alone_is_that_of_the_differentiated_loss(implementation):
    predictions, targets, mask, _ = arrays((2, 9, 48), mask="weights")
    loss = functools.partial(
        masked_reconstruction_loss, normalize=True, implementation=implementation
    )
    assert (
        loss(predictions, targets, mask) == jax.value_and_grad(loss)(predictions, targets, mask)[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("implementation", KERNELS)
def test_under_transformations(implementation):
    predictions, targets, mask, _ = arrays((3, 2, 9, 48), mask="weights")

    def loss(predictions, targets, mask, implementation=implementation):
        # A cotangent that is not 1, and an operation before.
        return 3.0 * masked_reconstruction_loss(
            jnp.tanh(predictions), targets, mask, normalize=True, implementation=implementation
        )

    plain = jax.value_and_grad(functools.partial(loss, implementation="xla"))
    expected = [plain(*row) for row in zip(predictions, targets, mask, strict=True)]
    losses = np.array([row[0] for row in expected])
    gradients = np.stack([row[1] for row in expected])
    with_gradient = jax.value_and_grad(loss)

    def scanned(*rows):
        return jax.lax.scan(lambda carry, row: (carry, with_gradient(*row)), 0, rows)[1]

    def counted(*rows):
        def body(i, carry):
            found = with_gradient(*[row[i] for row in rows])
            return jax.tree.map(lambda all, one: all.at[i].set(one), carry, found)

        return jax.lax.fori_loop(0, 3, body, (jnp.zeros(3), jnp.zeros_like(rows[0])))

    for transformed in (
        jax.vmap(with_gradient),
        jax.vmap(jax.value_and_grad(jax.checkpoint(loss))),
        scanned,
        counted,
    ):
        found = jax.jit(transformed)(predictions, targets, mask)
        np.testing.assert_allclose(found[0], losses, rtol=1e-5)
        np.testing.assert_allclose(found[1], gradients, rtol=1e-4, atol=1e-7)
    # All dimensions but the last are patches.
    whole = masked_reconstruction_loss(
        predictions, targets, mask, normalize=True, implementation=implementation
    )
    reference, _ = loss_and_gradient(predictions, targets, mask, normalize=True)
    assert float(whole) == pytest.approx(float(reference), rel=1e-5)


@pytest.mark.parametrize("implementation", KERNELS)
def test_second_derivatives_are_refused_with_what_to_do(implementation):
    predictions, targets, _, _ = arrays((2, 9, 48))

    def loss(predictions, implementation):
        return masked_reconstruction_loss(
            predictions, targets, normalize=True, implementation=implementation
        )

    def second(implementation):
        return jax.grad(lambda p: jax.grad(loss)(p, implementation).sum())(predictions)

    with pytest.raises(NotImplementedError, match=r"set loss.implementation to 'xla'"):
        second(implementation)
    assert np.asarray(second("xla")).any()


def layer_and_targets(dtypes, mask, shape=(4, 23, 48), width=16):
    """Returns features, kernel and bias of a layer, and targets, mask and pixel statistics."""
    keys = jax.random.split(jax.random.key(7), 3)
    predictions, targets, mask, pixels = arrays(shape, dtypes, mask)
    features = jax.random.normal(keys[0], (*shape[:-1], width)).astype(predictions.dtype)
    kernel = jax.random.normal(keys[1], (width, shape[-1])) / width**0.5
    return (features, kernel, jax.random.normal(keys[2], shape[-1:])), targets, mask, pixels


def layer_reference(layer, targets, mask, pixels, normalize):
    """Returns the loss and its gradients by the formula, from products in float32."""

    def predict(features, kernel, bias):
        kernel = kernel.astype(features.dtype).astype(jnp.float32)
        product = features.astype(jnp.float32) @ kernel
        return product + bias[(None,) * (features.ndim - 1)]

    predictions, backward = jax.vjp(predict, *layer)
    loss, gradient = loss_and_gradient(
        predictions, targets, mask, normalize=normalize, pixels=pixels
    )
    return loss, backward(gradient)


@functools.cache
def compiled_layer(values, tile, normalize, implementation):
    """As `compiled_loss`, of a layer and the loss behind it; `tile` is what the module has when it is traced."""
    assert tile == shapes._TPU_HEAD_TILE

    def loss(layer, targets, mask):
        return 2.0 * projected_reconstruction_loss(
            *layer,
            targets,
            mask,
            normalize=normalize,
            pixels=None if values is None else pixel_statistics(values),
            implementation=implementation,
        )

    return jax.jit(jax.value_and_grad(loss))


def layer_gradients(layer, targets, mask, pixels, normalize, implementation):
    values = None if pixels is None else targets.shape[-1]
    step = compiled_layer(values, shapes._TPU_HEAD_TILE, normalize, implementation)
    value, gradients = step(layer, targets, mask)
    return value / 2, jax.tree.map(lambda gradient: gradient / 2, gradients)


def check_layer(found, expected, layer):
    exact = layer[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5 if exact else 2e-2)
    for one, true, parameter in zip(found[1], expected[1], layer, strict=True):
        assert one.dtype == parameter.dtype and one.shape == parameter.shape
        true = np.asarray(true, np.float32)
        error = np.abs(np.asarray(one, np.float32) - true).max()
        # XLA sums a bias' gradient in bfloat16.
        assert error <= (1e-5 if exact else 3e-2) * np.abs(true).max()


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("tile", ["whole", "ragged"])
def test_with_the_layer_before(tile, dtypes, monkeypatch):
    if tile == "ragged":  # 200 tokens in tiles of 128
        monkeypatch.setattr(shapes, "_TPU_HEAD_TILE", 2**14)
    shape = (4, 50, 48) if tile == "ragged" else (4, 23, 48)
    for mask in (None, "random", "none", "weights"):
        for normalize in (True, False):
            inputs = layer_and_targets(dtypes, mask, shape)
            expected = layer_reference(*inputs, normalize)
            for name in EVERY:
                check_layer(layer_gradients(*inputs, normalize, name), expected, inputs[0])


@pytest.mark.slow
def test_the_layer_under_transformations():
    layer, targets, mask, _ = layer_and_targets("float32", "weights", (3, 2, 9, 48))
    features, kernel, bias = layer

    def loss(features, targets, mask, implementation="interpret_tpu"):
        return projected_reconstruction_loss(
            jnp.tanh(features),
            kernel,
            bias,
            targets,
            mask,
            normalize=True,
            implementation=implementation,
        )

    plain = jax.value_and_grad(functools.partial(loss, implementation="xla"))
    expected = [plain(*row) for row in zip(features, targets, mask, strict=True)]
    losses, gradients = (np.stack(part) for part in zip(*expected, strict=True))
    fused = jax.value_and_grad(loss)
    for transformed in (
        jax.vmap(fused),
        jax.vmap(jax.value_and_grad(jax.checkpoint(loss))),
        lambda *rows: jax.lax.scan(lambda carry, row: (carry, fused(*row)), 0, rows)[1],
    ):
        found = jax.jit(transformed)(features, targets, mask)
        np.testing.assert_allclose(found[0], losses, rtol=1e-5)
        np.testing.assert_allclose(found[1], gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "implementation",  # `pallas_tpu` is XLA on a CPU, by the rules of differentiation of the kernel
    ["xla", "interpret_tpu", "pallas_tpu", pytest.param("interpret_gpu", marks=pytest.mark.slow)],
)
def test_features_that_do_not_count_may_be_anything(implementation):
    layer, targets, mask, _ = layer_and_targets("float32", "random")
    expected = layer_gradients(layer, targets, mask, None, True, implementation)
    features = jnp.where(mask[..., None], layer[0], jnp.nan)
    found = layer_gradients((features, *layer[1:]), targets, mask, None, True, implementation)
    for one, true in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, true)


def test_the_layer_is_fused_on_tpu_only_and_where_it_fits():
    of = jax.ShapeDtypeStruct
    for platform, width, name in (
        ("tpu", 64, "masked_reconstruction_tpu_head"),
        ("tpu", 4096, "masked_reconstruction_tpu"),
        ("cuda", 64, "masked_reconstruction_gpu"),
    ):
        kind = {"cuda": "NVIDIA H100 80GB HBM3", "tpu": "TPU v5 lite"}[platform]
        device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
        loss = functools.partial(
            projected_reconstruction_loss, normalize=True, implementation="pallas"
        )
        mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(
                of((8, 32, width), jnp.bfloat16),
                of((width, 768), jnp.float32),
                of((768,), jnp.float32),
                of((8, 32, 768), jnp.uint8),
            )
            text = traced.lower(lowering_platforms=(platform,)).as_text(debug_info=True)
        names = set(re.findall(r"masked_reconstruction_(?:tpu|gpu)(?:_head)?", text))
        assert names == {name}
    assert "VMEM" in why_no_head((8, 32, 768), 4096, 2)
    assert why_no_head((8, 32, 768), 512, 2) is None


def test_layers_that_do_not_fit_are_named():
    (features, kernel, bias), targets, _, _ = layer_and_targets("float32", None)
    for bad in ((features[..., :8], kernel, bias), (features, kernel, bias[:8])):
        with pytest.raises(ValueError, match=r"must be \[..., D\], \[D, P\] and \[P\]"):
            projected_reconstruction_loss(*bad, targets, normalize=True)
    with pytest.raises(NotImplementedError, match=r"first derivatives only"):
        jax.hessian(
            lambda bias: projected_reconstruction_loss(
                features, kernel, bias, targets, normalize=True, implementation="interpret_tpu"
            )
        )(bias)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", EVERY)
def test_the_layer_on_a_mesh(implementation):
    mesh = make_mesh((2, 2, 1), jax.devices()[:4])
    layer, targets, mask, pixels = layer_and_targets("uint8", "random", (8, 9, 48))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((("data", "fsdp"),), ()))
    placed = (jax.device_put(layer[0], split), *jax.device_put(layer[1:], whole))
    rows = jax.device_put((targets, mask), split)

    def loss(layer, targets, mask):
        return projected_reconstruction_loss(
            *layer, targets, mask, normalize=True, pixels=pixels, implementation=implementation
        )

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss)).lower(placed, *rows).compile()
    check_layer(step(placed, *rows), layer_reference(layer, targets, mask, pixels, True), layer)
    assert "all-gather" not in step.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("implementation", EVERY)
@pytest.mark.parametrize("mask", [None, "random"])
def test_on_a_mesh_every_device_has_its_own_part(mask, implementation):
    mesh = make_mesh((2, 2, 1), jax.devices()[:4])
    inputs = arrays((8, 9, 48), "uint8", mask)
    predictions, targets, weights, pixels = inputs
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    placed = [None if x is None else jax.device_put(x, split) for x in inputs[:3]]

    def loss(predictions, targets, weights):
        return masked_reconstruction_loss(
            predictions,
            targets,
            weights,
            normalize=True,
            pixels=pixels,
            implementation=implementation,
        )

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss)).lower(*placed).compile()
    found = step(*placed)
    # Fewer patches count on some devices than on others, so the denominator has to be that of all.
    check(found, loss_and_gradient(predictions, targets, weights, normalize=True, pixels=pixels))
    assert "all-gather" not in step.as_text()
    assert found[1].sharding.is_equivalent_to(split, 3)


@pytest.mark.parametrize("platform, kernel", [("cuda", "pallas_gpu"), ("tpu", "pallas_tpu")])
@pytest.mark.parametrize("normalize", [True, False])
def test_lowers_for_platforms_that_are_not_there(platform, kernel, normalize):
    call = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}[platform]
    for name, shape in SHAPES.items():
        for implementation, calls in (("pallas", 1), (kernel, 1), ("xla", 0), (None, 0)):
            if implementation in (None, "xla") and name != "b16":
                continue
            assert (
                lowered(platform, shape, implementation, normalize).count(f"@{call}(") == calls
            ), (name, implementation)
    assert call not in lowered("cpu", SHAPES["b16"], "pallas", normalize)


def lowered(platform, shape, implementation, normalize=True):
    sizes = shape.images, shape.patches, shape.values
    kind = {"cuda": "NVIDIA H100 80GB HBM3", "tpu": "TPU v5 lite", "cpu": "cpu"}[platform]
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    pixels = np.zeros(sizes[-1], np.float32), np.ones(sizes[-1], np.float32)

    def loss(predictions, targets):
        return masked_reconstruction_loss(
            predictions, targets, normalize=normalize, pixels=pixels, implementation=implementation
        )

    of = jax.ShapeDtypeStruct
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        traced = jax.jit(jax.value_and_grad(loss)).trace(
            of(sizes, jnp.bfloat16), of(sizes, jnp.uint8)
        )
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "target, package, shapes, cases",
    [
        ("v5e", "libtpu", ("b16", "h14", "cifar", "patch6"), ("bfloat16, uint8",)),
        ("v6e", "libtpu", ("b16", "patch6"), ("float32, float32",)),
        (
            *("h100", "jax_plugins.xla_cuda12"),
            *(("b16", "h14", "cifar", "patch6"), ("bfloat16, uint8", "float32, float32")),
        ),
    ],
)
def test_compiles_for_accelerators_that_are_not_there(target, package, shapes, cases):
    found = package.split(".")[0]
    if importlib.util.find_spec(found) is None or importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extras: tpu, cuda)")
    rows = list(benchmark.run(target, shapes, cases))
    assert len(rows) == len(shapes) * len(cases) * 3 * 3
    for row in rows:
        assert row.kernel == (row.implementation == "pallas")
        if row.kernel and row.part != "head":
            # What has to be moved, and little else: a loss of each patch, pixel statistics. On TPU it is an estimate.
            assert row.least <= row.moved < 1.1 * row.least or target != "h100"
            assert row.temp < 0.05 * row.least or target != "h100"
        if row.kernel and row.part == "head" and row.shape == "b16" and target != "h100":
            # Nothing of the predictions' size is stored, even without the memory that is not counted.
            assert row.temp < 256 * 147 * 768


def test_shapes_that_a_kernel_does_not_take_fall_back(monkeypatch):
    many = api.jax.ShapeDtypeStruct((3 * 2**20, 1, 768), jnp.bfloat16)
    assert "32-bit" in why_not("pallas_gpu", many.shape)
    assert why_not("pallas_tpu", many.shape) is None
    assert "3 devices cannot share" in why_not("pallas_tpu", (4, 2, 48), parts=3)
    assert "no patch" in why_not("pallas_gpu", (0, 2, 48))
    assert "VMEM" in why_not("pallas_tpu", (1, 2, 2**15))
    assert "registers" in why_not("pallas_gpu", (1, 2, 2**17))
    from blockjax.kernels.masked_reconstruction.shapes import Shape

    text = lowered("cuda", Shape(3 * 2**20, 1, 768, 512), "pallas")
    assert "triton" not in text
    # A JAX without Pallas on Triton.
    monkeypatch.setitem(gradient._KERNELS, "pallas_gpu", None)
    assert "triton" not in lowered("cuda", SHAPES["b16"], "pallas_gpu")


@pytest.mark.parametrize(
    "kernel, platform, kind, capability, fits",
    [
        ("pallas_gpu", "gpu", "Tesla T4", "7.5", False),
        ("pallas_gpu", "gpu", "NVIDIA A100", "8.0", True),
        ("pallas_tpu", "tpu", "TPU v3", None, False),
        ("pallas_tpu", "tpu", "TPU v5 lite", None, True),
    ],
)
def test_old_devices_are_told_so(kernel, platform, kind, capability, fits):
    class Device:
        device_kind = kind
        compute_capability = capability

    Device.platform = platform
    reason = why_not(kernel, (2, 9, 48), device=Device)
    assert reason is None if fits else kind in reason


@pytest.mark.parametrize("values", [48, 108, 192, 588, 768, 1024, 3072])
def test_blocks_cover_rows_and_waste_little(values):
    rows, columns, chunks = gpu_blocks(values)
    for power in (rows, columns):
        assert power & (power - 1) == 0
    assert values <= columns * chunks < values + columns
    assert columns * chunks <= values * 1.125
    assert rows * columns * chunks <= 4096 and rows <= 64
    for patches in (1, 20, 49, 147, 1000):
        (images, joined, _), block = tpu_blocks((6, patches, values))
        assert images * joined == 6 * patches
        assert block == joined or block % 128 == 0
        assert block * values <= max(2**18, 128 * values)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((2, 9, 48), (2, 8, 48), "float32", "float32", None), r"one shape \[..., P\]"),
        (((48,), (48,), "float32", "float32", None), r"one shape \[..., P\]"),
        (((2, 9, 1), (2, 9, 1), "float32", "float32", None), "P must be at least 2"),
        (((2, 9, 48), (2, 9, 48), "float16", "float32", None), "predictions are float16"),
        (((2, 9, 48), (2, 9, 48), "float32", "int32", None), "targets are int32"),
        (((2, 9, 48), (2, 9, 48), "float32", "float32", (2, 8)), r"a weight for each patch"),
    ],
)
def test_bad_arguments(arguments, message):
    of_predictions, of_targets, predictions, targets, mask = arguments
    with pytest.raises(ValueError, match=message):
        masked_reconstruction_loss(
            jnp.zeros(of_predictions, predictions),
            jnp.zeros(of_targets, targets),
            None if mask is None else jnp.ones(mask),
            normalize=True,
        )


def test_defaults_are_kernels_that_exist():
    assert set(MEASURED_BEST.values()) <= set(IMPLEMENTATIONS)
    assert {pallas_gpu.run.__module__, pallas_tpu.run.__module__} <= {
        f"blockjax.kernels.masked_reconstruction.{name}" for name in gradient._KERNELS
    }


@functools.cache
def losses_without_kernels(shape, **fields):
    return train(tiny_learner(**fields), shape, steps=2)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "implementation, strategy, shape",
    [
        ("interpret_tpu", "blockwise", (1, 1, 1)),
        ("interpret_gpu", "blockwise", (1, 1, 1)),
        ("interpret_tpu", "blockwise", (2, 2, 1)),
        ("interpret_gpu", "blockwise", (2, 2, 1)),
        ("interpret_tpu", "end_to_end", (2, 1, 1)),
        ("interpret_tpu", "streamed", (2, 1, 1)),
        ("interpret_tpu", "pipelined", (1, 1, 2)),
        ("interpret_gpu", "pipelined", (1, 1, 2)),
        ("interpret_tpu", "pipelined", (2, 1, 2)),  # the batch is split inside a shard_map: XLA
    ],
)
def test_in_a_training_step(implementation, strategy, shape, monkeypatch):
    used = []
    for module in (pallas_gpu, head_tpu):
        run = module.run
        monkeypatch.setattr(module, "run", lambda *a, run=run, **k: used.append(1) or run(*a, **k))
    fields = {"model.depth": 2, "blocks": 2, "strategy": strategy}
    if strategy == "pipelined":
        fields["pipeline.batches"] = 2
    losses = losses_without_kernels(shape, **fields)
    found, _ = train(tiny_learner(**fields, **{"loss.implementation": implementation}), shape, 2)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert bool(used) == (shape != (2, 1, 2))
