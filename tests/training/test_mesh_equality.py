"""One training run on every mesh: 20 steps of a policy and of a reward model, in two microbatches with rematerialisation.

`pytest -s` prints the table of docs/scale.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from e2h_jax.data.batches import packed_batches
from e2h_jax.models.attention import packed_causal
from e2h_jax.models.heads import RewardModel
from e2h_jax.models.llama import Llama, LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.rules import batch_sharding, state_shardings
from e2h_jax.training import loop, losses
from e2h_jax.training.optimizer import make_optimizer

SHAPE = LlamaConfig(vocab_size=16, width=32, layers=2, heads=8, kv_heads=4, head_dim=8, mlp_width=64, remat="dots")
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]
STEPS = 20
KINDS = {"policy": Llama, "reward": RewardModel}


def sft_loss(model, batch):
    hidden, _ = model(batch["tokens"], batch["positions"], packed_causal(batch["segment_ids"]))
    return losses.cross_entropy(hidden, model.output_matrix(), batch["targets"], batch["loss_weights"])[0]


def reward_loss(model, batch):
    logits, hidden = model(batch["tokens"], batch["positions"], packed_causal(batch["segment_ids"]))
    loss, _ = losses.step_classification(logits, batch["labels"], batch["label_weights"])
    return loss + 0.1 * losses.cross_entropy(hidden, model.trunk.output_matrix(), batch["targets"], batch["loss_weights"])[0]


def examples():
    """Arithmetic progressions; the label says whether the step is odd. Weights are very uneven."""
    rng = np.random.default_rng(0)
    for _ in range(900):
        length, step = rng.integers(3, 14), rng.integers(1, 4)
        tokens = (rng.integers(16) + step * np.arange(length)) % 16
        yield {
            "tokens": tokens[:-1].astype(np.int32),
            "targets": tokens[1:].astype(np.int32),
            "positions": np.arange(length - 1, dtype=np.int32),
            "loss_weights": (rng.random(length - 1) < rng.choice([0.1, 0.9])).astype(np.float32),
            "labels": np.full(length - 1, step % 2, np.float32),
            "label_weights": (rng.random(length - 1) < 0.5).astype(np.float32),
        }


@pytest.fixture(scope="module")
def batches():
    found = list(packed_batches(list(examples()), length=16, batch_size=16, seed=0, epochs=1)[0])
    assert len(found) >= STEPS
    return found[:STEPS]


def start(kind, mesh):
    """The graph, and parameters that depend on nothing but the kind."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: KINDS[kind](SHAPE, nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    values = jax.tree_util.tree_map_with_path(
        lambda path, x: (("norm" in jax.tree_util.keystr(path)) + rng.normal(0, 0.15, x.shape)).astype(np.float32), abstract
    )
    return graph, jax.tree.map(jnp.copy, jax.device_put(values, state_shardings(mesh, abstract)))


def stepper(kind, mesh, optimizer, microbatches):
    graph, params = start(kind, mesh)
    loss = sft_loss if kind == "policy" else reward_loss
    state = loop.init_state(params, optimizer(params), mesh)
    return state, loop.make_train_step(
        lambda params, batch: (loss(nnx.merge(graph, params), batch), {}), optimizer(params), state, microbatches
    )


def curve(kind, mesh, batches):
    """Losses and gradient norms of 20 steps of AdamW."""
    config = loop.defaults()
    config.optimizer.learning_rate = 3e-3
    with jax.set_mesh(mesh):
        state, step = stepper(kind, mesh, lambda params: make_optimizer(config.optimizer, STEPS, params), microbatches=2)
        logged = []
        for batch in batches:
            state, metrics = step(state, {n: jax.device_put(array, batch_sharding(mesh)) for n, array in batch.items()})
            logged.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.array(logged).T


@pytest.fixture(scope="module", params=KINDS)
def one_device(request, batches):
    loss, norm = curve(request.param, make_mesh((1, 1, 1), jax.devices()[:1]), batches)
    assert loss[-4:].mean() < loss[:4].mean() - 0.05  # it learns
    return request.param, loss, norm


@pytest.mark.filterwarnings("error")  # as of buffers that were given away and could not be used
@pytest.mark.parametrize("shape", MESHES)
def test_twenty_steps_are_the_same_on_every_mesh(one_device, batches, capfd, shape):
    kind, loss, norm = one_device
    other_loss, other_norm = curve(kind, make_mesh(shape), batches)
    assert "rematerialization" not in capfd.readouterr().err  # XLA's word on a layout that it cannot have without a full copy
    difference, share = np.abs(other_loss - loss).max(), np.abs(other_norm / norm - 1).max()
    print(f"\n| {kind} | {shape} | {difference:.1e} | {share:.1e} |", end="")
    assert difference < 1e-5 and share < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_four_microbatches_of_uneven_token_counts_are_one_batch(kind, batches):
    """One step of gradient descent: the loss and every new parameter."""
    batch = {name: array.copy() for name, array in batches[0].items()}
    for name in ("loss_weights", "label_weights"):
        batch[name][:4] = 0  # the first microbatch has no weighted token,
        batch[name][4:8, 1:] = 0  # the second hardly any
    counts = batch["loss_weights"].reshape(4, -1).sum(1)
    assert counts[0] == 0 and counts[1] < 5 and counts[3] > 20
    mesh, found = make_mesh((1, 1, 1), jax.devices()[:1]), []
    with jax.set_mesh(mesh):
        for microbatches in (1, 4):
            state, step = stepper(kind, mesh, lambda _: optax.sgd(1.0), microbatches)
            before = jax.tree.map(np.asarray, state.params)
            state, metrics = step(state, batch)
            found.append((float(metrics["loss"]), jax.tree.map(np.asarray, state.params)))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[0][1], found[1][1])
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), before, found[0][1]))) > 1e-2
