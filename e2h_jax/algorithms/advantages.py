"""From rewards to advantages: whitening, generalised advantage estimation, group baselines; estimators of a KL divergence.

All on the host in NumPy, over padded rows [B, R] of responses: R response slots, `mask` 1 at the tokens that were drawn. A
masked position takes part in no mean and no sum, and comes out exactly 0. (The original masked nothing: an all-ones mask gives
its arithmetic, padding included; original-system.md section 5 and A8.) Sums are float64, results float32.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from e2h_jax.errors import UserError, nearest

SCOPES = ("batch", "row")


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


def rloo(totals_B: np.ndarray, groups_B: np.ndarray) -> np.ndarray:
    """REINFORCE leave-one-out (Ahmadian et al. 2024): a rollout's total reward less the mean of its group's others.

    Args:
      groups_B: what tells the groups apart (integers or strings), in any order; the rollouts of one question are a group.

    Returns:
      float32 [B]; 0 in a group of one, which has nothing to compare with.
    """
    totals, index, count, mean = _grouped(totals_B, groups_B)
    # r - (sum - r) / (n - 1) = (r - mean) n / (n - 1)
    return ((totals - mean[index]) * (count / np.maximum(count - 1, 1))[index]).astype(np.float32)


def grpo(totals_B: np.ndarray, groups_B: np.ndarray, *, scale_by_std: bool = True) -> np.ndarray:
    """Group-relative advantage (Shao et al. 2024): total reward less its group's mean, over the group's std (+ 1e-6).

    The std is the sample's (n - 1). Without `scale_by_std` questions weigh by how far their rewards spread (Liu et al. 2025).

    Returns:
      float32 [B]; 0 in a group of one.
    """
    totals, index, count, mean = _grouped(totals_B, groups_B)
    centred = totals - mean[index]
    if not scale_by_std:
        return centred.astype(np.float32)
    std = np.sqrt(np.bincount(index, centred**2) / np.maximum(count - 1, 1))
    return (centred / (std[index] + 1e-6)).astype(np.float32)


def _grouped(totals_B: np.ndarray, groups_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Totals in float64, each rollout's group, and by group its size and mean."""
    totals = np.asarray(totals_B, np.float64)
    _, index, count = np.unique(groups_B, return_inverse=True, return_counts=True)
    return totals, index, count, np.bincount(index, totals) / count


# Each is a function of (logp, ref - logp), per token, for tokens drawn from the policy. The names are the usual ones
# (Schulman 2020, "Approximating KL divergence"); the original called the clamped one "k1" and the plain one "k2" (A12).
_KL: dict[str, Callable[[Any, Any], Any]] = {
    "k1": lambda logp, d: -d,
    "k2": lambda logp, d: 0.5 * d * d,
    "k3": lambda logp, d: d.__array_namespace__().expm1(d) - d,
    "k1_clamped": lambda logp, d: d.__array_namespace__().maximum(-d, 0 * d),
    "logp": lambda logp, d: logp,
}
KL_ESTIMATORS = tuple(_KL)


def kl(name: str, logprobs: Any, reference_logprobs: Any) -> Any:
    """Per-token estimate of KL(policy || reference) at tokens drawn from the policy.

    k1: logp - ref, unbiased. k2: ½ (logp - ref)², always ≥ 0, biased. k3: exp(d) - 1 - d with d = ref - logp, unbiased and ≥ 0.
    k1_clamped: max(0, logp - ref), the original's "k1". logp: logp itself, the original's "maxent" (no reference at all).

    Args:
      logprobs, reference_logprobs: NumPy or JAX arrays (traced ones too) of one shape; the result is alike in shape and dtype.

    Raises:
      UserError: no such estimator.
    """
    if name not in _KL:
        raise UserError(f'"{name}" is no KL estimator{nearest(name, _KL)}; use {", ".join(_KL)}.')
    return _KL[name](logprobs, reference_logprobs - logprobs)


def masked_mean(x: np.ndarray, mask: np.ndarray) -> float:
    """Mean of the entries of `x` that the 0/1 `mask` of the same shape keeps; 0 if it keeps none."""
    return float((x * mask).sum() / max(mask.sum(), 1))
