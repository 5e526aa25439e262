"""RLOO (Ahmadian et al. 2024): each of four solutions of a question is compared with the mean of the others.

    e2h ppo --config=configs/rl/rloo.py --config.init=MODEL --config.questions=PROBLEMS.jsonl \
        --config.reward.model=PRM --workdir=runs/rloo

docs/ppo.md#presets tells what it sets, and what may be changed.
"""

from e2h_jax.algorithms import ppo, presets


def get_config():
    config = ppo.defaults().unlock()
    config.update(presets.rloo())
    return config.lock()
