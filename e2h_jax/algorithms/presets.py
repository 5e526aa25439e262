"""The settings of PPO, GRPO, Dr. GRPO and RLOO, and of the paper's PPO; and which settings go together (docs/ppo.md#presets).

    config = ppo.defaults().unlock()
    config.update(presets.grpo())

Each sets all fields in which these methods differ, and so replaces another one's. Any field may be changed after it.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from e2h_jax.errors import UserError

KL_IN_REWARD = ("k1", "k1_clamped", "logp")
KL_IN_LOSS = ("k2", "k3")
_OF_VALUE_MODEL = ("gamma", "lam", "clip_value", "value_coef", "value_init", "value_warmup", "value_optimizer")


def ppo() -> dict[str, Any]:
    """The defaults: a value model, advantages whitened over the batch (Schulman et al. 2017), the KL penalty in the reward."""
    return {
        "advantage": "gae",
        "gamma": 1.0,
        "lam": 1.0,
        "grpo_std": True,
        "whiten_rewards": "none",
        "reward_scale": 1.0,
        "whiten_advantages": "batch",
        "mask_padding": True,
        "loss_mean": "tokens",
        "clip": 0.2,
        "clip_value": 0.2,
        "value_coef": 0.1,
        "value_warmup": 0,
        "kl": {"coef": 0.01, "estimator": "k1", "place": "reward", "target": 0.0},
        "questions_per_step": 512,
        "sample": {"samples": 1},
    }


def grpo() -> dict[str, Any]:
    """GRPO (Shao et al. 2024): advantages within a question over their deviation, the loss a mean per response, with k3.

    Their coefficient; they drew 64 responses of a question.
    """
    group = {"advantage": "grpo", "whiten_advantages": "none", "questions_per_step": 64, "sample": {"samples": 8}}
    return ppo() | group | {"loss_mean": "sequences", "kl": {"coef": 0.04, "estimator": "k3", "place": "loss", "target": 0.0}}


def dr_grpo() -> dict[str, Any]:
    """Dr. GRPO (Liu et al. 2025): GRPO without the deviation, without the mean over a response's length, without a KL term."""
    return grpo() | {"grpo_std": False, "loss_mean": "slots", "kl": ppo()["kl"] | {"coef": 0.0}}


def rloo() -> dict[str, Any]:
    """RLOO (Ahmadian et al. 2024): leave-one-out baseline, k1 in the reward, the loss sums over a response's tokens."""
    group = {"advantage": "rloo", "whiten_advantages": "none", "questions_per_step": 128, "sample": {"samples": 4}}
    return ppo() | group | {"loss_mean": "slots", "kl": ppo()["kl"] | {"coef": 0.03}}


def paper() -> dict[str, Any]:
    """PPO as the paper's code computes it (original-system.md section 5): `rewards.shaping.paper` is its other half.

    Whitened rewards pay or charge each token for being there (docs/ppo.md#reward-whitening), padding takes part in whitening
    and in means, and the KL estimate is clamped at 0.
    """
    quirks = {"whiten_rewards": "original", "mask_padding": False, "loss_mean": "slots"}
    return ppo() | quirks | {"kl": ppo()["kl"] | {"estimator": "k1_clamped"}}


def check(config: ConfigDict, defaults: ConfigDict) -> None:
    """Raises UserError for a setting of the `ppo` stage that undoes another, or does nothing beside it.

    Each field's own value has been checked; `defaults` are the stage's, the values of fields that are not used.
    """
    _check_kl(config.kl)
    if config.whiten_rewards != "none" and config.reward_scale != 1:
        raise UserError(
            f"config.reward_scale={config.reward_scale} is used with config.whiten_rewards=none alone, not with "
            f"{config.whiten_rewards}; set it to 1.0, or config.whiten_rewards to none"
        )
    _check_unused(config)
    if config.advantage != "gae":
        _check_group(config, defaults)
    if config.advantage != "grpo" and not config.grpo_std:
        raise UserError(
            f"config.grpo_std=False is of config.advantage=grpo; {config.advantage} divides by no group's deviation: "
            "set it to True"
        )


