"""Attention by kernels: against plain softmax, forward and gradients; on TPU's compiler; and where no kernel is taken.

Splash runs in interpret mode here, the very kernel as plain JAX. cuDNN's needs an NVIDIA GPU: its call is only traced.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from e2h_jax.models import attention, flash
from e2h_jax.models.llama import REMAT_POLICIES
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.rules import MESH_AXES

INTERPRETED = functools.partial(flash.splash, interpret=True)


def plain(q, k, v, segment_ids, window):
    """Softmax over what a token sees, one line per definition."""
    length, group = q.shape[1], q.shape[2] // k.shape[2]
    place = np.arange(length)
    back = place[:, None] - place
    sees = (back >= 0) & (back < (window or length)) & (segment_ids[:, :, None] == segment_ids[:, None, :])
    k, v = (jnp.repeat(x.astype(jnp.float32), group, axis=2) for x in (k, v))
    scores = jnp.einsum("blhd,bshd->bhls", q.astype(jnp.float32), k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhls,bshd->blhd", jax.nn.softmax(jnp.where(sees[:, None], scores, -jnp.inf)), v)


def packed(rng, rows, length):
    """Segments of random lengths, padding at the end of each row; the last row is nothing but padding."""
    segment_ids = np.zeros((rows, length), np.int32)
    for row in segment_ids[:-1]:
        bounds = np.sort(rng.choice(np.arange(1, length), 4, replace=False))
        for number, (start, stop) in enumerate(zip([0, *bounds[:-1]], bounds, strict=True), start=1):
            row[start:stop] = number
    return segment_ids


def operands(rows, length, heads, kv_heads, head_dim, dtype=jnp.float32):
    rng = np.random.default_rng(length + heads)
    draw = lambda heads: jnp.asarray(rng.normal(size=(rows, length, heads, head_dim)), dtype)  # noqa: E731
    return draw(heads), draw(kv_heads), draw(kv_heads), packed(rng, rows, length)


def compare(attend, q, k, v, segment_ids, window, tolerance):
    """Outputs of real tokens, and gradients of a random weighted sum of them."""
    weights = np.random.default_rng(1).normal(size=q.shape) * (segment_ids > 0)[..., None, None]

    def value(function):
        def loss(q, k, v):
            out = function(q, k, v, segment_ids, window)
            return (out * weights).sum().astype(jnp.float32), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return [np.asarray(x, np.float32) for x in (out, *grads)]

    found, expected = value(attend), value(plain)
    real = segment_ids > 0
    np.testing.assert_allclose(found[0][real], expected[0][real], atol=tolerance)
    for grad, expected_grad in zip(found[1:], expected[1:], strict=True):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0.1
        np.testing.assert_allclose(grad, expected_grad, atol=tolerance)


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "head_dim", "window"),
    [
        (256, 4, 2, 64, None),
        (256, 2, 2, 128, 100),
        (200, 2, 1, 128, None),  # padded to 256
        (640, 2, 1, 64, 300),  # padded to 768, in blocks of 256
        (128, 1, 1, 80, 7),  # heads padded to 128
        (128, 1, 1, 64, 500),  # a window longer than the row
    ],
)
def test_splash_is_softmax_attention(length, heads, kv_heads, head_dim, window):
    compare(INTERPRETED, *operands(2, length, heads, kv_heads, head_dim), window, 2e-5)


def test_splash_in_bfloat16():
    """Its scores, softmax and sums are float32: as near as rounded inputs and outputs allow."""
    compare(INTERPRETED, *operands(2, 256, 4, 2, 64, jnp.bfloat16), 50, 0.06)


@pytest.mark.parametrize("window", [None, 100])
def test_splash_on_eight_devices(window):
    """Rows cut over data and fsdp, heads and their key/value heads over tensor."""
    with jax.set_mesh(make_mesh((2, 2, 2))):
        compare(functools.partial(flash.on_mesh, INTERPRETED), *operands(4, 256, 4, 2, 64), window, 2e-5)


def on(platform, shape=(1, 2, 2)):
    device = AbstractDevice(platform, None, platform)
    return jax.sharding.use_abstract_mesh(AbstractMesh(shape, MESH_AXES, (AxisType.Auto,) * 3, abstract_device=device))


@pytest.mark.parametrize(
    ("platform", "shape", "dtype", "window", "kernel"),
    [
        ("tpu", (4, 1024, 32, 128), "bfloat16", None, "splash"),
        ("tpu", (4, 1024, 32, 128), "bfloat16", 512, "splash"),
        ("tpu", (4, 130, 8, 64), "bfloat16", None, "splash"),
        ("gpu", (4, 1024, 32, 128), "bfloat16", None, "cudnn"),
        ("cpu", (4, 1024, 32, 128), "bfloat16", None, None),
        ("tpu", (4, 1024, 32, 128), "float32", None, None),
        ("tpu", (4, 127, 32, 128), "bfloat16", None, None),
        ("tpu", (4, 1024, 32, 32), "bfloat16", None, None),
        ("tpu", (4, 1024, 32, 264), "bfloat16", None, None),
        ("gpu", (4, 1024, 32, 32), "bfloat16", 512, "cudnn"),
        ("gpu", (4, 1024, 32, 100), "bfloat16", None, None),
        ("gpu", (4, 1024, 32, 136), "bfloat16", None, None),
        ("tpu", (3, 1024, 32, 128), "bfloat16", None, None),
        ("tpu", (4, 1024, 32, 128), "bfloat16", jnp.int32(512), None),
    ],
)
def test_the_choice_is_the_meshs(monkeypatch, platform, shape, dtype, window, kernel):
    for name in ("splash", "cudnn"):
        monkeypatch.setattr(flash, name, name)
    monkeypatch.setattr(flash, "on_mesh", lambda kernel, *operands: kernel)
    with on(platform):
        chosen = flash.kernel_for(jax.ShapeDtypeStruct(shape, dtype), window)
    assert (chosen and chosen()) == kernel
    assert flash.kernel_for(jax.ShapeDtypeStruct(shape, dtype), window) is None  # without a mesh


@pytest.mark.parametrize("window", [None, 32])
def test_cudnn_is_called_once_forward_and_once_backward(monkeypatch, window):
    """Lowered for CUDA, under the rematerialisation of "dots": cuDNN's calls, none of them twice, and no float32 scores."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)  # there is none to ask
    q, k, v, segment_ids = operands(2, 129, 4, 2, 64, jnp.bfloat16)

    @functools.partial(jax.checkpoint, policy=REMAT_POLICIES["dots"])
    def loss(q, k, v):
        return attention.packed_causal(segment_ids)(q, k, v, None, window)[0].astype(jnp.float32).sum()

    with on("gpu", (1, 1, 1)):
        text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert text.count("custom_call @__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
    assert "130x130xf32" not in text and "129x129xf32" not in text
