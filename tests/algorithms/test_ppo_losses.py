"""PPO's arithmetic: losses against hand-worked numbers and an independent NumPy version, minibatch weights, packing."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2h_jax.algorithms import ppo
from e2h_jax.algorithms.actor_critic import Models, policy_loss, value_loss, value_source
from e2h_jax.algorithms.advantages import KL_ESTIMATORS, penalised_rewards
from e2h_jax.algorithms.experience import Experience, Forward, forward_all, inspected, log_of
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


def test_what_is_clipped_is_counted_and_the_divergence_has_no_sign():
    ratios = np.array([[1.5, 1.0, 0.95, 0.5]])
    batch = {"weights": jnp.full((1, 4), 0.25), "advantages": jnp.ones((1, 4)), "old_logprobs": jnp.zeros((1, 4))}
    config = config_of(clip=0.1, clip_value=0.9, kl__coef=0.0)
    loss, sums = policy_loss(jnp.log(ratios), jnp.zeros((1, 4)), batch, config)
    assert loss == pytest.approx(-(1.1 + 1.0 + 0.95 + 0.5) / 4, abs=1e-6)
    assert sums["clipped"] == pytest.approx(0.5)
    assert sums["approximate_kl"] == pytest.approx(np.mean(ratios - 1 - np.log(ratios)), abs=1e-6)


def test_the_value_loss_by_hand():
    # Old 0, return 1: 0.5 counts as 0.2 (worse); -1 as it is (already worse than -0.2).
    batch = {"weights": jnp.full((1, 2), 0.5), "old_values": jnp.zeros((1, 2)), "returns": jnp.ones((1, 2))}
    loss, _ = value_loss(jnp.array([[0.5, -1.0]]), batch, config_of(clip_value=0.2, value_coef=0.1))
    assert loss == pytest.approx(0.1 * 0.5 * (0.8**2 + 2.0**2) / 2, abs=1e-6)
    # The other way: old 0, return -1; -0.5 counts as -0.2.
    batch["returns"] = -batch["returns"]
    loss, _ = value_loss(jnp.array([[-0.5, 1.0]]), batch, config_of(clip_value=0.2, value_coef=0.1))
    assert loss == pytest.approx(0.1 * 0.5 * (0.8**2 + 2.0**2) / 2, abs=1e-6)


@pytest.mark.parametrize(("place", "estimator"), [("reward", "k1"), ("loss", "k2"), ("loss", "k3")])
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
            token += 0.3 * {"k2": d * d / 2, "k3": np.exp(d) - 1 - d}[estimator]
        expected += b["weights"] * token
        value = float(values[place_])
        near = min(max(value, b["old_values"] - 0.2), b["old_values"] + 0.2)
        expected_value += b["weights"] * 0.05 * max((value - b["returns"]) ** 2, (near - b["returns"]) ** 2)
    assert float(loss) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert float(value_loss(jnp.array(values), batch, config)[0]) == pytest.approx(expected_value, rel=1e-6)


def expected_gradient(place, estimator, policy, reference):
    """Of policy_loss by the logits, over all tokens, each as likely as it is drawn; the KL alone, with coefficient 1."""
    config = config_of(kl__place=place, kl__estimator=estimator, kl__coef=1.0)
    logits = jnp.log(jnp.array(policy, jnp.float32))
    old, reference = np.log(policy)[:, None], np.log(reference)[:, None]  # a response of each token
    zeros, ones = np.zeros_like(old), np.ones_like(old)
    advantages = penalised_rewards(zeros, old, reference, zeros, ones, 1.0, config)
    batch = {"weights": policy[:, None], "advantages": advantages, "old_logprobs": old, "reference_logprobs": reference}
    batch = {name: jnp.array(value, jnp.float32) for name, value in batch.items()}
    return jax.grad(lambda x: policy_loss(jax.nn.log_softmax(x)[:, None], zeros, batch, config)[0])(logits)


def divergence(logits, reference):
    return jnp.sum(jax.nn.softmax(logits) * (jax.nn.log_softmax(logits) - jnp.log(reference)))


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_gradient_of_every_kl_estimate(seed):
    """By enumeration of a vocabulary of five: which are accepted where rests on it (docs/ppo.md#kl-estimators)."""
    policy, reference = np.random.default_rng(seed).dirichlet(np.ones(5), 2)
    true = jax.grad(divergence)(jnp.log(policy), jnp.array(reference))
    cases = [(place, name) for place in ("reward", "loss") for name in KL_ESTIMATORS]
    found = {case: expected_gradient(*case, policy, reference) for case in cases}
    exact = {"rtol": 1e-3, "atol": 2e-5}
    for right in (("reward", "k1"), ("loss", "k2")):
        np.testing.assert_allclose(found[right], true, **exact)
    for nothing in (("loss", "k1"), ("loss", "logp")):
        np.testing.assert_allclose(found[nothing], 0, atol=2e-5)
    np.testing.assert_allclose(found["loss", "k3"], policy - reference, **exact)  # that of KL(reference || policy)
    # k3 in the reward is the difference of the two; logp is the entropy's, whatever the reference.
    np.testing.assert_allclose(found["reward", "k3"], true - (policy - reference), **exact)
    entropy = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x)))(jnp.log(policy))
    np.testing.assert_allclose(found["reward", "logp"], entropy, **exact)