def _check_unused(config: ConfigDict) -> None:
    """Fields that do nothing because of other ones, whatever the advantage."""
    if config.target_kl and config.epochs * config.minibatches == 1:
        raise UserError(
            f"config.target_kl={config.target_kl} ends a step's later updates, and there is one alone; set it to 0, or "
            "config.minibatches or config.epochs above 1"
        )
    if config.kl.quantize and not config.kl.coef:
        raise UserError(
            f"config.kl.quantize={config.kl.quantize} does nothing: there is no reference policy with config.kl.coef=0; "
            'set it to ""'
        )
    if config.kl.quantize and config.lora.rank:
        raise UserError(
            f"config.kl.quantize={config.kl.quantize} does nothing with LoRA, whose reference policy is the base; set it to "
            '"", and config.lora.quantize in its place'
        )
    mean = config.entropy.reward_mean
    if mean != "full" and not config.entropy.reward_coef:
        raise UserError(f"config.entropy.reward_mean={mean} does nothing with config.entropy.reward_coef=0; set it to full")
    if config.advantage == "gae" and not config.mask_padding and config.whiten_rewards == config.whiten_advantages == "none":
        raise UserError("config.mask_padding=False does nothing where nothing is whitened; set it to True")


def _check_kl(kl: ConfigDict) -> None:
    """The gradient of an estimate of the KL is not an estimate of its gradient: docs/ppo.md#kl-estimators."""
    if not kl.coef:
        return
    if kl.place == "loss" and kl.estimator not in KL_IN_LOSS:
        effect = "another gradient than the KL" if kl.estimator == "k1_clamped" else "an expected gradient of zero"
        raise UserError(
            f"config.kl.estimator={kl.estimator} has {effect} with config.kl.place=loss; "
            "set config.kl.estimator=k2 (exact) or k3 (GRPO's), or config.kl.place=reward"
        )
    if kl.place == "reward" and kl.estimator not in KL_IN_REWARD:
        raise UserError(
            f"config.kl.estimator={kl.estimator} has next to no gradient near the reference with config.kl.place=reward; "
            "set config.kl.estimator=k1, or config.kl.place=loss"
        )


def _check_group(config: ConfigDict, defaults: ConfigDict) -> None:
    method = "dr_grpo" if config.advantage == "grpo" and not config.grpo_std else config.advantage
    preset = f"(configs/rl/{method}.py has all that it needs)"
    if config.sample.samples < 2:
        raise UserError(
            f"config.advantage={config.advantage} compares the samples of a question: set config.sample.samples to 2 or more "
            + preset
        )
    for field in ("whiten_rewards", "whiten_advantages"):
        if config[field] != "none":
            raise UserError(
                f"config.{field}={config[field]} undoes config.advantage={config.advantage}, which compares the samples of a "
                f"question with each other alone; set it to none {preset}"
            )
    if config.advantage == "grpo" and config.grpo_std and config.reward_scale != 1:
        raise UserError(
            f"config.reward_scale={config.reward_scale} does nothing with config.advantage=grpo, which divides any factor out "
            "again; set it to 1.0, or config.grpo_std to False"
        )
    if not config.mask_padding:
        raise UserError(
            f"config.mask_padding=False does nothing with config.advantage={config.advantage}, which whitens nothing; "
            "set it to True"
        )
    if config.entropy.reward_mean == "merged":
        raise UserError(
            f"config.entropy.reward_mean=merged is the same as full with config.advantage={config.advantage}, which looks at "
            "totals alone; set it to full"
        )
    for name in _OF_VALUE_MODEL:
        unused = dict(_flat(name, defaults[name]))
        for path, value in _flat(name, config[name]):
            if value != unused[path]:
                raise UserError(
                    f"config.{path}={value!r} does nothing: there is no value model with config.advantage={config.advantage}; "
                    f"set it to {unused[path]!r}"
                )


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, ConfigDict):
        for field in value:
            yield from _flat(f"{name}.{field}", value[field])
    else:
        yield name, value
