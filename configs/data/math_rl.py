"""MATH for reinforcement learning: all prompts, no solutions, and only easy answers; hard ones read "unavailable".

    e2h prepare --config=configs/data/math_rl.py --workdir=runs/data/math_rl

Gives runs/data/math_rl/math/{train,valid,test} with about 11,500, 500 and 500 problems. `gt_answer` holds the truth everywhere:
for measuring, never for rewards. The division into train and valid depends on the seed alone, not on the levels.
Without the network: --config.path=FILE-OR-FOLDER --config.test_path=FILE.
"""

from ml_collections import ConfigDict

from e2h_jax.data import prepare
from e2h_jax.data.levels import EASY_LEVELS


def get_config() -> ConfigDict:
    config = ConfigDict(prepare.defaults()).unlock()
    config.source = "math"
    config.records = "rl"
    config.test_path = "hub"  # MATH500
    config.levels = EASY_LEVELS  # whose answers are given
    config.valid = 500  # as MATH500: the same subjects and levels
    config.seed = 0
    return config.lock()
