"""Compare the samples and scores of a generator of your own, from this project or another system: JSON Lines in, a table out.

    e2h evaluate --config=configs/compare.py --config.problems=problems.jsonl --config.generators.mine.samples=samples.jsonl \\
        --config.generators.mine.scored.prm=scored.jsonl --workdir=runs/compared

Needs no JAX and no accelerator. docs/records.md has the fields of the three files. The same works without this file, and with
any names; it is here to be copied where a comparison has many generators or evaluators.
"""

from ml_collections import ConfigDict

from e2h_jax.evaluation import evaluate


def get_config() -> ConfigDict:
    config = ConfigDict(evaluate.defaults()).unlock()
    config.generators.mine = ConfigDict(
        {
            "samples": "",  # N samples of each problem: a file, or a folder of shards
            "scored": {"prm": ""},  # evaluator: the same samples with step scores
            "template": "",  # in which the answers stand, "math_shepherd" say; "" = as `sample` recorded
            # How an answer is found (docs/grading.md): a rule, "gsm8k" say, or a regular expression with one group; "" = as the
            # template says, or in a box, a section or a sentence where there is none.
            "answer": "",
        }
    )
    return config.lock()
