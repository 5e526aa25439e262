"""PRMBench: modified questions, and solutions with edited errors, as the benchmark judges them.

train = problems outside MATH500 (levels 1 to 3 here), test = MATH500's, all levels.

    e2h prepare --config=configs/data/prmbench.py --workdir=runs/data/prmbench

Without the network: --config.path=… and --config.math=… take local files or folders (docs/data.md).
"""

from ml_collections import ConfigDict

from e2h_jax.data import prepare
from e2h_jax.data.levels import EASY_LEVELS


def get_config() -> ConfigDict:
    config = ConfigDict(prepare.defaults()).unlock()
    config.source = "prmbench"
    config.levels = EASY_LEVELS
    config.keep_unknown = False
    config.math500 = "hub"
    return config.lock()
