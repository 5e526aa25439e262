"""ReST-EM: sample solutions, keep the good ones, train on them; a few rounds (Singh et al. 2023, arXiv 2312.06585).

E-step: solutions of every question are drawn from the policy. Where the answer is known, a right final answer is what counts.
A reward model, if one is named, must give a solution at least `threshold`. Solutions of a question whose answer is hidden are
kept on its score alone. Of what is left, at most `per_problem` different solutions per problem are kept.
M-step: supervised fine-tuning on them, from the same base every round, or from the round before.

Writes round-1/samples, round-1/scored, round-1/kept.jsonl, round-1/train, round-1/validation …, and model/, the best round's.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from e2h_jax.algorithms import rounds, sft
from e2h_jax.algorithms.rounds import Round, Solution, complete
from e2h_jax.data.records import read_many
from e2h_jax.data.storage import digest, write_records
from e2h_jax.errors import UserError, naming
from e2h_jax.parallel.programs import Assumed, Program, prefixed


def defaults() -> ml_collections.ConfigDict:
    """Fields of the `rest_em` stage."""
    config = rounds.defaults()
    config.base = ""  # model/ that training starts from in every round; "" = init
    config.restart = "base"  # base = train from `base` in every round (Singh et al.) | continue = from the round before
    config.threshold = 0.5  # solutions that the reward model scores lower are not kept
    config.per_problem = 10  # at most so many different solutions of a problem are kept; 0 = all
    config.choose = "seed"  # which, if there are more: seed = any | score = those the reward model scores highest
    config.demonstrations = ""  # problem records with solutions that are trained on too; "" = none
    config.train = rounds.without(
        sft.defaults(), "seed", "mesh", "init", "preset", "tokenizer", "data", "levels", "limit", "template", "lora.merge"
    )
    config.sample.samples = 32  # per problem
    config.sample.temperature = 1.0
    config.sample.top_k = 40  # 0 = off
    return config.lock()


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Writes `workdir/model`; returns the summary. Raises UserError for bad settings or data, or if nothing is kept."""
    check_values(config)
    template = rounds.check_files(config)
    _demonstrations(config)  # raises

    def play(this: Round) -> dict:
        # E-step: which of the policy's solutions are right, as far as answers and reward model can tell.
        drawn = this.draw()
        kept = this.folder / "kept.jsonl"

        def keep(_: Path) -> dict:
            solutions = this.solutions()
            chosen = select(solutions, config.threshold, config.per_problem, config.choose, this.seed)
            if not chosen:
                remedy = "lower config.threshold" if config.reward_model else "draw more (config.sample.samples)"
                raise UserError(f"of {len(solutions)} solutions none is kept; {remedy}, {this.elsewhere}")
            if jax.process_index() == 0:
                write_records(kept, [*map(_record, chosen), *_demonstrations(config)])
            return {"drawn": len(solutions), **_counts(chosen)}

        metrics = drawn | this.part("kept", keep)
        # M-step: imitate them.
        base = this.model if config.restart == "continue" else config.base or config.init
        train = _training(config, base, this.seed, str(kept))
        trained = this.part("train", lambda folder: sft.run(train, folder), "train")
        return {name: metrics[name] for name in metrics if name != "seconds"} | {
            name: trained[name] for name in ("loss", "token_accuracy", "steps", "dropped")
        }

    return rounds.run(config, workdir, template, play)


def _training(config: ml_collections.ConfigDict, base: str, seed: int, data: str) -> ml_collections.ConfigDict:
    """The M-step's config of the `sft` stage."""
    filled = {"seed": seed, "mesh": config.mesh, "init": base, "preset": "", "tokenizer": "", "data": data}
    train = complete(config.train, **filled, levels=(), limit=0, template=config.template)
    train.lora.merge = True  # the next round samples from it
    return train


def programs(config: ml_collections.ConfigDict, mesh: Mesh, assumed: Assumed) -> Iterator[Program]:
    """The programs that `run` compiles, see parallel/programs.py. A part holds nothing any more when the next begins."""
    yield from rounds.programs(config, mesh, assumed)
    train = _training(config, config.base or config.init, config.seed, "")
    with naming("config.train.", outside=("mesh", "init")):
        yield from prefixed("train", sft.programs(train, mesh, assumed))


def select(solutions: list[Solution], threshold: float, per_problem: int, choose: str, seed: int) -> list[Solution]:
    """The solutions to train on, in order; `choose` and `seed` decide where a problem has more than `per_problem`."""

    def is_good(solution: Solution) -> bool:
        if not solution.stopped or solution.right is False:
            return False
        return solution.right is True if solution.score is None else solution.score >= threshold

    chosen = []
    for problem, found in rounds.distinct(filter(is_good, solutions)).items():
        if choose == "score":
            ranked = sorted(found, key=lambda solution: -solution.score)
        else:  # a problem's own stream: what is kept of it does not depend on the others
            rng = np.random.default_rng([seed, int.from_bytes(digest(problem), "little")])
            ranked = [found[index] for index in rng.permutation(len(found))]
        chosen += sorted(ranked[: per_problem or None], key=lambda solution: solution.sample)
    return chosen


def _record(solution: Solution) -> dict:
    """A solution as the problem record that SFT reads. It ended by itself, whatever the question's own solution does."""
    name = f"{solution.problem['id']}#{solution.sample}"
    return solution.problem | {"id": name, "solution": solution.text, "score": solution.score, "eos": True}


def _demonstrations(config: ml_collections.ConfigDict) -> list[dict]:
    if not config.demonstrations:
        return []
    records = [record for record in read_many(config.demonstrations, "problem") if record["solution"]]
    if not records:
        raise UserError(f"config.demonstrations={config.demonstrations} holds no problem with a solution")
    return [record | {"id": f"demonstration:{record['id']}"} for record in records]


def _counts(chosen: list[Solution]) -> dict[str, int]:
    levels = Counter(solution.problem["level"] for solution in chosen if solution.problem["level"] is not None)
    return {
        "kept": len(chosen),
        "kept_problems": len({solution.problem["id"] for solution in chosen}),
        "kept_hidden": sum(solution.right is None for solution in chosen),  # of problems whose answers are hidden
        **{f"kept_level_{level}": count for level, count in sorted(levels.items())},
    }


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    rounds.check_values(config)
    if config.restart not in ("base", "continue"):
        raise UserError(f"config.restart={config.restart!r} must be base or continue")
    if config.base and config.restart == "continue":
        raise UserError("config.base is set, but with config.restart=continue training goes on from the round before")
    if config.choose not in ("seed", "score"):
        raise UserError(f"config.choose={config.choose!r} must be seed or score")
    if config.choose == "score" and not config.reward_model:
        raise UserError("config.choose=score needs config.reward_model, the model/ folder of a reward model")
    if config.reward_model and config.threshold > 1 and config.aggregation != "mean_odds":
        raise UserError(f"config.threshold={config.threshold} keeps no solution: scores are at most 1; lower it")
    if config.per_problem < 0:
        raise UserError("config.per_problem must be at least 0 (0 = all)")
