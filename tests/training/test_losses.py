"""Losses against dense formulas and hand-made cases."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from e2h_jax.evaluation.quality import step_quality
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.rules import batch_sharding, partition_spec
from e2h_jax.training import losses


def dense(hidden, head, targets, weights):
    logp = jax.nn.log_softmax(hidden @ head, axis=-1)
    picked = jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]
    return -(picked * weights).sum()


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(3, 7, 8)), rng.normal(size=(8, 11))
    targets, weights = rng.integers(0, 11, (3, 7)), rng.random((3, 7))
    weights[1, 2:5] = 0
    return tuple(jnp.asarray(x, d) for x, d in ((hidden, "f4"), (head, "f4"), (targets, "i4"), (weights, "f4")))


@pytest.mark.parametrize("chunk", [4096, 7, 5, 4])  # 21 tokens: one chunk, three, five and six that need padding
def test_chunked_cross_entropy_is_the_dense_one(inputs, monkeypatch, chunk):
    monkeypatch.setattr(losses, "TOKENS_PER_CHUNK", chunk)
    hidden, head, targets, weights = inputs
    value = jax.value_and_grad(lambda h, w: losses.cross_entropy(h, w, targets, weights)[0], argnums=(0, 1))
    loss, grads = jax.jit(value)(hidden, head)
    expected, expected_grads = jax.value_and_grad(dense, argnums=(0, 1))(hidden, head, targets, weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, atol=1e-5)
    _, hits = losses.cross_entropy(hidden, head, targets, weights)
    right = np.asarray(hidden @ head).argmax(-1) == np.asarray(targets)
    np.testing.assert_allclose(hits, (right * np.asarray(weights)).sum(), rtol=1e-5)


@pytest.mark.parametrize("chunk", [4096, 7, 5, 4])
def test_chunked_token_logprobs_and_entropies_are_the_dense_ones(inputs, monkeypatch, chunk):
    monkeypatch.setattr(losses, "TOKENS_PER_CHUNK", chunk)
    hidden, head, targets, weights = inputs

    def reference(hidden, head):
        logp = jax.nn.log_softmax(hidden @ head / 0.7, axis=-1)
        return jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0], jax.scipy.special.entr(jnp.exp(logp)).sum(-1)

    def weighted(function):
        def value(hidden, head):
            logprobs, entropies = function(hidden, head)
            return (logprobs * weights + entropies * weights[::-1]).sum(), (logprobs, entropies)

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(hidden, head)

    (_, found), grads = weighted(lambda hidden, head: losses.token_logprobs(hidden, head, targets, 0.7))
    (_, expected), expected_grads = weighted(reference)
    for array, expected_array in zip(found + grads, expected + expected_grads, strict=True):
        assert array.shape == expected_array.shape and array.dtype == jnp.float32
        np.testing.assert_allclose(array, expected_array, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 1, 8), (1, 2, 4)])
@pytest.mark.parametrize("function", ["cross_entropy", "token_logprobs"])
def test_a_vocabulary_cut_over_the_tensor_axis(monkeypatch, function, shape):
    """The dense loss and its gradients; no device has the logits of the whole vocabulary, forward or backward."""
    monkeypatch.setattr(losses, "TOKENS_PER_CHUNK", 16)
    rng, mesh = np.random.default_rng(1), make_mesh(shape)
    hidden, head = rng.normal(size=(4, 12, 8)).astype("f4"), rng.normal(size=(8, 40)).astype("f4")
    targets, weights = rng.integers(0, 40, (4, 12)), rng.random((4, 12)).astype("f4")

    def loss(hidden, head, targets, weights):
        if function == "token_logprobs":
            return -(losses.token_logprobs(hidden, head, targets)[0] * weights).sum()
        return losses.cross_entropy(hidden, head, targets, weights)[0]

    rows, table = batch_sharding(mesh), NamedSharding(mesh, partition_spec(("embed", "vocab")))
    with jax.set_mesh(mesh):
        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), in_shardings=(rows, table, rows, rows))
        program = program.lower(hidden, head, targets, weights).compile()
        found, grads = program(
            *(jax.device_put(x, rows if x is not head else table) for x in (hidden, head, targets, weights))
        )
    expected, expected_grads = jax.value_and_grad(dense, argnums=(0, 1))(*map(jnp.asarray, (hidden, head, targets, weights)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, atol=1e-5)
    assert not re.search(r"f32\[(\d+,){2}40\]", program.as_text())


@pytest.mark.parametrize("function", ["cross_entropy", "token_logprobs"])
def test_the_whole_table_of_logits_never_exists(monkeypatch, function):
    """No array of the compiled forward and backward pass has tokens x vocabulary numbers."""
    monkeypatch.setattr(losses, "TOKENS_PER_CHUNK", 8)
    tokens, vocabulary = 128, 1000
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in (((1, tokens, 4), "f4"), ((4, vocabulary), "f4"))]
    targets = jax.ShapeDtypeStruct((1, tokens), "i4")
    weights = jax.ShapeDtypeStruct((1, tokens), "f4")

    def loss(hidden, head, targets, weights):
        if function == "token_logprobs":
            logprobs, entropies = losses.token_logprobs(hidden, head, targets)
            return ((logprobs + entropies) * weights).sum()
        return losses.cross_entropy(hidden, head, targets, weights)[0]

    memory = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes, targets, weights).compile().memory_analysis()
    assert memory.temp_size_in_bytes < tokens * vocabulary * 4 / 2


def test_a_token_of_weight_zero_teaches_nothing(inputs):
    hidden, head, targets, weights = inputs
    grad = jax.grad(lambda h: losses.cross_entropy(h, head, targets, weights)[0])(hidden)
    assert (np.asarray(grad)[np.asarray(weights) == 0] == 0).all()
    assert (np.abs(np.asarray(grad)[np.asarray(weights) > 0]).max(-1) > 0).all()


def test_bfloat16_hidden_states_still_give_a_float32_loss(inputs):
    hidden, head, targets, weights = inputs
    loss, hits = losses.cross_entropy(hidden.astype(jnp.bfloat16), head, targets, weights)
    assert loss.dtype == hits.dtype == jnp.float32
    np.testing.assert_allclose(loss, dense(hidden, head, targets, weights), rtol=0.02)
    # Of rounded inputs the logits are not rounded again.
    hidden, head = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in (hidden, head))
    np.testing.assert_allclose(loss, dense(hidden, head, targets, weights), rtol=1e-5)
    logprobs, _ = losses.token_logprobs(hidden.astype(jnp.bfloat16), head, targets)
    np.testing.assert_allclose(-(logprobs * weights).sum(), dense(hidden, head, targets, weights), rtol=1e-5)


def test_binary_cross_entropy_by_hand_with_soft_labels():
    p = np.array([[0.9, 0.2, 0.5, 0.7]])
    logits = np.log(p / (1 - p))
    labels = np.array([[1.0, 0.0, 0.25, 0.6]])
    weights = np.array([[0.1, 0.2, 0.3, 0.4]])
    expected = -(
        0.1 * np.log(0.9)
        + 0.2 * np.log(0.8)
        + 0.3 * (0.25 * np.log(0.5) + 0.75 * np.log(0.5))
        + 0.4 * (0.6 * np.log(0.7) + 0.4 * np.log(0.3))
    )
    loss, hits = losses.step_classification(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(hits, 0.7, rtol=1e-6)  # a probability of one half says right, and the label 0.25 wrong
    _, hits = losses.step_classification(jnp.asarray(-logits), jnp.asarray(labels), jnp.asarray(weights))
    np.testing.assert_allclose(hits, 0.0, atol=1e-6)


def test_training_and_evaluation_count_the_same_decisions_as_right():
    """At one half both label and score are right, in `label_accuracy` as in `quality`."""
    grid = np.array([[-2.0, 0.0, 2.0]]).repeat(3, 0)
    labels = np.array([[0.4], [0.5], [0.6]]).repeat(3, 1)
    _, hits = losses.step_classification(jnp.asarray(grid), jnp.asarray(labels), jnp.full((3, 3), 1 / 9))
    scores = 1 / (1 + np.exp(-grid))
    assert float(hits) == pytest.approx(step_quality(scores.tolist(), labels.tolist(), range(3))["accuracy"], abs=1e-6)
    assert float(hits) == pytest.approx(5 / 9)


def test_the_gradient_of_a_score_is_probability_minus_label_and_none_at_weight_zero():
    logits, labels = jnp.array([[2.0, -1.0, 30.0, -80.0]]), jnp.array([[0.3, 1.0, 0.0, 1.0]])
    weights = jnp.array([[0.5, 0.25, 0.0, 0.25]])
    grad = jax.grad(lambda x: losses.step_classification(x, labels, weights)[0])(logits)
    np.testing.assert_allclose(grad, (1 / (1 + np.exp(-np.asarray(logits))) - labels) * weights, atol=1e-6)
    assert grad[0, 2] == 0
    assert np.isfinite(losses.step_classification(logits * 1e4, labels, weights)[0])
