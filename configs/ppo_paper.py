"""PPO as the paper's released command had it (Llemma 7b, PRM800K): its settings, and its arithmetic with all its quirks.

    e2h ppo --config=configs/ppo_paper.py --config.init=… --config.questions=… --config.reward.model=… \\
            --config.validation.problems=… --workdir=runs/ppo_paper

Without the quirks: leave out what is marked. Differences: docs/ppo.md and docs/rewards.md.
"""

from ml_collections import ConfigDict

from e2h_jax.algorithms import ppo
from e2h_jax.rewards import shaping


def get_config() -> ConfigDict:
    config = ConfigDict(ppo.defaults()).unlock()
    config.steps = 500
    config.questions_per_step = 512
    config.minibatches = 8  # of 64 rollouts
    config.sample.update({"temperature": 0.7, "max_new_tokens": 768, "top_k": 0})
    config.length = 384 + 768
    config.kl.update({"coef": 0.01, "quantize": "int8"})
    config.reward.quantize = "int8"
    for optimizer in (config.optimizer, config.value_optimizer):
        optimizer.update({"learning_rate": 2e-5, "final_fraction": 0.01, "warmup_fraction": 5 / config.steps})
        optimizer.update({"b2": 0.95, "eps": 1e-5, "clip_norm": 1.0, "first_rate_zero": True})
    config.validation.every = 10
    # The quirks.
    config.reward.update(shaping.paper())
    config.kl.estimator = "k1_clamped"
    config.mask_padding = False
    config.loss_mean = "slots"
    return config.lock()
