"""From rewards to advantages: the KL penalty, whitening, generalised advantage estimation, group baselines.

    penalised_rewards    the judge's rewards, less the penalty for leaving the reference policy, plus the entropy bonus
    advantages_of        scaled rewards → gae, rloo or grpo → whitened advantages

All on the host in NumPy, over padded rows [B, R] of responses: R response slots, `mask` 1 at the tokens that were drawn. A
masked position takes part in no mean and no sum, and comes out exactly 0. (The original masked nothing: an all-ones mask gives
its arithmetic, padding included; original-system.md section 5 and A8.) Sums are float64, results float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from e2h_jax.errors import UserError, nearest

SCOPES = ("batch", "row")


def penalised_rewards(
    rewards_BxR: np.ndarray,
    old_BxR: np.ndarray,
    reference_BxR: np.ndarray,
    entropy_BxR: np.ndarray,
    mask_BxR: np.ndarray,
    kl_coef: float,
    config: ConfigDict,
) -> np.ndarray:
    """Rewards less `kl_coef` times the KL estimate of each token (`kl.place` = "reward"), plus the entropy bonus.

    Args:
      rewards_BxR: the judge's, 0 at padding.
      old_BxR, reference_BxR: log-probabilities of the policy that drew the tokens, and of the reference policy, in nats.
      entropy_BxR: of the policy's next-token distribution, in nats.
      config: of the `ppo` stage; `kl.estimator`, `kl.place`, `entropy.reward_coef` and `entropy.reward_mean` are read.

    Returns:
      float32 [B, R].
    """
    rewards = np.array(rewards_BxR, np.float32)
    if kl_coef and config.kl.place == "reward":
        rewards -= kl_coef * kl(config.kl.estimator, old_BxR, reference_BxR) * mask_BxR
    bonus = config.entropy.reward_coef * entropy_BxR * mask_BxR
    lengths = np.maximum(mask_BxR.sum(1), 1)
    if config.entropy.reward_mean == "merged":  # the response's mean, at its last token
        rewards[np.arange(len(rewards)), lengths.astype(int) - 1] += bonus.sum(1) / lengths
    elif config.entropy.reward_mean == "full":  # the same sum, token by token
        rewards += bonus / lengths[:, None]
    else:
        rewards += bonus
    return rewards


def advantages_of(
    rewards_BxR: np.ndarray, values_BxR: np.ndarray, groups_B: Sequence, mask_BxR: np.ndarray, config: ConfigDict
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns of the rewards, by `config.advantage`.

    A group estimator gives every token of a response the advantage of its total reward; its returns are 0.

    Args:
      rewards_BxR: see `penalised_rewards`.
      values_BxR: of the value model; only "gae" reads them.
      groups_B: which responses answer the same question, see `rloo`; "gae" does not read them.
      config: of the `ppo` stage; its fields from `advantage` to `mask_padding` are read.

    Returns:
      float32 [B, R] each.

    Raises:
      UserError: no such advantage, or no such whitening.
    """
    if config.advantage not in ADVANTAGES:
        raise UserError(
            f'config.advantage="{config.advantage}" is unknown{nearest(config.advantage, ADVANTAGES)}; '
            f"use {', '.join(ADVANTAGES)}."
        )
    seen = mask_BxR if config.mask_padding else np.ones_like(mask_BxR)
    rewards = _scaled(rewards_BxR, seen, config)
    if config.advantage == "gae":
        advantages, returns = gae(rewards, values_BxR, seen, config.gamma, config.lam)
    else:
        totals = np.sum(rewards, 1, np.float64, where=np.asarray(mask_BxR, bool))
        advantages = (ADVANTAGES[config.advantage](totals, groups_B, config)[:, None] * mask_BxR).astype(np.float32)
        returns = np.zeros_like(rewards)
    if config.whiten_advantages != "none":
        advantages = whiten(advantages, seen, config.whiten_advantages)
    return advantages, returns


