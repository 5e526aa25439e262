"""MetaMathQA for supervised fine-tuning: GSM8K's rewritten questions, and MATH's of levels 1 to 3.

    e2h prepare --config=configs/data/metamath.py --workdir=runs/data/metamath

Without the network: --config.path=… and --config.math=… take local files or folders (docs/data.md).
"""

from ml_collections import ConfigDict

from e2h_jax.data import prepare
from e2h_jax.data.levels import EASY_LEVELS


def get_config() -> ConfigDict:
    config = ConfigDict(prepare.defaults()).unlock()
    config.source = "metamath"
    config.levels = EASY_LEVELS
    config.per_question = 4  # different solutions of one question
    config.math500 = "hub"
    return config.lock()
