"""PPO's experience: what the losses need of a step's rollouts, and its cutting into minibatches."""

from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from e2h_jax.algorithms import actor_critic
from e2h_jax.algorithms.advantages import gae, grpo, kl, masked_mean, rloo, whiten
from e2h_jax.data.rollout import Rollout, pack
from e2h_jax.rewards.shaping import Shaped


class Experience(NamedTuple):
    """A step's rollouts and what the losses need of their tokens: float32 [B, R] each, R = max_new_tokens, 0 at padding."""

    rollouts: list[Rollout]
    mask: np.ndarray  # 1 at tokens that are trained on
    old_logprobs: np.ndarray  # of the policy that drew them, tempered as they were drawn
    reference_logprobs: np.ndarray
    old_values: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray

    ARRAYS = ("old_logprobs", "reference_logprobs", "old_values", "advantages", "returns")  # that a minibatch has


def make_experience(
    rollouts: list[Rollout], shaped: Sequence[Shaped], models: actor_critic.Models, config: ml_collections.ConfigDict
) -> tuple[Experience, dict[str, float]]:
    """Log-probabilities, values, rewards, advantages and returns of a step's rollouts; and what to log. Changes no model."""
    shape = (len(rollouts), config.sample.max_new_tokens)
    mask, rewards, old, reference, values, entropy, drawn = np.zeros((7, *shape), np.float32)
    for row, (rollout, judged) in enumerate(zip(rollouts, shaped, strict=True)):
        length = len(rollout.tokens)
        mask[row, : judged.trained] = 1
        rewards[row, :length] = judged.rewards
        drawn[row, :length] = rollout.sampling_logprobs
    for rows in pack(rollouts, range(len(rollouts)), rows=config.forward_rows, length=config.length):
        for array, result in zip((old, entropy, reference, values), models.forward(rows), strict=True):
            if result is not None:
                rows.collect(np.asarray(result), array)

    # The reward of a token: the judge's, less the penalty for leaving the reference policy.
    names = sorted({name for judged in shaped for name in judged.parts})  # a part may be missing, as accuracy of hard questions
    parts = {name: [judged.parts[name] for judged in shaped if name in judged.parts] for name in names}
    metrics = {f"reward/{name}": float(np.mean(values)) for name, values in parts.items()}
    metrics |= {"reward": float(rewards.sum(1).mean()), "entropy": masked_mean(entropy, mask), "kl_coef": models.kl_coef}
    if config.kl.coef:
        if config.kl.place == "reward":
            rewards -= models.kl_coef * kl(config.kl.estimator, old, reference) * mask
        metrics["kl"] = float(((old - reference) * mask).sum(1).mean())  # nats a solution
    if bonus := config.entropy.reward_coef:
        lengths = np.maximum(mask.sum(1, keepdims=True), 1)
        if config.entropy.reward_mean == "merged":
            last = np.maximum(mask.sum(1).astype(int) - 1, 0)
            rewards[np.arange(len(rewards)), last] += bonus * (entropy * mask).sum(1) / lengths[:, 0]
        else:
            rewards += bonus * entropy * mask / (lengths if config.entropy.reward_mean == "full" else 1)

    seen = mask if config.mask_padding else np.ones_like(mask)
    if config.whiten_rewards == "none":
        rewards *= config.reward_scale
    else:
        rewards = whiten(rewards, seen, config.whiten_rewards, keep_mean=True)
    returns = np.zeros_like(rewards)
    if config.advantage == "gae":
        advantages, returns = gae(rewards, values, seen, config.gamma, config.lam)
        spread = masked_mean(returns**2, mask) - masked_mean(returns, mask) ** 2
        metrics["explained_variance"] = 1 - masked_mean((returns - values) ** 2, mask) / max(spread, 1e-8)
    else:
        totals, groups = (rewards * mask).sum(1), [rollout.problem["id"] for rollout in rollouts]
        whole = rloo(totals, groups) if config.advantage == "rloo" else grpo(totals, groups, scale_by_std=config.grpo_std)
        advantages = whole[:, None] * mask
    if config.whiten_advantages != "none":
        advantages = whiten(advantages, seen, config.whiten_advantages)

    if not config.sample.top_k and config.sample.top_p == 1 and not config.sample.min_p:
        # One network draws and learns: anything beyond rounding here is a defect.
        metrics["sampler_trainer_difference"] = float(np.abs((drawn - old) * mask).max())
    return Experience(rollouts, mask, old, reference, values, advantages, returns), metrics


def minibatch(experience: Experience, chosen: np.ndarray, config: ml_collections.ConfigDict) -> list[dict[str, np.ndarray]]:
    """Microbatches of the chosen rollouts, packed; their `weights` add up as `loss_mean` says over all of them together."""
    mask = experience.mask[chosen]
    if config.loss_mean == "tokens":
        mask = mask / max(mask.sum(), 1.0)
    elif config.loss_mean == "sequences":
        mask = mask / np.maximum(mask.sum(1, keepdims=True), 1.0) / len(chosen)
    else:
        mask = mask / mask.size
    weights = np.zeros_like(experience.mask)
    weights[chosen] = mask
    fields = {name: getattr(experience, name) for name in Experience.ARRAYS} | {"weights": weights}
    return [
        rows.arrays | {name: rows.spread(values) for name, values in fields.items()}
        for rows in pack(experience.rollouts, chosen, rows=config.update_rows, length=config.length)
    ]
