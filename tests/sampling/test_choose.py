"""The choice of a token: which are left, with which frequency, and the log-probabilities that come with it."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import chisquare

from e2h_jax.sampling.choose import Settings, choose, inverse_cdf, nucleus_threshold, row_keys, row_uniforms

HALVES = np.log([[0.5, 0.25, 0.125, 0.125], [0.125, 0.125, 0.25, 0.5]])
GRID = (np.arange(4000) + 0.5) / 4000


def drawn(logits, uniforms, **settings):
    """Tokens and both log-probabilities of one row of logits at many uniforms."""
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (len(uniforms), len(logits)))
    return map(np.asarray, jax.jit(lambda x, u: choose(x, u, Settings(1, (0,), **settings)))(rows, jnp.asarray(uniforms)))


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        ({"top_k": 1}, [[0], [3]]),
        ({"top_k": 2}, [[0, 1], [2, 3]]),
        ({"top_k": 3}, [[0, 1, 2], [0, 2, 3]]),  # of twins the first
        ({"top_k": 4}, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        ({"top_k": 9}, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        ({"top_p": 1e-6}, [[0], [3]]),  # never empty
        ({"top_p": 0.49}, [[0], [3]]),
        ({"top_p": 0.51}, [[0, 1], [2, 3]]),
        ({"top_p": 0.74}, [[0, 1], [2, 3]]),
        ({"top_p": 0.76}, [[0, 1, 2, 3], [0, 1, 2, 3]]),  # twins stay together
        ({"top_k": 2, "top_p": 0.66}, [[0], [3]]),  # of the two kept by top-k, the first has 2/3
        ({"top_k": 2, "top_p": 0.67}, [[0, 1], [2, 3]]),
        ({"min_p": 0.51}, [[0], [3]]),
        ({"min_p": 0.49}, [[0, 1], [2, 3]]),
        ({"min_p": 0.24, "top_k": 3}, [[0, 1, 2], [0, 2, 3]]),
        ({"min_p": 0.49, "top_p": 0.76}, [[0, 1], [2, 3]]),
    ],
    ids=str,
)
def test_what_is_left(settings, expected):
    for logits, left in zip(HALVES, expected, strict=True):
        token, own, sampling = drawn(logits, GRID, **settings)
        assert sorted(set(token.tolist())) == left
        shares = np.exp(logits[left]) / np.exp(logits[left]).sum()
        np.testing.assert_allclose(np.bincount(token, minlength=4)[left] / len(GRID), shares, atol=1 / len(GRID))
        np.testing.assert_allclose(own, logits[token], atol=1e-6)
        np.testing.assert_allclose(sampling, np.log(shares)[[left.index(t) for t in token]], atol=1e-6)


def test_temperature_changes_the_draw_but_not_the_models_own_probability():
    logits = np.array([1.0, 0.0, -2.0])
    token, own, sampling = drawn(logits, GRID, temperature=0.5)
    np.testing.assert_allclose(np.bincount(token) / len(GRID), np.exp(log_softmax(logits * 2)), atol=1 / len(GRID))
    np.testing.assert_allclose(own, log_softmax(logits)[token], atol=1e-6)
    np.testing.assert_allclose(sampling, log_softmax(logits * 2)[token], atol=1e-6)
    token, own, sampling = drawn(logits, GRID[:3], temperature=0)
    assert token.tolist() == [0, 0, 0] and not sampling.any()
    np.testing.assert_allclose(own, log_softmax(logits)[0], atol=1e-6)


@pytest.mark.parametrize("size", [5, 512, 513, 3000])
def test_the_inverse_of_the_cdf(size):
    rng = np.random.default_rng(size)
    weights = rng.exponential(size=(50, size)) * (rng.random((50, size)) < 0.3)
    weights[:, rng.integers(size)] = 1  # never all zero
    uniforms = np.concatenate([[0.0, np.float32(1) - 2**-24], rng.random(48)]).astype(np.float32)
    found = np.asarray(inverse_cdf(jnp.asarray(weights, jnp.float32), jnp.asarray(uniforms)))
    running = np.cumsum(weights, axis=1)
    expected = (running <= (uniforms * running[:, -1])[:, None]).sum(1)
    assert (weights[np.arange(50), found] > 0).all()  # at both ends, too
    assert (found == expected).mean() > 0.95  # float32 sums may cross a border
    lower = (running - weights)[np.arange(50), found] / running[:, -1]
    upper = running[np.arange(50), found] / running[:, -1]
    assert ((lower - 1e-5 <= uniforms) & (uniforms <= upper + 1e-5)).all()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_threshold_is_that_of_a_sort(top_p):
    weights = np.random.default_rng(0).exponential(size=(20, 700)).astype(np.float32) ** 3
    found = np.asarray(nucleus_threshold(jnp.asarray(weights), top_p))
    for row, threshold in zip(weights, found[:, 0], strict=True):
        ordered = np.sort(row)[::-1].astype(np.float64)
        expected = ordered[np.searchsorted(np.cumsum(ordered), top_p * ordered.sum())]
        assert threshold == pytest.approx(expected, rel=1e-3) and threshold in row


@pytest.mark.parametrize("shape", [(6,), (2, 3)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"top_k": 20},
        {"top_k": 1},
        {"top_k": 20, "top_p": 0.9},
        {"top_k": 20, "min_p": 0.1},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.1},
        {"top_p": 0.9},
        {"top_p": 0.9, "min_p": 0.1},
        {"min_p": 0.1},
    ],
    ids=str,
)
def test_no_sort_of_the_vocabulary(settings, shape, tools):
    """In the compiled program: whether XLA sorts for `top_k`, or keeps k candidates, hangs on what is done with its result."""
    logits, uniforms = jnp.zeros((*shape, 5000)), jnp.zeros(shape)
    program = jax.jit(lambda x, u: choose(x, u, Settings(1, (0,), **{"temperature": 0.7} | settings))).lower(logits, uniforms)
    assert not tools.sorts(program.compile().as_text(), 5000)


def test_a_sort_of_the_vocabulary_is_seen(tools):
    """What the sampler did before: a slice of the candidates."""
    largest = lambda x: (found := jax.lax.top_k(x, 20)[0]) - found[..., :1]  # noqa: E731
    for program in (largest, jnp.sort, jnp.argsort):
        assert tools.sorts(jax.jit(program).lower(jnp.zeros((4, 5000))).compile().as_text(), 5000)


def test_a_rows_key_depends_on_seed_problem_and_sample_alone():
    numbers = np.array(list(product((0, 1, 7, 2**32 - 1), (0, 1, 7, 500))), np.uint32)
    data = np.asarray(jax.random.key_data(row_keys(3, numbers[:, 0], numbers[:, 1])))
    assert len({tuple(row) for row in data.tolist()}) == len(numbers)
    square = numbers[::-1].reshape(4, 4, 2)
    np.testing.assert_array_equal(
        np.asarray(jax.random.key_data(row_keys(3, square[..., 0], square[..., 1]))).reshape(16, -1), data[::-1]
    )
    alone = jax.random.key_data(row_keys(3, numbers[5:6, 0], numbers[5:6, 1]))
    np.testing.assert_array_equal(alone[0], data[5])


def test_uniforms_are_uniform_and_new_at_every_place():
    keys = row_keys(0, jnp.arange(40, dtype=jnp.uint32), jnp.zeros(40, jnp.uint32))
    numbers = np.stack([np.asarray(row_uniforms(keys, jnp.full(40, age, jnp.int32))) for age in range(100)])
    assert len(set(numbers.ravel().tolist())) > 3990
    assert chisquare(np.histogram(numbers, bins=20, range=(0, 1))[0]).pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.05
