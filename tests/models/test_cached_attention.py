"""Decoding's attention against a plain softmax over the whole sequence, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2h_jax.models.attention import KeyValues
from e2h_jax.models.cached_attention import LayerCache, chunk_sizes, decode, settle

P, N, K, G, h, BLOCK = 3, 4, 2, 2, 8, 4
PLACE = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
LENGTHS = np.array([[5, 9, 1], [11, 3, 7]])  # by place
AGE = np.array([[0, 4, 12, 8], [4, 4, 0, 16], [8, 12, 4, 0]])


def cut(keys, sizes):
    """[..., columns, h] as chunks."""
    edges = np.cumsum([0, *sizes])
    return [jnp.asarray(keys[..., a:b, :], jnp.float32) for a, b in zip(edges, edges[1:], strict=False)]


@pytest.mark.parametrize("window", [None, 6, 15])
@pytest.mark.parametrize("step", [0, 2, 3])
def test_attention_in_pieces_is_attention_over_the_sequence(step, window):
    rng = np.random.default_rng(step)
    prefix = rng.normal(size=(2, 2, P, K, 16, h))  # keys and values, place
    suffix = rng.normal(size=(2, P, K, N, 32, h))  # columns from `age` on are rubbish, and must not matter
    recent = rng.normal(size=(2, P, K, N, BLOCK, h))
    q, new = rng.normal(size=(P * N, 1, K * G, h)), rng.normal(size=(2, P * N, 1, K, h))
    cache = LayerCache(
        [
            [KeyValues(k, v) for k, v in zip(*(cut(prefix[x, place], [4, 4, 8]) for x in (0, 1)), strict=True)]
            for place in (0, 1)
        ],
        [KeyValues(k, v) for k, v in zip(*(cut(suffix[x], [8, 8, 16]) for x in (0, 1)), strict=True)],
        KeyValues(*(jnp.asarray(x, jnp.float32) for x in recent)),
    )

    @jax.jit
    def run(q, k, v, cache, step):
        return decode(jnp.asarray(LENGTHS), jnp.asarray(PLACE), jnp.asarray(AGE), step)(q, k, v, cache, window)

    f32 = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    out, kept = run(f32(q), f32(new[0]), f32(new[1]), cache, jnp.int32(step))
    out = np.asarray(out).reshape(P, N, K, G, h)
    for p, n, k in np.ndindex(P, N, K):
        own = np.concatenate([recent[:, p, k, n, :step], new[:, p * N + n, 0, k][:, None]], axis=1)
        keys, values = np.concatenate(
            [prefix[:, PLACE[p, n], p, k, : LENGTHS[PLACE[p, n], p]], suffix[:, p, k, n, : AGE[p, n]], own], axis=1
        )[:, -(window or 10**6) :]
        for g in range(G):
            scores = keys @ q[p * N + n, 0, k * G + g] / np.sqrt(h)
            weights = np.exp(scores - scores.max())
            np.testing.assert_allclose(out[p, n, k, g], weights @ values / weights.sum(), atol=2e-6)
        np.testing.assert_allclose(kept.k[p, k, n, : step + 1], own[0], atol=1e-6)
        np.testing.assert_allclose(kept.v[p, k, n, step + 1 :], recent[1, p, k, n, step + 1 :], atol=1e-6)


def test_masked_pieces_change_no_bit():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    pieces = lambda *shape: KeyValues(draw(*shape), draw(*shape))  # noqa: E731
    q, k, v = draw(P * N, 1, K * G, h), draw(P * N, 1, K, h), draw(P * N, 1, K, h)
    first, other, more, recent = pieces(P, K, 16, h), pieces(P, K, 16, h), pieces(P, K, 16, h), pieces(P, K, N, BLOCK, h)
    own, beyond = pieces(P, K, N, 8, h), pieces(P, K, N, 8, h)
    lengths, age, zero = jnp.asarray(LENGTHS), jnp.minimum(jnp.asarray(AGE), 8), jnp.zeros((P, N), jnp.int32)

    @jax.jit
    def run(prefix, suffix, lengths, place):
        return decode(lengths, place, age, jnp.int32(1))(q, k, v, LayerCache(prefix, suffix, recent), None)[0]

    alone = np.asarray(run([[first], [other]], [own], lengths, zero))
    np.testing.assert_array_equal(run([[first, more], [other, more]], [own, beyond], lengths, zero), alone)
    np.testing.assert_array_equal(run([[other], [first]], [own], lengths[::-1], zero + 1), alone)


def test_recent_columns_settle_at_each_rows_age():
    rng = np.random.default_rng(1)
    suffix = rng.normal(size=(P, K, N, 24, h)).astype(np.float32)
    recent = rng.normal(size=(P, K, N, BLOCK, h)).astype(np.float32)
    pair = lambda x: KeyValues(jnp.asarray(x), jnp.asarray(-x))  # noqa: E731
    settled = jax.jit(settle)([pair(x) for x in cut(suffix, [8, 16])], pair(recent), jnp.asarray(AGE * 2))
    expected = suffix.copy()
    for p, n in np.ndindex(P, N):
        if AGE[p, n] * 2 < 24:  # rows beyond the suffix are left out
            expected[p, :, n, AGE[p, n] * 2 :][:, :BLOCK] = recent[p, :, n]
    np.testing.assert_array_equal(np.concatenate([chunk.k for chunk in settled], axis=-2), expected)
    np.testing.assert_array_equal(np.concatenate([chunk.v for chunk in settled], axis=-2), -expected)


def test_chunks_double():
    assert [chunk_sizes(64, n) for n in (0, 1, 64, 65, 128, 129, 1000)] == [
        [64], [64], [64], [64, 64], [64, 64], [64, 64, 128], [64, 64, 128, 256, 512],
    ]  # fmt: skip
    assert [chunk_sizes(64, n, equal=4) for n in (64, 129, 256, 1000)] == [
        [64], [64, 64, 64], [64, 64, 64, 64], [64, 64, 64, 64, 256, 512],
    ]  # fmt: skip