def _scaled(rewards_BxR: np.ndarray, seen_BxR: np.ndarray, config: ConfigDict) -> np.ndarray:
    if config.whiten_rewards == "none":
        return rewards_BxR * np.float32(config.reward_scale)
    if config.whiten_rewards == "scale":
        return scale(rewards_BxR, seen_BxR)
    if config.whiten_rewards == "original":
        return whiten(rewards_BxR, seen_BxR, keep_mean=True)
    raise UserError(f'config.whiten_rewards="{config.whiten_rewards}" is unknown; use {", ".join(WHITEN_REWARDS)}.')


def scale(rewards_BxR: np.ndarray, mask_BxR: np.ndarray) -> np.ndarray:
    """Rewards over their standard deviation: that of all tokens masked in, each with its own reward, around their mean.

    One positive factor for the whole step: no mean is taken off, so that a token without a reward keeps none, and neither
    the signs of the rewards nor the order of their sums change, whatever the lengths. Rewards that do not differ stay as
    they are.

    Returns:
      float32 [B, R], 0 where masked.
    """
    mask = np.asarray(mask_BxR, bool)
    rewards = np.asarray(rewards_BxR, np.float64)
    std = rewards[mask].std() if mask.any() else 0.0
    return np.where(mask, rewards / (std if std > 1e-8 else 1.0), 0.0).astype(np.float32)


def whiten(x_BxR: np.ndarray, mask_BxR: np.ndarray, scope: str = "batch", *, keep_mean: bool = False) -> np.ndarray:
    """(x - mean) / (std + 1e-8), and the mean added again with `keep_mean`; population std over the positions masked in.

    Args:
      scope: "batch" = one mean and std for all rows, "row" = each row its own.

    Returns:
      float32 [B, R], 0 where masked. The shape of the statistics is that of the original (section 5, PPO item 5).
    """
    if scope not in SCOPES:
        raise UserError(f'"{scope}" is no scope of whitening{nearest(scope, SCOPES)}; use {" or ".join(SCOPES)}.')
    mask = np.asarray(mask_BxR, bool)
    x = np.asarray(x_BxR, np.float64)
    axis = None if scope == "batch" else -1
    count = np.maximum(mask.sum(axis, keepdims=True), 1)
    mean = np.sum(x, axis, keepdims=True, where=mask) / count
    std = np.sqrt(np.sum((x - mean) ** 2, axis, keepdims=True, where=mask) / count)
    whitened = (x - mean) / (std + 1e-8) + (mean if keep_mean else 0.0)
    return np.where(mask, whitened, 0.0).astype(np.float32)


