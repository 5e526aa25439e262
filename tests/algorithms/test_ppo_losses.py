"""PPO's arithmetic: losses against hand-worked numbers and an independent NumPy version, minibatch weights, packing."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2h_jax.algorithms import ppo
from e2h_jax.algorithms.actor_critic import policy_loss, value_loss
from e2h_jax.data.rollout import Rollout, pack
from e2h_jax.errors import UserError


def config_of(**fields):
    config = ppo.defaults().unlock()
    for name, value in fields.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    return config


def rollouts_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for number, (prompt, response) in enumerate(lengths):
        zeros = np.zeros(response, np.float32)
        tokens = [rng.integers(1, 90, size).astype(np.int32) for size in (prompt, response)]
        made.append(Rollout({"id": str(number)}, 0, *tokens, zeros, zeros, True, ""))
    return made


def experience_of(lengths, responses=6, seed=0):
    rng = np.random.default_rng(seed)
    rollouts = rollouts_of(lengths)
    mask = np.array([[t < len(r.tokens) for t in range(responses)] for r in rollouts], np.float32)
    arrays = rng.normal(size=(5, *mask.shape)).astype(np.float32) * mask
    return ppo.Experience(rollouts, mask, *arrays)


def test_the_clipped_loss_by_hand():
    # Ratios 1.5 and 0.5, clip 0.2. A = 1: the first is cut to 1.2, the second is not cut (pessimism); A = -1: the other way.
    batch = {
        "weights": jnp.full((1, 4), 0.25),
        "advantages": jnp.array([[1.0, 1.0, -1.0, -1.0]]),
        "old_logprobs": jnp.zeros((1, 4)),
    }
    logprobs = jnp.log(jnp.array([[1.5, 0.5, 1.5, 0.5]]))
    loss, sums = policy_loss(logprobs, jnp.zeros((1, 4)), batch, config_of(clip=0.2, kl__coef=0.0))
    assert loss == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4, abs=1e-6)
    assert sums["clipped"] == pytest.approx(1.0)
    assert sums["approximate_kl"] == pytest.approx((0.5 + -0.5 - np.log(1.5) - np.log(0.5)) / 2 + 0.0, abs=1e-6)


def test_the_value_loss_by_hand():
    # Old 0, return 1: 0.5 counts as 0.2 (worse); -1 as it is (already worse than -0.2).
    batch = {"weights": jnp.full((1, 2), 0.5), "old_values": jnp.zeros((1, 2)), "returns": jnp.ones((1, 2))}
    loss, _ = value_loss(jnp.array([[0.5, -1.0]]), batch, config_of(clip_value=0.2, value_coef=0.1))
    assert loss == pytest.approx(0.1 * 0.5 * (0.8**2 + 2.0**2) / 2, abs=1e-6)


@pytest.mark.parametrize("place", ["reward", "loss"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_losses_equal_numpy(place, estimator):
    rng = np.random.default_rng(1)
    names = ("advantages", "old_logprobs", "reference_logprobs", "old_values", "returns")
    batch = dict(zip(names, rng.normal(size=(5, 3, 7)).astype(np.float32), strict=True))
    batch["weights"] = rng.random((3, 7)).astype(np.float32) * (rng.random((3, 7)) < 0.7)
    logprobs, entropy, values = rng.normal(size=(3, 3, 7)).astype(np.float32)
    config = config_of(kl__place=place, kl__estimator=estimator, kl__coef=0.3, entropy__loss_coef=0.05)
    loss, _ = policy_loss(jnp.array(logprobs), jnp.array(entropy), batch, config)
    expected = expected_value = 0.0
    for place_ in np.ndindex(3, 7):
        b = {name: float(value[place_]) for name, value in batch.items()}
        ratio, d = np.exp(float(logprobs[place_]) - b["old_logprobs"]), b["reference_logprobs"] - float(logprobs[place_])
        token = max(-b["advantages"] * ratio, -b["advantages"] * min(max(ratio, 0.8), 1.2)) - 0.05 * float(entropy[place_])
        if place == "loss":
            token += 0.3 * {"k1": -d, "k2": d * d / 2, "k3": np.exp(d) - 1 - d}[estimator]
        expected += b["weights"] * token
        value = float(values[place_])
        near = min(max(value, b["old_values"] - 0.2), b["old_values"] + 0.2)
        expected_value += b["weights"] * 0.05 * max((value - b["returns"]) ** 2, (near - b["returns"]) ** 2)
    assert float(loss) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert float(value_loss(jnp.array(values), batch, config)[0]) == pytest.approx(expected_value, rel=1e-6)


def test_gradients_of_padding_are_exactly_zero():
    rng = np.random.default_rng(2)
    batch = {name: rng.normal(size=(2, 5)).astype(np.float32) for name in ("advantages", "old_values", "returns")}
    # What a forward pass makes of padding may be anything.
    batch |= {"old_logprobs": np.zeros((2, 5), np.float32), "reference_logprobs": np.zeros((2, 5), np.float32)}
    batch["weights"] = np.array([[0.1, 0.2, 0, 0, 0], [0.3, 0, 0, 0, 0.4]], np.float32)
    logprobs = jnp.where(batch["weights"] > 0, -1.0, -300.0)
    config = config_of(kl__place="loss", kl__estimator="k3", entropy__loss_coef=0.1)
    grads = jax.grad(lambda x, e: policy_loss(x, e, batch, config)[0], argnums=(0, 1))(logprobs, jnp.ones((2, 5)))
    grads = (*grads, jax.grad(lambda v: value_loss(v, batch, config)[0])(jnp.ones((2, 5))))
    for grad in grads:
        assert np.isfinite(grad).all()
        assert (np.asarray(grad)[batch["weights"] == 0] == 0).all()
        assert (np.asarray(grad)[batch["weights"] > 0] != 0).any()


LENGTHS = [(3, 4), (5, 6), (2, 1), (4, 2), (3, 3)]


@pytest.mark.parametrize(
    ("mean", "weight"),  # of a token of a response of t tokens, of those chosen: 4, 1 and 3 tokens
    [("tokens", lambda t: 1 / 8), ("sequences", lambda t: 1 / t / 3), ("slots", lambda t: 1 / 18)],
)
def test_weights_of_a_minibatch(mean, weight):
    experience = experience_of(LENGTHS)
    chosen = np.array([4, 0, 2])
    batches = ppo.minibatch(experience, chosen, config_of(loss_mean=mean, length=16, update_rows=2))
    found = np.concatenate([batch["weights"][batch["weights"] > 0] for batch in batches])
    expected = [weight(t) for t in (4, 1, 3) for _ in range(t)]
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-6)
    assert all(batch["tokens"].shape == (2, 16) for batch in batches)


def test_what_is_logged_of_tokens_does_not_count_padding():
    experience = experience_of([(2, 3), (2, 5)])
    for mean in ("tokens", "slots"):
        config = config_of(loss_mean=mean, minibatches=1, target_kl=0.4, epochs=2)
        updates = []

        def update(batches, updates=updates):  # half of the tokens clipped, each 0.5 nats away
            updates.append(sum(batch["weights"].sum() for batch in batches))
            return {"clipped": 0.5 * updates[-1], "approximate_kl": 0.5 * updates[-1]}

        models = SimpleNamespace(value=None, policy=SimpleNamespace(update=update))
        said = ppo.learn(experience, models, config, 1)
        assert len(updates) == 1  # target_kl ends both passes
        assert updates[0] == pytest.approx(1.0 if mean == "tokens" else 8 / 12)
        assert said == pytest.approx({"clipped": 0.5, "approximate_kl": 0.5})


def test_rows_hold_every_token_where_it_is_predicted():
    rollouts = rollouts_of(LENGTHS)
    values = np.arange(5 * 6, dtype=np.float32).reshape(5, 6) + 1
    back = np.zeros_like(values)
    for rows in pack(rollouts, [3, 1, 0, 4], rows=2, length=11):
        laid = rows.spread(values)
        rows.collect(laid, back)
        for index, row, column, length in rows.places:
            where = slice(column, column + length)
            np.testing.assert_array_equal(rows.arrays["targets"][row, where], rollouts[index].tokens)
            np.testing.assert_array_equal(laid[row, where], values[index, :length])
            start = len(rollouts[index].prompt) - 1
            np.testing.assert_array_equal(rows.arrays["positions"][row, where], start + np.arange(length))
        padding = rows.arrays["segment_ids"] == 0
        assert not laid[padding].any() and not rows.arrays["tokens"][padding].any()
    for index, (_, length) in enumerate(LENGTHS):
        expected = np.where(np.arange(6) < length, values[index], 0) if index != 2 else 0
        np.testing.assert_array_equal(back[index], expected)
    with pytest.raises(UserError, match="11 tokens.*length=10"):
        pack([*rollouts, *rollouts_of([(6, 6)])], range(6), rows=2, length=10)


def test_questions_come_once_an_epoch_and_not_twice_in_a_step():
    config = SimpleNamespace(questions_per_step=3, seed=5)
    questions = [{"id": str(number)} for number in range(10)]
    steps = [[question["id"] for question in ppo.questions_of(step, questions, config)] for step in range(1, 7)]
    assert all(len(set(sum(epoch, []))) == 9 for epoch in (steps[:3], steps[3:]))
    assert steps[:3] != steps[3:]
    assert steps[4] == [question["id"] for question in ppo.questions_of(5, questions, config)]
