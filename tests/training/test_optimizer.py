"""The schedule and AdamW by hand; frozen parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from e2h_jax.errors import UserError
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.rules import state_shardings
from e2h_jax.training import optimizer as optimizers
from e2h_jax.training.checkpoint import Checkpoints
from e2h_jax.training.loop import init_state, make_train_step


def config(**fields):
    settings = optimizers.defaults()
    settings.update(fields)
    return settings


def test_the_schedule_by_hand():
    rate = optimizers.schedule(config(learning_rate=2.0, warmup_fraction=0.2, final_fraction=0.1), 20)
    values = [float(rate(step)) for step in range(21)]
    np.testing.assert_allclose(values[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)  # the first step moves
    np.testing.assert_allclose(values[4], 2.0, rtol=1e-6)
    np.testing.assert_allclose(values[12], 2 * (0.1 + 0.9 / 2), rtol=1e-6)  # halfway down
    np.testing.assert_allclose(values[20], 0.2, rtol=1e-6)
    np.testing.assert_allclose(values[8], 2 * (0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2), rtol=1e-6)
    assert all(a > b for a, b in zip(values[4:], values[5:], strict=False))
    assert float(rate(1000)) == pytest.approx(0.2)
    rate = optimizers.schedule(config(learning_rate=2.0, warmup_fraction=0.5, final_fraction=0.1), 2)
    np.testing.assert_allclose([float(rate(step)) for step in range(3)], [2.0, 2.0, 0.2], rtol=1e-6)


def test_the_schedule_of_the_original():
    """original-system.md, appendix A.7: factors of the steps 0 … 20 with 5 of 20 for warming up."""
    factors = "0 .2 .4 .6 .8 1 .98918 .95721 .90546 .83622 .7525 .65796 .55674 .45326 .35204 .2575 .17378 .10454 .05279 "
    factors += ".02082 .01"
    fields = {"learning_rate": 1.0, "warmup_fraction": 0.25, "final_fraction": 0.01, "first_rate_zero": True}
    rate = optimizers.schedule(config(**fields), 20)
    np.testing.assert_allclose([float(rate(step)) for step in range(21)], [float(f) for f in factors.split()], atol=5e-6)


def test_the_rate_is_that_of_the_step_that_is_told_or_else_of_the_count_of_updates():
    optimizer = optimizers.make_optimizer(config(learning_rate=1.0, warmup_fraction=0.5, clip_norm=0.0), 4, {})
    params, grads = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    state, moved = optimizer.init(params), []
    for told in ({}, {}, {"step": 0}, {"step": 0}, {"step": 1}, {}, {}):
        updates, state = optimizer.update(grads, state, params, **told)
        moved.append(-float(updates["w"]))  # with an even gradient, Adam moves by the rate
    np.testing.assert_allclose(moved, [0.5, 1.0, 0.5, 0.5, 1.0, 1.0, 0.505], rtol=1e-4)


def test_it_is_adamw_of_optax_to_the_bit_and_older_checkpoints_fit():
    settings, params = config(learning_rate=0.1, weight_decay=0.01), tree(w=[1.0, -2.0], head=[0.5])
    adam = {"b1": settings.b1, "b2": settings.b2, "eps": settings.eps, "weight_decay": 0.01}
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optimizers.schedule(settings, 5), **adam))
    ours = optimizers.make_optimizer(settings, 5, params)
    states = [ours.init(params), theirs.init(params)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for gradient in (3.0, -0.2, 0.1):
        grads, found = tree(w=[gradient, 1.0], head=[gradient]), []
        for number, optimizer in enumerate((ours, theirs)):
            updates, states[number] = jax.jit(optimizer.update)(grads, states[number], params)
            found.append(updates)
        jax.tree.map(np.testing.assert_array_equal, *found)
        jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.05, 1.0])
def test_short_runs_have_a_positive_finite_rate_that_never_exceeds_the_peak(steps, warmup_fraction):
    rate = optimizers.schedule(config(learning_rate=1.0, warmup_fraction=warmup_fraction), steps)
    values = [float(rate(step)) for step in range(steps)]
    assert all(0 < value <= 1 for value in values) and max(values) == 1


def tree(**arrays):
    return nnx.State({name: nnx.Param(jnp.asarray(value, jnp.float32), axes=(None,)) for name, value in arrays.items()})


def test_two_steps_of_adamw_by_hand():
    settings = config(
        learning_rate=0.1, warmup_fraction=0.5, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.01, clip_norm=1.0, final_fraction=0.0
    )
    params = tree(w=[1.0, -2.0], b=[0.5])
    transform = optimizers.make_optimizer(settings, 4, params)
    state = transform.init(params)
    w = np.array([1.0, -2.0, 0.5])
    m = v = np.zeros(3)
    for step, gradient in enumerate([np.array([3.0, 0.0, 4.0]), np.array([0.1, -0.2, 0.0])]):
        updates, state = transform.update(tree(w=gradient[:2], b=gradient[2:]), state, params)
        params = optax.apply_updates(params, updates)
        g = gradient / max(1.0, np.sqrt((gradient**2).sum()))  # norm 5 is clipped to 1, the second is not
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        m_hat, v_hat = m / (1 - 0.8 ** (step + 1)), v / (1 - 0.9 ** (step + 1))
        w = w - [0.05, 0.1][step] * (m_hat / (np.sqrt(v_hat) + 1e-3) + 0.01 * w)
        np.testing.assert_allclose(np.r_[params["w"][...], params["b"][...]], w, rtol=1e-5)


def state_of(mesh, settings):
    params = nnx.State(
        {
            "trunk": nnx.State({"q": nnx.Param(jnp.arange(32.0).reshape(8, 4) / 32, axes=("embed", "heads"))}),
            "head": nnx.Param(jnp.ones((4,)), axes=(None,)),
        }
    )
    params = jax.device_put(params, state_shardings(mesh, params))
    transform = optimizers.make_optimizer(settings, 8, params)
    with jax.set_mesh(mesh):
        return init_state(params, transform, mesh), transform


def test_moments_are_laid_out_like_their_parameters():
    mesh = make_mesh((1, 4, 2))
    state, _ = state_of(mesh, config())
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (8, 4)]
    assert len(moments) == 2
    assert all(moment.sharding.spec == jax.P("fsdp", "tensor") for moment in moments)
    assert all(moment.dtype == jnp.float32 for moment in moments)


class Iterator:
    """Stands for Grain's."""

    def __init__(self, position):
        self.position = position

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def test_frozen_parameters_stay_bitwise_take_no_memory_and_survive_a_checkpoint(tmp_path):
    mesh = make_mesh((1, 4, 2))
    settings = config(learning_rate=0.1, weight_decay=0.1, freeze=("^trunk",))
    state, transform = state_of(mesh, settings)
    before = np.asarray(state.params["trunk"]["q"][...]).copy()
    assert not [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (8, 4)]
    assert len([leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (4,)]) == 2

    def loss_fn(params, batch):
        error = (batch["tokens"] @ params["trunk"]["q"][...] @ params["head"][...] - 1.0) ** 2
        return (error * batch["loss_weights"]).sum(), {}

    batch = {"tokens": jnp.ones((8, 8)), "loss_weights": jnp.ones((8,)), "segment_ids": jnp.ones((8, 8), jnp.int32)}
    step = make_train_step(loss_fn, transform, state)
    with jax.set_mesh(mesh):
        state, _ = step(state, batch)
        state, _ = step(state, batch)
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            checkpoints.save(2, state, Iterator(17))
        expected, _ = step(jax.tree.map(jnp.copy, state), batch)
        fresh, _ = state_of(mesh, settings)
        iterator = Iterator(0)
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            start, restored = checkpoints.restore(fresh, iterator)
        assert start == 2
        assert iterator.position == 17
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        continued, _ = step(restored, batch)
    jax.tree.map(np.testing.assert_array_equal, continued, expected)
    np.testing.assert_array_equal(continued.params["trunk"]["q"][...], before)
    assert (np.asarray(continued.params["head"][...]) != 1).all()
    assert int(continued.step) == 3


def test_freezing_is_a_regular_expression_on_paths():
    params = state_of(make_mesh((1, 8, 1)), config())[0].params
    for freeze in (("no_such",), ("head", "trunk/k")):
        with pytest.raises(UserError, match=r"matches none of the parameters .*head.*trunk/q|.*trunk/q.*head"):
            optimizers.make_optimizer(config(freeze=freeze), 8, params)
    with pytest.raises(UserError, match="freezes every parameter"):
        optimizers.make_optimizer(config(freeze=("head", "trunk")), 8, params)
    optimizers.make_optimizer(config(freeze=("q$",)), 8, params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": -1e-3}, r"learning_rate=-0.001 must be at least 0"),
        ({"b2": 1.0}, r"b2=1.0 must be at least 0 and below 1"),
        ({"warmup_fraction": 5.0}, r"warmup_fraction=5.0 must be from 0 to 1"),
    ],
)
def test_numbers_with_which_nothing_is_learnt_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        optimizers.check(config(**fields))