def test_near_the_reference_only_the_accepted_estimates_hold_the_policy():
    """The share of the true gradient that is left when policy and reference differ by a few per cent."""
    rng = np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(5))
    reference = policy * np.exp(0.03 * rng.normal(size=5))
    reference /= reference.sum()
    true = np.asarray(jax.grad(divergence)(jnp.log(policy), jnp.array(reference)))
    share = {
        (place, name): float(expected_gradient(place, name, policy, reference) @ true / (true @ true))
        for place in ("reward", "loss")
        for name in ("k1", "k2", "k3", "k1_clamped")
    }
    for accepted in (("reward", "k1"), ("loss", "k2"), ("loss", "k3")):
        assert share[accepted] == pytest.approx(1, abs=0.05)
    for refused in (("reward", "k2"), ("reward", "k3"), ("loss", "k1")):
        assert abs(share[refused]) < 0.05
    assert 0.05 < share["reward", "k1_clamped"] < 0.95  # the paper's
    assert share["loss", "k1_clamped"] > 5  # it does not vanish at the reference


@pytest.mark.parametrize(
    ("measured", "factor"),  # target 4, 500 rollouts, horizon 1,000: half of what is over or under, at most a fifth
    [(4.0, 1.0), (4.4, 1.05), (3.6, 0.95), (40.0, 1.1), (0.0, 0.9), (-3.0, 0.9)],
)
def test_the_adaptive_coefficient_by_hand(measured, factor):
    models = SimpleNamespace(_settings=config_of(kl__target=4.0, kl__horizon=1000), kl_coef=0.02)
    Models.adapt(models, measured, 500)
    assert models.kl_coef == pytest.approx(0.02 * factor, rel=1e-6)


