"""Your own problems, one JSON object a line: {"id", "question", "answer", "level" (1 to 5), "subject", "solution"}.

    e2h prepare --config=configs/data/my_problems.py --config.path=mine.jsonl --workdir=runs/data/mine

Only id and question must be there. A level that stands in another field, or in words, is told by --config.level_field and
level_map (docs/data.md). Gives runs/data/mine/mine/{train,valid,test} and a tokenizer trained on the training text.
With labelled records ({"question", "prefix", "steps", "labels", …}): --config.records=prm.
"""

from ml_collections import ConfigDict

from e2h_jax.data import prepare


def get_config() -> ConfigDict:
    config = ConfigDict(prepare.defaults()).unlock()
    config.source = "jsonl"
    config.name = "mine"
    config.valid = 50  # held out by the seed, mixed like the whole in subjects and levels
    config.test = 100
    config.seed = 0
    config.vocab_size = 4096  # 0 = make no tokenizer
    return config.lock()
