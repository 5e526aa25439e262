"""PRM800K as demonstrations: the steps of easy problems that people rated +1, behind the steps before them.

    e2h prepare --config=configs/data/prm800k_sft.py --workdir=runs/data/prm800k_sft

Without the network: --config.path=… and --config.math=… take local files or folders (docs/data.md).
"""

from ml_collections import ConfigDict

from e2h_jax.data import prepare
from e2h_jax.data.levels import EASY_LEVELS


def get_config() -> ConfigDict:
    config = ConfigDict(prepare.defaults()).unlock()
    config.source = "prm800k"
    config.records = "sft"
    config.levels = EASY_LEVELS
    config.math500 = "hub"
    return config.lock()
