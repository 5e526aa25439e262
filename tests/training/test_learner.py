"""The learner: any cut of a minibatch into microbatches is the same step, and equal to the training loop's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.training import loop
from e2h_jax.training import optimizer as optimizers
from e2h_jax.training.learner import Learner


def rows_of(examples, rows, length=16):
    """Batches of `rows` rows with one example each, the last filled with padding."""
    batches = []
    for start in range(0, len(examples), rows):
        batch = {name: np.zeros((rows, length), array.dtype) for name, array in examples[0].items()}
        batch["segment_ids"] = np.zeros((rows, length), np.int32)
        for row, example in enumerate(examples[start : start + rows]):
            for name, array in example.items():
                batch[name][row, : len(array)] = array
            batch["segment_ids"][row, : len(example["tokens"])] = 1
        batches.append(batch)
    return batches


def test_microbatches_and_devices_make_no_difference(tiny):
    examples = tiny.examples[:24]
    total = sum(example["loss_weights"].sum() for example in examples)
    optimizer = optax.sgd(0.1)
    found = []
    for shape, rows in (((1, 1, 1), 24), ((1, 1, 1), 7), ((2, 2, 2), 8)):
        mesh = make_mesh(shape, jax.devices()[: int(np.prod(shape))])
        learner = Learner(tiny.loss_fn, optimizer, tiny.params(mesh), None, mesh)
        batches = rows_of(examples, rows)
        for batch in batches:
            batch["loss_weights"] /= total
        sums = learner.update(batches, 0)
        found.append((jax.tree.map(np.asarray, learner.params), {name: float(value) for name, value in sums.items()}))

    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    state = loop.init_state(tiny.params(mesh), optimizer, mesh)
    with jax.set_mesh(mesh):
        state, metrics = loop.make_train_step(tiny.loss_fn, optimizer, state)(state, rows_of(examples, 24)[0])
    found.append((jax.tree.map(np.asarray, state.params), {name: float(metrics[name]) for name in found[0][1]}))
    for params, sums in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, found[0][0])
        assert sums.keys() == found[0][1].keys()
        for name, value in sums.items():
            np.testing.assert_allclose(value, found[0][1][name], rtol=1e-5)


def test_two_programs_whatever_comes(tiny):
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    learner = Learner(tiny.loss_fn, optax.adam(1e-2), tiny.params(mesh), None, mesh)
    for count in (3, 1, 5):
        learner.update(rows_of(tiny.examples[: 4 * count], 4), count)
    assert learner._accumulate._cache_size() == learner._apply._cache_size() == 1


def two_weights(**settings):
    """w and b of the loss 3 w + 200 b, and their optimiser."""
    params = nnx.State({name: nnx.Param(jnp.ones(1), axes=(None,)) for name in ("w", "b")})
    config = optimizers.defaults()
    config.update(settings)
    return params, lambda p, batch: (jnp.sum(batch["x"] * (3 * p["w"][...] + 200 * p["b"][...])), {}), config


def test_the_rate_is_that_of_the_step_of_the_run():
    """Several updates in a step, then none for a while, then the last step: with an even gradient Adam moves by the rate."""
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    params, loss_fn, config = two_weights(learning_rate=0.5, warmup_fraction=0.05, eps=1e-12, clip_norm=0.0, b2=0.9)
    rate = optimizers.schedule(config, 100)
    learner, moved = Learner(loss_fn, optimizers.make_optimizer(config, 100, params), params, None, mesh), []
    steps = [0, 0, 0, 1, 41, 41, 99]
    for step in steps:
        before = float(learner.params["w"][...][0])
        learner.update([{"x": np.ones((1, 1), np.float32)}], step)
        moved.append(before - float(learner.params["w"][...][0]))
    np.testing.assert_allclose(moved, [float(rate(step)) for step in steps], rtol=2e-4)
    assert moved[-1] == pytest.approx(0.5 * config.final_fraction, rel=0.05)  # at the end as configured


@pytest.mark.parametrize("freeze", [(), ("^b$",)])
def test_the_norm_that_is_logged_is_the_one_that_is_clipped(freeze):
    """200 of the frozen weight are not in it; nor is its gradient computed."""
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    params, loss_fn, config = two_weights(learning_rate=1.0, warmup_fraction=0.0, clip_norm=1.0, freeze=freeze)
    optimizer = optimizers.make_optimizer(config, 4, params)
    batch = {"x": np.ones((1, 1), np.float32), "segment_ids": np.ones((1, 1), np.int32)}
    expected = 3.0 if freeze else np.hypot(3, 200)

    with jax.set_mesh(mesh):
        state = loop.init_state(jax.tree.map(jnp.copy, params), optimizer, mesh)
        state, metrics = loop.make_train_step(loss_fn, optimizer, state)(state, batch)
        grads = jax.grad(lambda p: loss_fn(optimizers.stop_frozen(optimizer, p), batch)[0])(params)
    learner = Learner(loss_fn, optimizer, params, None, mesh)
    seen = learner.update([batch, batch], 0)
    assert float(metrics["grad_norm"]) == pytest.approx(expected, rel=1e-5)
    assert float(seen["grad_norm"]) == pytest.approx(2 * expected, rel=1e-5)
    assert (grads["b"][...] == (0 if freeze else 200)).all()
    for trained in (state.params, learner.params):
        assert (trained["b"][...] == 1).all() == bool(freeze) and (trained["w"][...] < 1).all()
