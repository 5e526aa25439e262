"""What the recipes of this folder chain: each stage of the paper's experiments, built in one place (docs/paper.md).

    recipe = Recipe("prm800k", "7b")
    generator = recipe.sft("easy")            a call adds a stage, behind those that it reads, and returns its folder
    samples = recipe.samples(generator)
    …
    return recipe.finish()

A stage of one name has the same config in every recipe. So recipes that run in one --workdir share what they have in
common: finished stages are skipped.

Sections and tables are those of arXiv 2403.09472; "the command" is the one that its authors published. Where a setting is not
theirs, a comment says why.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from e2h_jax import recipe
from e2h_jax.algorithms import presets
from e2h_jax.data.levels import EASY_LEVELS, HARD_LEVELS
from e2h_jax.recipe import configure
from e2h_jax.rewards import shaping

POOLS = {"easy": EASY_LEVELS, "hard": HARD_LEVELS, "full": ()}  # what is trained on, or shown as examples

# Meshes (data, fsdp, tensor); -1 = whatever the slice has.
TRAINING = (1, -1, 1)  # parameters, gradients and moments are cut over all chips
DECODING = (-1, 1, 4)  # four chips hold a model and draw from it; cut over more, weights would travel for every token

# Section 3.6: embeddings, language-model head and norms are as the base model's. They take no memory of the optimiser.
FROZEN = ("embedding", "norm", "lm_head")

# Table 4, supervised fine-tuning. `batch_size` counts packed rows: as many as hold about 128 solutions with their questions, of
# some 400 tokens in PRM800K and 220 in MetaMath; the paper's batch is 128 examples. In PRM800K the original's example is one
# step behind those before it, here all steps of a solution are one: fewer optimiser steps, each by more labels.
SFT = {
    ("prm800k", "7b"): {"learning_rate": 2e-5, "length": 768, "batch_size": 64},
    ("prm800k", "34b"): {"learning_rate": 1e-5, "length": 768, "batch_size": 64},
    ("metamath", "7b"): {"learning_rate": 8e-6, "length": 1024, "batch_size": 32},
    ("metamath", "34b"): {"learning_rate": 5e-6, "length": 768, "batch_size": 64},  # a row for each of 64 chips, not 40 in all
}
# Table 4, reward models, in the same way. Its lengths are 768 (PRM) and 1024 (ORM, OPRM), and the command's 1024 for a PRM too;
# here always 1024, since a row that is too short loses a solution with all its steps.
REWARD_RATE = {"7b": 2e-5, "34b": 1e-5}
REWARD_ROWS = {("prm800k", "7b"): 64, ("prm800k", "34b"): 64, ("metamath", "7b"): 32}

# Sequences decoded together, over all chips: as many as their keys and values leave room for. The prompts' lie beside them, so
# that it is fewer where each has a prompt of its own, or where prompts are long.
DECODED = {"7b": 512, "34b": 2048}

# Table 2's questions of reinforcement learning: the data set, and its levels.
QUESTIONS = {
    "easy": ("questions", EASY_LEVELS),
    "hard": ("questions_answered", HARD_LEVELS),
    "all": ("questions", ()),  # with final answers of the easy ones alone: easy-to-hard
    "answered": ("questions_answered", ()),  # with those of the hard ones too: the rows with a dagger
}


def adamw(learning_rate: float, epochs: int) -> dict[str, Any]:
    """Linear warm-up over a fifth of an epoch, cosine to a hundredth; betas, epsilon, decay and clipping are the defaults.

    Unlike the original's, the first step has a rate above 0, and master weights and moments are float32, not bfloat16.
    """
    warmup = 0.2 / epochs  # ours is a share of all steps
    return {"learning_rate": learning_rate, "warmup_fraction": warmup, "final_fraction": 0.01, "freeze": FROZEN}


class Recipe:
    """Stages of one data set ("prm800k", or "metamath" with Math-Shepherd) and one size of model ("7b", "34b"), as they come.

    Args:
      beside: another size's recipe, to go on with.
    """

    def __init__(self, data: str, size: str, beside: "Recipe | None" = None):
        self.config = beside.config if beside else ConfigDict(recipe.defaults()).unlock()
        self.data, self.size = data, size
        self._seed = self.config.get_ref("seed")

    def finish(self) -> ConfigDict:
        """The recipe's config. What `evaluate` wrote is copied to the top of its workdir, behind the stage's name."""
        for name in self.config.stages:
            if self.config[name].stage == "evaluate":
                sampled = any("samples" in paths for paths in self.config[name].generators.values())
                files = ("results.json", "table.md", *(["curves.png"] if sampled else []))
                self.config.publish += tuple((f"{name}/{file}", f"{name}_{file}") for file in files)
        return self.config.lock()

    def _add(self, name: str, stage: str, fields: Mapping[str, Any]) -> str:
        """Appends a stage, unless it is there; its folder."""
        if name not in self.config.stages:
            self.config.stages += (name,)
            self.config[name] = configure(stage, fields)
        return f"{{run}}/{name}"

    # Data

    def problems(self, split: str) -> str:
        """MATH, 11,500 training, 500 validation and 500 test problems of all levels (section 3.1): train | valid | test."""
        fields = {"source": "math", "test_path": "hub", "split": "prm800k", "valid": 500, "seed": self._seed}
        return self._add("math", "prepare", fields) + f"/math/{split}"

    def questions(self, answered: bool) -> str:
        """Training problems to draw solutions of: prompts of 384 tokens at most (98 % of all); hard answers hidden, or not."""
        name = "questions_answered" if answered else "questions"
        fields = {
            "source": "math",
            "records": "rl",
            "test_path": "hub",
            "levels": () if answered else EASY_LEVELS,
            "valid": 500,  # the same ones as of `math`: they depend on the seed alone
            "max_tokens": 384,
            "tokenizer": "EleutherAI/llemma_34b",  # the 7b's is the same
            "seed": self._seed,
        }
        return self._add(name, "prepare", fields) + "/math/train"

    def demonstrations(self, pool: str) -> str:
        """Solutions to imitate: steps rated +1 of PRM800K, or MetaMath's, at most three of a question (appendix C.1).

        Problems outside MATH (MetaMath's of GSM8K) count as easy. Validation problems are among PRM800K's, as in the original.
        """
        fields = {
            "levels": POOLS[pool],
            "keep_unknown": pool != "hard",
            "math500": "hub",
            "max_tokens": 768 if self.data == "prm800k" else 1024,
            "tokenizer": "EleutherAI/llemma_34b",
            "seed": self._seed,
        }
        if self.data == "prm800k":
            fields |= {"source": "prm800k", "records": "sft"}
        else:  # the same three in every epoch; the original shows others where a question has more
            fields |= {"source": "metamath", "per_question": 3}
        return self._add(f"demonstrations_{pool}", "prepare", fields) + f"/{self.data}/train"

    def step_labels(self) -> str:
        """Labelled steps of easy problems: PRM800K, neutral ones as right (appendix L), or Math-Shepherd."""
        fields = {"levels": EASY_LEVELS, "math500": "hub", "seed": self._seed}
        if self.data == "prm800k":
            fields |= {"source": "prm800k", "records": "prm", "neutral": "positive"}
        else:
            fields |= {"source": "math_shepherd", "tasks": ("MATH",)}
        return self._add("step_labels", "prepare", fields) + f"/{fields['source']}/train"

    def outcome_labels(self) -> str:
        """Outcomes of the easy generator's 32 solutions of each easy question, between 1:3 and 3:1 (appendix C.1)."""
        problems = self.questions(answered=False)
        drawn = {"problems": problems, "levels": EASY_LEVELS, "samples": 32}
        solutions = self._draw(f"outcome_samples_{self.size}", self.sft("easy"), drawn)
        fields = {"method": "outcome", "problems": problems, "samples": solutions, "levels": EASY_LEVELS, "seed": self._seed}
        fields |= {"per_problem": 32, "ratio": 3.0}
        return self._add(f"outcome_labels_{self.size}", "labels", fields) + "/orm/train"

    def mixed_labels(self) -> str:
        """As many tokens with a step's label as with an outcome. The paper does not state the ratio.

        Not as many records: the loss is a mean over labelled tokens, and a record of PRM800K is mostly one step behind a long
        prefix, one of the outcomes a whole solution. One to one by records is about 1 to 6 by tokens, and leaves out most step
        labels. Records longer than the training's rows are left out before the shares are taken.
        """
        parts = {"prm": {"path": self.step_labels(), "share": 0.5}, "orm": {"path": self.outcome_labels(), "share": 0.5}}
        fields = {"source": "mixture", "name": "oprm", "mixture": parts, "mixture_by": "tokens", "seed": self._seed}
        fields |= {"max_tokens": 1024, "tokenizer": "EleutherAI/llemma_34b"}  # the 7b's is the same
        return self._add(f"mixed_labels_{self.size}", "prepare", fields) + "/oprm/train"

    # Models

    def base(self) -> str:
        """Llemma, with the 32,000 rows of its embedding that its tokenizer has ids for, as in the original."""
        fields = {"source": f"EleutherAI/llemma_{self.size}", "vocab_size": 32_000, "remat": "full"}
        return self._add(f"llemma_{self.size}", "convert", fields)

    def sft(self, pool: str) -> str:
        """A generator (Table 4): the base model fine-tuned on easy, hard or full demonstrations for three epochs."""
        fields = {"init": self.base() + "/model", "data": self.demonstrations(pool), "mesh": TRAINING, "seed": self._seed}
        return self._add(f"sft_{pool}_{self.size}", "sft", fields | self._sft_training())

    def _sft_training(self) -> dict[str, Any]:
        settings = dict(SFT[self.data, self.size])
        return {"epochs": 3, "optimizer": adamw(settings.pop("learning_rate"), 3), **settings}

    def prm(self) -> str:
        return self._reward("prm", self.step_labels())

    def orm(self) -> str:
        return self._reward("orm", self.outcome_labels())

    def oprm(self) -> str:
        return self._reward("oprm", self.mixed_labels())

    def _reward(self, name: str, labels: str) -> str:
        """An evaluator (Table 4), from the base model: the label on every token of a step, two epochs."""
        fields = {
            "init": self.base() + "/model",
            "data": labels,
            "label_tokens": "all",
            "epochs": 2,
            "length": 1024,
            "batch_size": REWARD_ROWS[self.data, self.size],
            "mesh": TRAINING,
            "seed": self._seed,
            "optimizer": adamw(REWARD_RATE[self.size], 2),
        }
        return self._add(f"{name}_{self.size}", "reward", fields)

    # Solutions of MATH500, and their scores. A stage is named after the generator's.

    def greedy(self, generator: str) -> str:
        return self._draw(f"greedy_{_name(generator)}", generator, self._test() | self._alone())

    def samples(self, generator: str) -> str:
        """256 of each problem (Table 1), of the easy generator 1024 (figures 4 and 5); T 0.7, top 20 (appendix C.2)."""
        name = _name(generator)
        count = 1024 if name == f"sft_easy_{self.size}" else 256
        return self._draw(f"samples_{name}", generator, self._test() | {"samples": count})

    def greedy_in_context(self, pool: str) -> str:
        fields = self._test() | self._alone() | self._shots(pool) | {"rows": DECODED[self.size] // 16}
        return self._draw(f"greedy_icl_{pool}_{self.size}", self.base(), fields)

    def samples_in_context(self, pool: str) -> str:
        fields = self._test() | self._shots(pool) | {"samples": 256, "temperature": 0.9, "rows": DECODED[self.size] // 2}
        return self._draw(f"samples_icl_{pool}_{self.size}", self.base(), fields)

    def _test(self) -> dict[str, Any]:
        return {"problems": self.problems("test")}

    def _alone(self) -> dict[str, Any]:
        return {"samples": 1, "temperature": 0.0, "rows": DECODED[self.size] // 4}

    def _shots(self, pool: str) -> dict[str, Any]:
        """Four solved problems of these levels in front of the question (appendix R). Draw others by the stage's `seed`."""
        levels = POOLS[pool] or (*EASY_LEVELS, *HARD_LEVELS)  # GSM8K's have none
        fields = {"source": "few_shot", "path": self.demonstrations("full"), "levels": levels, "shots": 4, "seed": self._seed}
        return {"template": self._add(f"shots_{pool}", "prepare", fields) + "/template.json", "prompt_bucket": 1024}

    def _draw(self, name: str, generator: str, fields: Mapping[str, Any]) -> str:
        shared = {
            "model": generator + "/model",
            "temperature": 0.7,
            "top_k": 20,
            "max_new_tokens": 768,  # not stated for re-ranking; the longest response of PPO
            "rows": DECODED[self.size],
            "prompt_bucket": 512,  # two lengths of prompts: few programs to compile
            "mesh": DECODING,
            "seed": self._seed,
        }
        return self._add(name, "sample", shared | fields)

    def score(self, evaluator: str, samples: str) -> str:
        fields = {
            "model": evaluator + "/model",
            "samples": samples,
            "problems": self.problems("test"),
            "row_length": 2048,  # MATH500's longest prompt has 892 tokens
            "tokens_per_batch": 131_072,
            "mesh": TRAINING,
        }
        return self._add(f"score_{_name(samples).removeprefix('samples_')}_by_{_name(evaluator)}", "score", fields)

    # What to compare, for `evaluate`: generator -> where its solutions and their scores are

    def in_context(self, *pools: str) -> dict[str, dict[str, Any]]:
        """The base model with examples of these pools."""
        drawn = {pool: {"greedy": self.greedy_in_context(pool), "samples": self.samples_in_context(pool)} for pool in pools}
        return {f"icl_{pool}": paths for pool, paths in drawn.items()}

    def fine_tuned(self, *pools: str) -> dict[str, dict[str, Any]]:
        """Generators trained on these pools."""
        drawn = {pool: {"greedy": self.greedy(self.sft(pool)), "samples": self.samples(self.sft(pool))} for pool in pools}
        return {f"sft_{pool}": paths for pool, paths in drawn.items()}

    def reranked(self, **evaluators: str) -> dict[str, dict[str, Any]]:
        """The easy generator, its samples scored by these evaluators."""
        paths = self.fine_tuned("easy")["sft_easy"]
        scored = {name: self.score(evaluator, paths["samples"]) for name, evaluator in evaluators.items()}
        return {f"sft_{self.size}": paths | {"scored": scored}}

    def learnt(self, *policies: str) -> dict[str, dict[str, Any]]:
        """The easy generator and policies that came of it, greedily."""
        return {_name(policy): {"greedy": self.greedy(policy)} for policy in (self.sft("easy"), *policies)}

    def evaluate(self, name: str, generators: Mapping[str, Mapping[str, Any]], against: str = "", **paper: str) -> str:
        """The table, by the paper's rules of grading (PRM800K's, without algebra); and each generator's difference to one.

        `paper`: for an evaluator the paper's curve, which `e2h show` draws beside it.
        """
        fields = {"problems": self.problems("test"), "generators": generators, "rules": "strict", "paper": paper}
        fields["seed"] = self._seed
        fields["compare"] = tuple((other, against) for other in generators if against and other != against)
        return self._add(name, "evaluate", fields)

    # Reinforcement learning from the easy generator (section 3.4), validated on 500 problems of all levels

    def _learning(self, questions: str) -> dict[str, Any]:
        data, _ = QUESTIONS[questions]
        return {
            "init": self.sft("easy") + "/model",
            "questions": self.questions(answered=data == "questions_answered"),
            "validation": {"problems": self.problems("valid")},
            "seed": self._seed,
        }

    def rest_em(self, questions: str) -> str:
        """Two rounds: 32 solutions, T 1.0 (MetaMath 1.2), top 40; right ones, ten of a problem at most; training as SFT."""
        drawing = {"samples": 32, "temperature": 1.0 if self.data == "prm800k" else 1.2, "top_k": 40}
        fields = {
            "rounds": 2,
            "per_problem": 10,
            "restart": "base",  # each round from the generator; the paper does not say
            "mesh": DECODING,  # for sampling and training: the slice must hold the training of 7b on four chips
            "sample": drawing | self._drawing(questions),
            "train": self._sft_training() | {"microbatches": 4},
        }
        return self._add(f"rest_em_{questions}_{self.size}", "rest_em", self._learning(questions) | fields)

    def dpo(self, questions: str) -> str:
        """At most five rounds: eight solutions, T 1.0, top 20; PRM plus final answer; pairs more than 1.0 apart, three at most.

        The paper leaves open how the PRM's steps become one score (here their product), and how two solutions of a question
        without an answer can be 1.0 apart (here 0.5 will do, since their scores lie within half the range).
        """
        fields = {
            "rounds": 5,
            "reward_model": self.prm() + "/model",
            "aggregation": "prod",
            "margin": 1.0,
            "margin_hidden": 0.5,
            "pairs_per_problem": 3,
            "beta": 0.1,
            "mesh": DECODING,
            "sample": {"samples": 8, "temperature": 1.0, "top_k": 20} | self._drawing(questions),
            "score": {"row_length": 2048, "tokens_per_batch": 131_072},
            "train": {
                "length": 2048,  # two prompts and two solutions
                "batch_size": 32,  # rows of about two pairs each: the paper's 64 pairs
                "microbatches": 4,
                "optimizer": adamw(2e-6, 1),
            },
        }
        return self._add(f"dpo_{questions}_{self.size}", "dpo", self._learning(questions) | fields)

    def _drawing(self, questions: str) -> dict[str, Any]:
        return {"levels": QUESTIONS[questions][1], "max_new_tokens": 768, "rows": DECODED[self.size], "prompt_bucket": 384}

    def ppo(self, questions: str, prm: bool) -> str:
        """500 steps of 512 rollouts, with the arithmetic of the command (docs/ppo.md, docs/rewards.md), quirks included.

        To go without the quirks: `presets.ppo()` for `presets.paper()`, no `shaping.paper() |`, no `top_k`. With `prm` process
        rewards, else final answers alone.
        """
        steps, metamath = 500, self.data == "metamath"
        settings = presets.paper()  # quirk: how rewards are whitened, the KL estimated, padding not masked
        optimizer = {
            "learning_rate": 5e-6 if metamath else 2e-5,
            "warmup_fraction": 5 / steps,
            "first_rate_zero": True,
            "b2": 0.95,
            "eps": 1e-5,
            "freeze": FROZEN,
        }
        learning = self._learning(questions)
        fields = {
            "steps": steps,
            "levels": QUESTIONS[questions][1],
            "questions_per_step": 512,
            "minibatches": 2 if metamath else 8,  # one pass over the rollouts
            "optimizer": optimizer,
            "value_optimizer": optimizer,
            "validation": learning["validation"] | {"every": 10},
            "kl": settings["kl"] | {"coef": 0.002 if metamath else 0.01, "quantize": "int8"},
            "reward": shaping.paper() | (self._process_rewards() if prm else {"process": "none"}),  # quirk: shaping.paper()
            "sample": {
                "temperature": 1.2 if metamath else 0.7,
                "top_k": 50,  # quirk: judged by the probabilities of all tokens
                "max_new_tokens": 768,
                "rows": 256,
                "prompt_bucket": 384,
            },
            "length": 384 + 768,
            "forward_rows": 32,
            "update_rows": 8,
            "mesh": (1, -1, 4),  # four models, rollouts and updates on one mesh
        }
        kind = "" if prm else "outcome_"
        return self._add(f"ppo_{kind}{questions}_{self.size}", "ppo", settings | learning | fields)

    def _process_rewards(self) -> dict[str, Any]:
        rows = {"row_length": 384 + 768, "tokens_per_batch": 32 * (384 + 768)}
        return {"model": self.prm() + "/model", "quantize": "int8"} | rows


def _name(folder: str) -> str:
    return folder.rpartition("/")[2]
