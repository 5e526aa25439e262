"""Math-Shepherd: automatic step labels of MATH questions of levels 1 to 3, for a reward model without human labels.

    e2h prepare --config=configs/data/math_shepherd.py --workdir=runs/data/math_shepherd

Without the network: --config.path=… and --config.math=… take local files or folders (docs/data.md).
"""

from ml_collections import ConfigDict

from e2h_jax.data import prepare
from e2h_jax.data.levels import EASY_LEVELS


def get_config() -> ConfigDict:
    config = ConfigDict(prepare.defaults()).unlock()
    config.source = "math_shepherd"
    config.levels = EASY_LEVELS
    config.tasks = ("MATH",)  # MATH, GSM8K
    config.math500 = "hub"
    return config.lock()
