"""Four solved MATH problems in front of the question: the prompt of the paper's in-context-learning baselines.

    e2h prepare --config=configs/data/few_shot.py --config.path=runs/data/math_sft/math/train --workdir=runs/data/few_shot

Gives template.json, which `sample` takes as --config.template=runs/data/few_shot/template.json. The pool is easy; for the other
two, --config.levels="(4, 5)" (hard) or "()" (full), from a data set that has these levels.
"""

from ml_collections import ConfigDict

from e2h_jax.data import prepare
from e2h_jax.data.levels import EASY_LEVELS


def get_config() -> ConfigDict:
    config = ConfigDict(prepare.defaults()).unlock()
    config.source = "few_shot"
    config.levels = EASY_LEVELS
    config.shots = 4
    config.seed = 0
    return config.lock()
