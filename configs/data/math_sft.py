"""MATH for supervised fine-tuning and for tests: easy problems (levels 1 to 3) with solutions cut into steps.

    e2h prepare --config=configs/data/math_sft.py --workdir=runs/data/math_sft

Gives runs/data/math_sft/math/{train,valid,test}: of PRM800K's 12,000 the easy ones, 238 easy problems held out for
validation, and all 500 of MATH500. For the full-data baseline add --config.levels="()".
Without the network: --config.path=FILE-OR-FOLDER --config.test_path=FILE.
"""

from ml_collections import ConfigDict

from e2h_jax.data import prepare
from e2h_jax.data.levels import EASY_LEVELS


def get_config() -> ConfigDict:
    config = ConfigDict(prepare.defaults()).unlock()
    config.source = "math"
    config.test_path = "hub"  # MATH500, which tells the test problems among the 12,500
    config.split = "prm800k"
    config.levels = EASY_LEVELS
    config.valid = 500  # before the level filter
    config.seed = 0
    return config.lock()
