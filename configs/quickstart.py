"""Easy-to-hard generalization in miniature: the whole method, from nothing to the table, on two CPU cores.

    bash launch/quickstart.sh          or, once installed:
    e2h recipe --config=configs/quickstart.py --workdir=runs/quickstart [--config.seed=1]

A base model learns the built-in curriculum (data/arithmetic.py) from authors who err by habit; SFT on 100 clean easy
solutions makes the generator; a PRM, an ORM and an OPRM learn from 22,000 labelled solutions of easy problems; the
generator's 16 samples of each held-out problem are re-ranked by them. Then the generator learns from the PRM, by ReST-EM,
iterative DPO and PPO, on questions of all levels of which it sees only the easy ones' answers.

Expected (docs/quickstart.md): on hard problems PRM weighted voting 51 to 56 points above majority voting; ReST-EM, DPO and PPO
49 to 79 above SFT, greedily. About 8 minutes on two cores.
"""

from ml_collections import ConfigDict

from e2h_jax import recipe
from e2h_jax.data.levels import EASY_LEVELS
from e2h_jax.recipe import configure

EVALUATORS = ("prm", "orm", "oprm")
LEARNERS = ("rest_em", "dpo", "ppo", "ppo_outcome")


def get_config() -> ConfigDict:
    config = ConfigDict(recipe.defaults()).unlock()
    config.stages = (
        "data", "base", "sft", "evaluator_samples", "labels", *EVALUATORS,
        "greedy", "samples", *(f"score_{name}" for name in EVALUATORS), "sample_labels",
        "full_sft", *LEARNERS, *(f"greedy_{name}" for name in ("full_sft", *LEARNERS)), "evaluate",
    )  # fmt: skip
    config.publish = tuple((f"evaluate/{name}", name) for name in ("results.json", "table.md", "curves.png"))
    config.report = True
    seed = config.get_ref("seed")
    rows = {"length": 128, "seed": seed}
    adam = {"b2": 0.95, "warmup_fraction": 0.05}

    config.data = configure("prepare", {"source": "arithmetic", "arithmetic": {"seed": seed}})

    # The base model: all levels, by careful and careless authors; most authors of hard problems are careless.
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
    # The generator: a few clean solutions, easy levels only.
    demonstrated = rows | {
        "init": "{run}/base/model",
        "epochs": 2,
        "batch_size": 8,
        "optimizer": adam | {"learning_rate": 1.5e-4},
        "log_every": 1,
    }
    config.sft = configure("sft", demonstrated | {"data": "{run}/data/demonstrations.jsonl"})

    # Training data of the evaluators: one sample of each easy question, labelled by the exact checker.
    sampling = {"model": "{run}/sft/model", "top_k": 0, "rows": 512, "prompt_bucket": 64, "seed": seed}
    config.evaluator_samples = configure(
        "sample",
        sampling
        | {
            "problems": "{run}/data/evaluator_questions.jsonl",
            "samples": 1,
            "temperature": 1.0,
            "max_new_tokens": 40,
            "prompt_bucket": 32,
        },
    )
    labels = {"source": "arithmetic_labels"}
    config.labels = configure(
        "prepare",
        labels
        | {
            "arithmetic": {
                "seed": seed,
                "samples": ("{run}/evaluator_samples",),
                "problems": "{run}/data/evaluator_questions.jsonl",
            }
        },
    )
    # The evaluators: the base model's trunk and a linear head read at the step's end, as in the paper.
    for name in EVALUATORS:
        config[name] = configure(
            "reward",
            rows
            | {
                "init": "{run}/base/model",
                "data": f"{{run}}/labels/{name}.jsonl",
                "label_tokens": "all" if name == "orm" else "end",
                "epochs": 2,
                "lm_loss": 0.3,
                "position_gap": 40,  # hard problems are up to 30 tokens longer than easy ones
                "batch_size": 8,
                "optimizer": adam | {"learning_rate": 3e-3},
                "log_every": 25,
            },
        )

    # Held-out problems of all levels: one greedy and 16 sampled solutions of each, judged by each evaluator.
    test = sampling | {"problems": "{run}/data/test.jsonl", "max_new_tokens": 56}
    config.greedy = configure("sample", test | {"samples": 1, "temperature": 0.0})
    config.samples = configure("sample", test | {"samples": 16, "temperature": 0.8})
    for name in EVALUATORS:
        config[f"score_{name}"] = configure(
            "score",
            {"model": f"{{run}}/{name}/model", "samples": "{run}/samples", "problems": "{run}/data/test.jsonl"},
        )

    # To compare with: SFT on solutions of hard problems as well.
    config.full_sft = configure("sft", demonstrated | {"data": "{run}/data/demonstrations_all.jsonl"})

    # Reinforcement learning: the questions are of all levels, the answers of the hard ones are hidden.
    learning = {
        "init": "{run}/sft/model",
        "questions": "{run}/data/rl_questions.jsonl",
        "validation": {"problems": "{run}/data/validation.jsonl"},
        "seed": seed,
    }
    drawing = {"max_new_tokens": 56, "top_k": 0, "temperature": 1.0, "rows": 512}
    judging = {"reward_model": "{run}/prm/model", "score": {"row_length": 128}}
    config.rest_em = configure(
        "rest_em",
        learning
        | judging
        | {
            "rounds": 2,
            "per_problem": 4,
            "sample": drawing | {"samples": 8},
            "train": {"length": 128, "batch_size": 16, "optimizer": adam | {"learning_rate": 1e-3}},
        },
    )
    config.dpo = configure(
        "dpo",
        learning
        | judging
        | {
            "rounds": 2,
            "nll": 1.0,
            "sample": drawing | {"samples": 6},
            "train": {"length": 192, "batch_size": 8, "optimizer": adam | {"learning_rate": 3e-4}},
        },
    )
    ppo = learning | {
        "steps": 6,
        "questions_per_step": 160,
        "minibatches": 4,
        "length": 128,
        "forward_rows": 16,
        "update_rows": 8,
        "sample": drawing | {"rows": 80},
        "optimizer": {"learning_rate": 3e-4},
        "value_optimizer": {"learning_rate": 1e-3},
        "kl": {"coef": 0.1},  # with less, the policy may find what the PRM does not see (docs/quickstart.md)
        "whiten_rewards": "scale",  # the value model starts from the PRM's logits, and has six steps to come down to returns
        "checkpoint_every": 3,
    }
    ppo["validation"] = learning["validation"] | {"every": 3}
    # Process rewards of the PRM on all questions; and, to compare, final answers alone on those whose answers are known.
    prm_reward = {"model": "{run}/prm/model", "upper_bound": 1.0, "scale": 2.0, "row_length": 128, "tokens_per_batch": 2048}
    config.ppo = configure("ppo", ppo | {"reward": prm_reward, "lam": 0.95})
    config.ppo_outcome = configure("ppo", ppo | {"levels": EASY_LEVELS, "reward": {"process": "none"}})
    for name in ("full_sft", *LEARNERS):
        config[f"greedy_{name}"] = configure(
            "sample", test | {"model": f"{{run}}/{name}/model", "samples": 1, "temperature": 0.0}
        )

    # The table, with the checker's labels of the same samples to measure the evaluators themselves.
    config.sample_labels = configure(
        "prepare",
        labels
        | {
            "arithmetic": {
                "seed": seed,
                "samples": ("{run}/samples",),
                "problems": "{run}/data/test.jsonl",
                "repeats": True,
            }
        },
    )
    config.evaluate = configure(
        "evaluate",
        {
            "problems": "{run}/data/test.jsonl",
            "generators": {
                "sft": {
                    "samples": "{run}/samples",
                    "greedy": "{run}/greedy",
                    "scored": {name: f"{{run}}/score_{name}" for name in EVALUATORS},
                },
                **{name: {"greedy": f"{{run}}/greedy_{name}"} for name in ("full_sft", *LEARNERS)},
            },
            "compare": (*((name, "sft") for name in ("full_sft", *LEARNERS)), ("ppo", "ppo_outcome")),
            "labelled": "{run}/sample_labels/prm.jsonl",
            "seconds_from": "{run}",
        },
    )
    return config.lock()