def gae(
    rewards_BxR: np.ndarray, values_BxR: np.ndarray, mask_BxR: np.ndarray, gamma: float = 1.0, lam: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Generalised advantage estimation (Schulman et al. 2016): δ_t = r_t + γ V_{t+1} - V_t, A_t = δ_t + γλ A_{t+1}.

    What follows the last masked-in position has value 0; a masked position in between is stepped over.

    Returns:
      Advantages and returns (A + V), float32 [B, R], both 0 where masked.
    """
    rewards, values = np.asarray(rewards_BxR, np.float64), np.asarray(values_BxR, np.float64)
    mask = np.asarray(mask_BxR, bool)
    advantages = np.zeros_like(rewards)
    following, next_value = np.zeros((2, len(rewards)))
    for t in reversed(range(rewards.shape[1])):
        advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * following
        following = np.where(mask[:, t], advantage, following)
        next_value = np.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = np.where(mask[:, t], advantage, 0.0)
    returns = np.where(mask, advantages + values, 0.0)
    return advantages.astype(np.float32), returns.astype(np.float32)


def rloo(totals_B: np.ndarray, groups_B: Sequence) -> np.ndarray:
    """REINFORCE leave-one-out (Ahmadian et al. 2024): a rollout's total reward less the mean of its group's others.

    Args:
      groups_B: what tells the groups apart (integers or strings), in any order; the rollouts of one question are a group.

    Returns:
      float32 [B]; 0 in a group of one, which has nothing to compare with.
    """
    centred, _, count = _centred(totals_B, groups_B)
    # r - (sum - r) / (n - 1) = (r - mean) n / (n - 1)
    return (centred * count / np.maximum(count - 1, 1)).astype(np.float32)


def grpo(totals_B: np.ndarray, groups_B: Sequence, *, scale_by_std: bool = True) -> np.ndarray:
    """Group-relative advantage (Shao et al. 2024): total reward less its group's mean, over the group's std (+ 1e-6).

    The std is the sample's (n - 1). Without `scale_by_std` questions weigh by how far their rewards spread: Dr. GRPO (Liu et
    al. 2025). Totals that differ by the rounding of their sums alone count as equal; the division by the std would make an
    advantage of it.

    Returns:
      float32 [B]; 0 in a group of one.
    """
    centred, index, count = _centred(totals_B, groups_B)
    if not scale_by_std:
        return centred.astype(np.float32)
    rounding = 1e-6 * np.maximum(1, np.abs(np.asarray(totals_B, np.float64)))
    centred = np.where(np.abs(centred) <= rounding, 0.0, centred)
    std = np.sqrt(np.bincount(index, centred**2)[index] / np.maximum(count - 1, 1))
    return (centred / (std + 1e-6)).astype(np.float32)


def _centred(totals_B: np.ndarray, groups_B: Sequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each rollout: its total less its group's mean, float64; its group; the group's size."""
    totals = np.asarray(totals_B, np.float64)
    _, index, count = np.unique(groups_B, return_inverse=True, return_counts=True)
    return totals - (np.bincount(index, totals) / count)[index], index, count[index]


# What `config.advantage` may be, and a group estimator's function of (totals, groups, config). "gae" has a value model.
ADVANTAGES: dict[str, Callable[[np.ndarray, Sequence, ConfigDict], np.ndarray] | None] = {
    "gae": None,
    "rloo": lambda totals_B, groups_B, config: rloo(totals_B, groups_B),
    "grpo": lambda totals_B, groups_B, config: grpo(totals_B, groups_B, scale_by_std=config.grpo_std),
}
WHITEN_REWARDS = ("none", "scale", "original")
KL_ESTIMATORS = ("k1", "k2", "k3", "k1_clamped", "logp")


def kl(name: str, logprobs: Any, reference_logprobs: Any) -> Any:
    """Per-token estimate of KL(policy || reference) at tokens drawn from the policy (Schulman 2020).

    k1: logp - ref, unbiased. k2: ½ (logp - ref)², always ≥ 0, biased. k3: exp(d) - 1 - d with d = ref - logp, unbiased and ≥ 0.
    k1_clamped: max(0, logp - ref), the original's "k1" (and its "k2" is k1: A12). logp: logp itself, the original's "maxent"
    (no reference at all). An unbiased estimate need not have an unbiased gradient: docs/ppo.md#kl-estimators.

    Args:
      logprobs, reference_logprobs: NumPy or JAX arrays (traced ones too) of one shape; the result is alike in shape and dtype.

    Raises:
      UserError: no such estimator.
    """
    d = reference_logprobs - logprobs
    if name == "k1":
        return -d
    if name == "k2":
        return 0.5 * d * d
    if name == "k3":
        return d.__array_namespace__().expm1(d) - d
    if name == "k1_clamped":
        return d.__array_namespace__().maximum(-d, 0 * d)
    if name == "logp":
        return logprobs
    raise UserError(f'"{name}" is no KL estimator{nearest(name, KL_ESTIMATORS)}; use {", ".join(KL_ESTIMATORS)}.')


def masked_mean(x: np.ndarray, mask: np.ndarray) -> float:
    """Mean of the entries of `x` that the 0/1 `mask` of the same shape keeps; 0 if it keeps none."""
    return float((x * mask).sum() / max(mask.sum(), 1))
