"""The learner: any cut of a minibatch into microbatches is the same step, and equal to the training loop's."""

import jax
import numpy as np
import optax

from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.training import loop
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
        sums = learner.update(batches)
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
        learner.update(rows_of(tiny.examples[: 4 * count], 4))
    assert learner._accumulate._cache_size() == learner._apply._cache_size() == 1
