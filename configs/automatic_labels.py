"""Automatic step labels: a PRM without human labels or an exact checker, from completions of our own generator's solutions.

    e2h recipe --config=configs/automatic_labels.py --workdir=runs/automatic_labels

On the built-in curriculum: SFT makes a generator; it solves easy questions; each step of its solutions is completed eight
times; a step's label is the share of them that reach the answer (Wang et al. 2024, Math-Shepherd). The answers of easy
questions are all that is known. The same samples give an ORM's data (outcomes, between 1:3 and 3:1 a question) and an
OPRM's (a mixture). About four minutes on two CPU cores. With a real model and MATH, only `model`, `problems` and the sizes
change.
"""

from ml_collections import ConfigDict

from e2h_jax import recipe
from e2h_jax.recipe import configure


def get_config() -> ConfigDict:
    config = ConfigDict(recipe.defaults()).unlock()
    config.stages = (
        "data", "base", "sft", "solutions", "prefixes", "completions", "prm_labels", "orm_labels", "oprm_labels", "prm",
    )  # fmt: skip
    seed = config.get_ref("seed")
    rows = {"length": 128, "seed": seed, "mesh": (1, -1, 1)}
    adam = {"b2": 0.95, "warmup_fraction": 0.05}

    config.data = configure("prepare", {"source": "arithmetic", "arithmetic": {"seed": seed, "evaluator_questions": 300}})
    config.base = configure(
        "sft",
        rows
        | {
            "preset": "micro",
            "tokenizer": "{run}/data/tokenizer",
            "data": "{run}/data/corpus.jsonl",
            "train_on_prompt": True,
            "batch_size": 16,
            "optimizer": adam | {"learning_rate": 4e-3},
        },
    )
    config.sft = configure(
        "sft",
        rows
        | {
            "init": "{run}/base/model",
            "data": "{run}/data/demonstrations.jsonl",
            "epochs": 2,
            "batch_size": 8,
            "optimizer": adam | {"learning_rate": 2.5e-4},
        },
    )
    # Solutions of easy questions, and of each step of the first four of a question eight completions.
    sampling = {
        "model": "{run}/sft/model",
        "temperature": 1.0,
        "top_k": 0,
        "rows": 512,
        "prompt_bucket": 32,
        "max_new_tokens": 40,
        "seed": seed,
    }
    questions = "{run}/data/evaluator_questions.jsonl"
    config.solutions = configure("sample", sampling | {"problems": questions, "samples": 32})
    config.prefixes = configure(
        "prepare",
        {"source": "prefixes", "path": questions, "samples": "{run}/solutions", "per_problem": 4, "seed": seed},
    )
    config.completions = configure("sample", sampling | {"problems": "{run}/prefixes/prefixes/train", "samples": 8})
    judged = {"problems": questions, "samples": "{run}/solutions", "seed": seed}
    config.prm_labels = configure(
        "labels",
        judged
        | {
            "method": "completions",
            "prefixes": "{run}/prefixes/prefixes/train",
            "completions": "{run}/completions",
            # soft: the share of completions that reach the answer; hard: whether any does, as Math-Shepherd's labels. One guess
            # in seven is right here, so hard labels would often be.
            "estimate": "soft",
        },
    )
    config.orm_labels = configure("labels", judged | {"method": "outcome", "per_problem": 32, "ratio": 3.0})
    config.oprm_labels = configure(
        "prepare",
        {
            "source": "mixture",
            "name": "oprm",
            "mixture_by": "steps",  # with label_tokens=end every labelled step weighs alike
            "seed": seed,
            "mixture": {
                "prm": {"path": "{run}/prm_labels/prm/train", "share": 0.75},
                "orm": {"path": "{run}/orm_labels/orm/train", "share": 0.25},
            },
        },
    )
    config.prm = configure(
        "reward",
        rows
        | {
            "init": "{run}/base/model",
            "data": "{run}/prm_labels/prm/train",
            "label_tokens": "end",
            "lm_loss": 0.3,
            "batch_size": 8,
            "optimizer": adam | {"learning_rate": 3e-3},
        },
    )
    return config.lock()
