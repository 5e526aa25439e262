"""PPO's experience: what the losses need of a step's rollouts, and its cutting into minibatches."""

from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from e2h_jax.algorithms import actor_critic
from e2h_jax.algorithms.advantages import advantages_of, masked_mean, penalised_rewards
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


class Forward(NamedTuple):
    """What the models say of a step's tokens: float32 [B, R] each, 0 at padding, and where there is no such model."""

    old: np.ndarray  # log-probabilities of the policy that drew the tokens, tempered as they were drawn
    entropy: np.ndarray  # of its next-token distributions
    reference: np.ndarray  # log-probabilities of the reference policy
    values: np.ndarray


def make_experience(
    rollouts: list[Rollout], shaped: Sequence[Shaped], models: actor_critic.Models, config: ml_collections.ConfigDict
) -> tuple[Experience, dict[str, float]]:
    """Log-probabilities, values, rewards, advantages and returns of a step's rollouts; and what to log. Changes no model."""
    mask, judged = np.zeros((2, len(rollouts), config.sample.max_new_tokens), np.float32)
    for row, verdict in enumerate(shaped):
        mask[row, : verdict.trained] = 1
        judged[row, : len(verdict.rewards)] = verdict.rewards
    forward = forward_all(rollouts, models, config)
    rewards = penalised_rewards(judged, forward.old, forward.reference, forward.entropy, mask, models.kl_coef, config)
    groups = [rollout.problem["id"] for rollout in rollouts]
    advantages, returns = advantages_of(rewards, forward.values, groups, mask, config)
    experience = Experience(rollouts, mask, forward.old, forward.reference, forward.values, advantages, returns)
    return experience, log_of(experience, shaped, forward.entropy, models.kl_coef, config)


def forward_all(rollouts: list[Rollout], models: actor_critic.Models, config: ml_collections.ConfigDict) -> Forward:
    """Forward passes of all models over all rollouts, packed into rows."""
    results = Forward(*np.zeros((4, len(rollouts), config.sample.max_new_tokens), np.float32))
    for rows in pack(rollouts, range(len(rollouts)), rows=config.forward_rows, length=config.length):
        for array, result in zip(results, models.forward(rows), strict=True):
            if result is not None:
                rows.collect(np.asarray(result), array)
    return results


def log_of(
    experience: Experience,
    shaped: Sequence[Shaped],
    entropy_BxR: np.ndarray,
    kl_coef: float,
    config: ml_collections.ConfigDict,
) -> dict[str, float]:
    """What is logged of a step's rollouts (docs/metrics.md#ppo)."""
    mask, old = experience.mask, experience.old_logprobs
    parts: dict[str, list[float]] = {}
    for judged in shaped:
        for name, value in judged.parts.items():  # a part may be missing, as accuracy of hard questions
            parts.setdefault(name, []).append(value)
    metrics = {f"reward/{name}": float(np.mean(values)) for name, values in sorted(parts.items())}
    metrics["reward"] = float(np.mean([judged.rewards.sum() for judged in shaped]))
    metrics |= {"entropy": masked_mean(entropy_BxR, mask), "kl_coef": kl_coef}
    if config.kl.coef:
        metrics["kl"] = float(((old - experience.reference_logprobs) * mask).sum(1).mean())  # nats per solution
    if config.advantage == "gae":
        returns, values = experience.returns, experience.old_values
        spread = masked_mean(returns**2, mask) - masked_mean(returns, mask) ** 2
        metrics["explained_variance"] = 1 - masked_mean((returns - values) ** 2, mask) / max(spread, 1e-8)
    if not config.sample.top_k and config.sample.top_p == 1 and not config.sample.min_p:
        # One network draws and learns: anything beyond rounding here is a defect.
        differences = [
            np.abs(rollout.sampling_logprobs - row[: len(rollout.tokens)]) * kept[: len(rollout.tokens)]
            for rollout, row, kept in zip(experience.rollouts, old, mask, strict=True)
        ]
        metrics["sampler_trainer_difference"] = float(max(difference.max() for difference in differences))
    return metrics


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


def inspected(experience: Experience) -> tuple[dict[str, np.ndarray], list[dict]]:
    """What is kept of a step that went wrong: its arrays, and the rollouts with their texts."""
    records = [{"problem_id": r.problem["id"], "sample": r.sample, "text": r.text} for r in experience.rollouts]
    return dict(zip(Experience._fields[1:], experience[1:], strict=True)), records