def test_within_its_horizon_the_coefficient_grows_by_22_per_cent_and_falls_by_20_at_most():
    for rollouts in (1, 10, 100):
        for measured, bound in ((1e9, np.exp(0.2)), (0.0, 0.8)):
            models = SimpleNamespace(_settings=config_of(kl__target=4.0, kl__horizon=100), kl_coef=1.0)
            for _ in range(100 // rollouts):
                Models.adapt(models, measured, rollouts)
            assert 0.8 <= models.kl_coef <= np.exp(0.2) + 1e-3 and abs(models.kl_coef - bound) < 0.025


def test_gradients_of_padding_are_exactly_zero():
    rng = np.random.default_rng(2)
    batch = {name: rng.normal(size=(2, 5)).astype(np.float32) for name in ("advantages", "old_values", "returns")}
    batch["weights"] = np.array([[0.1, 0.2, 0, 0, 0], [0.3, 0, 0, 0, 0.4]], np.float32)
    # What a forward pass makes of padding may be anything, also a ratio without end.
    old = np.where(batch["weights"] > 0, 0, [[0, 0, 0, -500, -500], [0, 0, -500, 0, 0]])
    batch |= {"old_logprobs": old.astype(np.float32), "reference_logprobs": np.zeros((2, 5), np.float32)}
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
    (batch,) = ppo.minibatch(experience_of([(2, 1)], 1), np.array([0]), config_of(loss_mean=mean, length=16, update_rows=2))
    assert batch["weights"].sum() == 1  # of a single token


def test_what_is_logged_of_tokens_does_not_count_padding():
    experience = experience_of([(2, 3), (2, 5)])
    for mean in ("tokens", "slots"):
        config = config_of(loss_mean=mean, minibatches=1, target_kl=0.4, epochs=2)
        updates = []

        def update(batches, step, updates=updates):  # half of the tokens clipped, each 0.5 nats away
            assert step == 0
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


def test_updates_are_told_the_step_of_the_run_whatever_was_skipped():
    """So the schedules go by steps: after a warm-up of the value model, and where target_kl has ended a step early."""
    experience = experience_of(LENGTHS)
    told = {"policy": [], "value": []}

    def learner(name):
        return SimpleNamespace(
            update=lambda batches, step: told[name].append(step) or {"clipped": 0.0, "approximate_kl": 0.5}
        )

    models = SimpleNamespace(value=learner("value"), policy=learner("policy"))
    config = config_of(minibatches=2, epochs=2, value_warmup=3, target_kl=0.1, length=16)
    for step in range(1, 7):
        ppo.learn(experience, models, config, step)
    assert told == {"policy": [3, 4, 5], "value": [step for step in range(6) for _ in range(4)]}


def test_every_pass_takes_all_rollouts_once_in_an_order_of_its_own():
    """Minibatches of one rollout each, told by its advantages; the passes of a step and the steps differ in their order."""
    experience = experience_of(LENGTHS)
    marks = experience.mask * np.arange(1, 6, dtype=np.float32)[:, None]
    taken = []

    def update(batches, step):
        (mark,) = {value for batch in batches for value in batch["advantages"][batch["weights"] > 0].tolist()}
        taken.append(int(mark))
        return {"clipped": 0.0, "approximate_kl": 0.0}

    models = SimpleNamespace(value=None, policy=SimpleNamespace(update=update))
    config = config_of(minibatches=5, epochs=3, length=16)
    for step in (1, 2):
        ppo.learn(experience._replace(advantages=marks), models, config, step)
    passes = [taken[start : start + 5] for start in range(0, 30, 5)]
    assert all(sorted(one) == [1, 2, 3, 4, 5] for one in passes) and len(set(map(tuple, passes))) == 6


def test_where_the_value_model_starts():
    for reward, value, expected in (("judge", "", "judge"), ("judge", "own", "own"), ("", "", "policy")):
        config = config_of(init="policy", value_init=value, reward__model="judge", reward__process="min" if reward else "none")
        assert value_source(config) == expected


class Known:
    """Models that know what they say of each response token; nothing is computed."""

    def __init__(self, kl_coef, **arrays):
        self.kl_coef, self.arrays = kl_coef, arrays

    def forward(self, rows):
        arrays = (self.arrays.get(name) for name in ("old", "entropy", "reference", "values"))
        return tuple(None if array is None else rows.spread(np.array(array, np.float32)) for array in arrays)


def judged_of(rewards, trained, **parts):
    return SimpleNamespace(rewards=np.array(rewards, np.float32), trained=trained, parts=parts)


def test_experience_by_hand():
    """Two responses of three and two tokens, R = 4; the second's last token is not trained (the original's EOS)."""
    rollouts = rollouts_of([(2, 3), (4, 2)])
    shaped = [judged_of([0, -0.5, 1.5], 3, accuracy=1.0, outcome=1.5), judged_of([-1, 0], 1, outcome=-1.0)]
    rollouts[0] = replace(rollouts[0], sampling_logprobs=np.float32([-1, -2, -7]))
    old = [[-1.0, -2.0, -3.0, 0], [-1.0, -9.0, 0, 0]]
    reference = [[-2.0, -1.0, -3.0, 0], [-1.5, -9.0, 0, 0]]
    entropy, values = [[1, 2, 3, 0], [4, 8, 0, 0]], [[0.5, 0.0, 1.0, 0], [-1.0, 5.0, 0, 0]]
    models = Known(0.1, old=old, reference=reference, entropy=entropy, values=values)
    config = config_of(sample__max_new_tokens=4, length=8, forward_rows=2, whiten_advantages="none", entropy__reward_coef=0.3)
    experience, metrics = ppo.make_experience(rollouts, shaped, models, config)
    np.testing.assert_array_equal(experience.mask, [[1, 1, 1, 0], [1, 0, 0, 0]])
    # k1 is 1, -1, 0 and 0.5; the bonus 0.1 x 1, 2, 3 and 0.3 x 4.
    rewards = np.array([[-0.1 + 0.1, -0.5 + 0.1 + 0.2, 1.5 + 0.3], [-1 - 0.05 + 1.2, 0, 0]])
    returns = np.array([[rewards[0].sum(), rewards[0, 1:].sum(), rewards[0, 2], 0], [rewards[1, 0], 0, 0, 0]])
    np.testing.assert_allclose(experience.returns, returns, rtol=1e-5, atol=1e-6)
    expected = (returns - np.array(values)) * experience.mask
    np.testing.assert_allclose(experience.advantages, expected, rtol=1e-5, atol=1e-6)
    assert all(array.dtype == np.float32 for array in experience[1:])
    for name, array in {"old_logprobs": old, "reference_logprobs": reference, "old_values": values}.items():
        np.testing.assert_array_equal(getattr(experience, name), np.float32(array))

    kept, guess = returns[experience.mask > 0], np.array(values)[experience.mask > 0]
    explained = 1 - np.mean((kept - guess) ** 2) / np.var(kept)
    assert metrics == pytest.approx(
        {
            "reward": (1.0 - 1.0) / 2,
            "reward/outcome": 0.25,
            "reward/accuracy": 1.0,  # of those where it is known
            "entropy": (1 + 2 + 3 + 4) / 4,
            "kl": (1 - 1 + 0 + 0.5) / 2,
            "kl_coef": 0.1,
            "explained_variance": explained,
            "sampler_trainer_difference": 4.0,  # -7 and -3; the token that is not trained does not count
        },
        abs=1e-5,
    )


def test_experience_without_value_model_and_reference():
    rollouts = rollouts_of([(2, 3), (4, 2), (3, 1), (3, 1)])
    for rollout, question in zip(rollouts, ("one", "two", "one", "two"), strict=True):
        rollout.problem["id"] = question
    shaped = [judged_of([0, 0, 1], 3), judged_of([0, 5], 2), judged_of([0], 1), judged_of([5], 1)]
    models = Known(0.0, old=np.full((4, 4), -1.0), entropy=np.ones((4, 4)))
    config = config_of(sample__max_new_tokens=4, length=8, forward_rows=2, sample__top_k=20)
    config.update({"advantage": "rloo", "whiten_advantages": "none", "kl": {"coef": 0.0}})
    experience, metrics = ppo.make_experience(rollouts, shaped, models, config)
    np.testing.assert_array_equal(experience.advantages, [[1, 1, 1, 0], [0] * 4, [-1, 0, 0, 0], [0] * 4])
    assert not experience.returns.any()
    assert metrics == {"reward": 11 / 4, "entropy": 1.0, "kl_coef": 0.0}


def test_the_experience_of_a_step_that_went_wrong_is_kept():
    arrays, records = inspected(experience := experience_of(LENGTHS))
    assert list(arrays) == ["mask", *Experience.ARRAYS] and all(arrays[n] is getattr(experience, n) for n in arrays)
    assert records[3] == {"problem_id": "3", "sample": 0, "text": ""} and len(records) == 5


def test_the_log_tells_a_good_value_model_from_a_bad_one():
    experience = experience_of(LENGTHS)
    shaped = [judged_of([1.0], 1)] * 5
    flat = np.full_like(experience.mask, np.mean(experience.returns[experience.mask > 0]))
    for values, expected in ((experience.returns, 1.0), (flat, 0.0)):
        told = log_of(experience._replace(old_values=values * experience.mask), shaped, experience.mask, 0.1, config_of())
        assert told["explained_variance"] == pytest.approx(expected, abs=1e-5)


def test_forward_passes_fill_every_token_once():
    rollouts = rollouts_of(LENGTHS)
    mask = np.array([[t < length for t in range(6)] for _, length in LENGTHS])
    old, entropy = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    config = config_of(sample__max_new_tokens=6, length=11, forward_rows=1)
    found = forward_all(rollouts, Known(0.0, old=old, entropy=entropy), config)
    assert isinstance(found, Forward)
    np.testing.assert_array_equal(found.old, old * mask)
    np.testing.assert_array_equal(found.entropy, entropy * mask)
    assert not found.reference.any() and not found.values.any()
