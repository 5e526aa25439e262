"""GRPO (Shao et al. 2024): eight solutions of a question are compared with each other, and no value model learns.

    e2h ppo --config=configs/rl/grpo.py --config.init=MODEL --config.questions=PROBLEMS.jsonl \
        --config.reward.model=PRM --workdir=runs/grpo

docs/ppo.md#presets tells what it sets, and what may be changed.
"""

from e2h_jax.algorithms import ppo, presets


def get_config():
    config = ppo.defaults().unlock()
    config.update(presets.grpo())
    return config.lock()
