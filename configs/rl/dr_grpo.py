"""Dr. GRPO (Liu et al. 2025): GRPO without its two biases, towards questions of little spread and short right solutions.

    e2h ppo --config=configs/rl/dr_grpo.py --config.init=MODEL --config.questions=PROBLEMS.jsonl \
        --config.reward.model=PRM --workdir=runs/dr_grpo

docs/ppo.md#presets tells what it sets, and what may be changed.
"""

from e2h_jax.algorithms import ppo, presets


def get_config():
    config = ppo.defaults().unlock()
    config.update(presets.dr_grpo())
    return config.lock()
