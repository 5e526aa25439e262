"""Attention over all scores: its own gradients against those of plain einsums, and what a CPU makes of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2h_jax.models.attention import MASKED, packed_causal

L = 24
SEGMENTS = np.array([[1] * 10 + [2] * 14, [1] * 17 + [0] * 7])


def plain(q, k, v, window=None):
    """[B, L, H, h] in float32, head by head; a query sees its own segment, backwards, `window` tokens."""
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    places = np.arange(L)
    seen = (places[:, None] >= places) & (places > places[:, None] - (window or L))
    seen = seen & (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])
    scores = jnp.einsum("blhi,bshi->bhls", q, k, precision="highest") * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, MASKED), axis=-1)
    return jnp.einsum("bhls,bshi->blhi", weights, v, precision="highest")


def ours(q, k, v, window=None):
    return packed_causal(jnp.array(SEGMENTS))(q, k, v, None, window)[0]


def arrays(dtype, heads=6, kv_heads=2):
    rng = np.random.default_rng(0)
    return [jnp.array(rng.normal(size=(2, L, n, 8)), dtype) for n in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("heads, kv_heads, window", [(6, 2, None), (4, 4, None), (6, 1, 5)])
def test_values_and_gradients_are_those_of_plain_einsums(heads, kv_heads, window):
    q, k, v = arrays(jnp.float32, heads, kv_heads)
    weight = jnp.array(np.random.default_rng(1).normal(size=q.shape), jnp.float32)
    np.testing.assert_allclose(ours(q, k, v, window), plain(q, k, v, window), atol=2e-6)
    for found, expected in zip(
        jax.grad(lambda *x: (ours(*x, window) * weight).sum(), (0, 1, 2))(q, k, v),
        jax.grad(lambda *x: (plain(*x, window) * weight).sum(), (0, 1, 2))(q, k, v),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_gradients_are_float32s_within_rounding():
    exact = jax.grad(lambda *x: plain(*x).sum(), (0, 1, 2))(*(x.astype(jnp.float32) for x in arrays(jnp.bfloat16)))
    for found, expected in zip(jax.grad(lambda *x: ours(*x).sum(), (0, 1, 2))(*arrays(jnp.bfloat16)), exact, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.02 * float(jnp.abs(expected).max()))


def test_nothing_of_the_size_of_all_scores_is_turned_around_on_a_cpu():
    program = jax.jit(jax.grad(lambda *x: (ours(*x) ** 2).sum(), (0, 1, 2))).lower(*arrays(jnp.float32)).compile().as_text()
    made = re.findall(r"= f32\[([\d,]+)\]\S* (\w+)\(", program)
    sizes = [(int(np.prod([int(n) for n in shape.split(",")])), operation) for shape, operation in made]
    assert max(sizes)[0] == 2 * 6 * L * L  # all scores are there
    assert not [operation for size, operation in sizes if size == 2 * 6 * L * L and operation in ("transpose", "copy")]
