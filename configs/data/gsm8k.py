"""GSM8K: 7,473 training and 1,319 test problems with solutions, a step a line; levels 1 to 5 by the number of steps.

    e2h prepare --config=configs/data/gsm8k.py --workdir=runs/data/gsm8k

For the easy problems alone: --config.levels="(1, 2, 3)", which leaves the test as it is.
Without the network: --config.path=FOLDER with train.jsonl and test.jsonl.
"""

from ml_collections import ConfigDict

from e2h_jax.data import prepare


def get_config() -> ConfigDict:
    config = ConfigDict(prepare.defaults()).unlock()
    config.source = "gsm8k"
    return config.lock()
