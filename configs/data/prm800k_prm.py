"""PRM800K as training data of a process reward model: people's labels of steps of easy problems (levels 1 to 3).

    e2h prepare --config=configs/data/prm800k_prm.py --workdir=runs/data/prm800k_prm

Downloads phase1 and phase2 (480 MB) line by line; about two minutes, under 0.4 GB of memory.
Without the network: --config.path=… and --config.math=… take local files or folders (docs/data.md).
"""

from ml_collections import ConfigDict

from e2h_jax.data import prepare
from e2h_jax.data.levels import EASY_LEVELS


def get_config() -> ConfigDict:
    config = ConfigDict(prepare.defaults()).unlock()
    config.source = "prm800k"
    config.records = "prm"
    config.levels = EASY_LEVELS
    config.neutral = "positive"  # a neutral step counts as right, as in the paper; drop = not trained on
    config.math500 = "hub"
    return config.lock()
