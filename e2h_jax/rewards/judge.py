"""The judge of reinforcement learning: from rollouts to one reward per token, everything together.

A frozen reward model scores the steps of all rollouts in packed rows (one shape, compiled once), the grading pool grades the
final answers, and `shaping.py` (or `original.py`) makes rewards of both. The reward model may have another tokenizer and
another template than the policy: it reads the text in its own, and its scores go to the policy's tokens step by step.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from e2h_jax.data.records import has_answer
from e2h_jax.data.rewrite import as_read, rewrite
from e2h_jax.data.rollout import Rollout
from e2h_jax.data.sampled_steps import locate
from e2h_jax.data.steps import READ_AT, EncodedSolution, check_tag, encode_solutions, steps_begun
from e2h_jax.data.templates import Template, get_template, recorded_template
from e2h_jax.data.tokenizer import end_ids, load_tokenizer
from e2h_jax.errors import UserError, naming, nearest
from e2h_jax.grading.pool import GradingPool
from e2h_jax.models import store
from e2h_jax.parallel.rules import axis_size
from e2h_jax.rewards import original, shaping
from e2h_jax.rewards.scoring import Scorer, plan, step_scores
from e2h_jax.rewards.shaping import Shaped, Verdict

_WORDS = ("wrong", "correct", "undecided")


def defaults() -> ConfigDict:
    """Fields of `config.reward`: those of `shaping.defaults`, and of the reward model."""
    config = shaping.defaults()
    config.model = ""  # model/ folder of a reward model; needed unless process = "none"
    config.template = ""  # text that it reads; "" = its own, as chat
    config.read_at = ""  # token at which a step's score is read, see data/steps.py; "" = its own
    config.dtype = ""  # compute dtype; "" = its own
    config.quantize = ""  # int8 = weights in int8, half the memory of bfloat16 (docs/memory.md); "" = off
    config.row_length = 0  # tokens of the rows that solutions are packed into for scoring; 0 = all of the model's positions
    config.tokens_per_batch = 16_384  # of one forward pass, over all devices
    config.grade_workers = 0  # processes that grade; 0 = one per core, eight at most
    return config.lock()


def check(config: ConfigDict) -> None:
    """Raises UserError for values of `config.reward` that make no sense; reads no file."""
    shaping.check(config)
    if config.grade_workers < 0:
        raise UserError(f"config.reward.grade_workers={config.grade_workers} must be at least 0 (0 = one per core)")
    if config.process != "none" and not config.model:
        raise UserError('config.reward.model is empty; name the model/ folder of a reward model, or set process to "none"')
    if config.read_at and config.read_at not in READ_AT:
        raise UserError(f'config.reward.read_at="{config.read_at}" is unknown{nearest(config.read_at, READ_AT)}')
    if config.row_length < 0 or config.tokens_per_batch < 1:
        raise UserError(
            f"config.reward.row_length={config.row_length} must be at least 0 (0 = all of the model's positions), and "
            f"config.reward.tokens_per_batch={config.tokens_per_batch} at least 1"
        )
    with naming("config.reward."):
        store.check(config.dtype, config.quantize)


def check_template(config: ConfigDict, name: str, answer: str) -> None:
    """Raises UserError if `config.rules` cannot read rollouts in the template of this name, or answers by this rule."""
    if config.rules == "original" and name != "e2h":
        raise UserError(f'config.reward.rules="original" knows the template e2h only, not {name}; use "corrected"')
    if config.rules == "original" and answer not in ("template", "header"):
        raise UserError('config.reward.rules="original" has its own rule for answers; set config.answer=template')


class Judge:
    """Rewards of rollouts; use it as a context manager, or `close` it (its grading processes end)."""

    def __init__(self, config: ConfigDict, mesh: Mesh, policy_tokenizer: Any, template: Template):
        """Loads the reward model onto the mesh; none when no process reward is asked for.

        Args:
          config: see `defaults`.
          policy_tokenizer: of the rollouts' tokens.
          template: of the rollouts' texts, with the rule by which their answers are found.

        Raises:
          UserError: settings that make no sense, or a reward model that cannot be read, or not with this policy.
        """
        check(config)
        check_template(config, template.name, template.answer)
        self._config, self._tokenizer, self._template = config, policy_tokenizer, template
        self._original = config.rules == "original"
        self._model = None if config.process == "none" else _RewardModel(config, mesh)
        if self._original and self._model:
            self._newline = original.newline_token(policy_tokenizer)
            if self._model.template != template or self._model.tokenizer.get_vocab() != policy_tokenizer.get_vocab():
                raise UserError(
                    f'config.reward.rules="original" scores the very tokens of the policy, but {config.model} has another '
                    'tokenizer or template; use "corrected".'
                )
        self._pool = GradingPool(config.grade_workers or None)

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the grading processes."""
        self._pool.close()

    def check_answers(self, problems: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError if `config.outcome` is "all" and nothing tells the true answer of a problem."""
        for problem in problems if self._config.outcome == "all" else ():
            if _truth(problem)[0] is None:
                raise UserError(
                    f'config.reward.outcome="all", but problem "{problem["id"]}" has neither an answer nor a gt_answer; '
                    'use "easy"'
                )

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Shaped]:
        """The reward of each rollout, in order. With several processes, each gives all rollouts and gets all rewards.

        Raises:
          UserError: see `check_answers`.
        """
        return self._by_original_rules(rollouts) if self._original else self._by_corrected_rules(rollouts)

    def _by_corrected_rules(self, rollouts: Sequence[Rollout]) -> list[Shaped]:
        template = self._template
        located = [locate(self._tokenizer, rollout.prompt, rollout.tokens, template) for rollout in rollouts]
        scores: list[list[float] | None] = [None] * len(rollouts)
        texts = [template.whole(rollout.problem, rollout.text) for rollout in rollouts]
        if self._model:
            pending = self._model.scores([rollout.problem["question"] for rollout in rollouts], texts, template)
        answers = [template.extract_answer(text) for text in texts]
        verdicts = self._grade(rollouts, answers)  # while the device computes
        if self._model:
            lengths = [len(text) - len(rollout.text) for text, rollout in zip(texts, rollouts, strict=True)]
            before = [steps_begun(text, length, template) for text, length in zip(texts, lengths, strict=True)]
            # Of a rollout that goes on from within the answer, the answer's score is all there is.
            scores = [
                None if found is None else align(found[first:] or found[-1:], len(solution.steps))
                for found, first, solution in zip(pending(), before, located, strict=True)
            ]
        rows = zip(rollouts, texts, answers, located, scores, verdicts, strict=True)
        return [shaping.shape(self._config, template, *row) for row in rows]

    def _by_original_rules(self, rollouts: Sequence[Rollout]) -> list[Shaped]:
        ends = end_ids(self._tokenizer, self._template)
        responses = [rollout.tokens[:-1] if rollout.tokens[-1] in ends else rollout.tokens for rollout in rollouts]
        steps: list[list[original.StepPair]] = [[] for _ in rollouts]
        if self._model:
            pairs = zip(rollouts, responses, strict=True)
            sampled = [locate(self._tokenizer, rollout.prompt, response, self._template) for rollout, response in pairs]
            pending = self._model.logits(sampled)
        verdicts = self._grade(rollouts, [original.extract_answer(rollout.text) for rollout in rollouts])
        if self._model:
            for index, logits in enumerate(pending()):
                if logits is not None:
                    response = logits[len(rollouts[index].prompt) - 1 :]
                    steps[index] = original.step_pairs(responses[index], response, self._newline, rollouts[index].text)
        rows = zip(rollouts, map(len, responses), steps, verdicts, strict=True)
        return [original.shape(self._config, *row) for row in rows]

    def _grade(self, rollouts: Sequence[Rollout], answers: Sequence[str | None]) -> list[Verdict]:
        self.check_answers([rollout.problem for rollout in rollouts])
        truths = [_truth(rollout.problem) for rollout in rollouts]
        pairs = [(answer, truth) for answer, (truth, _) in zip(answers, truths, strict=True)]
        words = self._words(pairs)
        return [
            Verdict(None if truth is None else word == "correct", hidden, word == "undecided")
            for word, (truth, hidden) in zip(words, truths, strict=True)
        ]

    def _words(self, pairs: Sequence[tuple[str | None, str | None]]) -> list[str]:
        """Verdicts on (answer, truth), "wrong" without a truth. One process grades for all: time may run out on one alone."""
        codes = np.zeros(len(pairs), np.int32)
        if jax.process_index() == 0:
            unique = list(dict.fromkeys(pair for pair in pairs if pair[1] is not None))
            words = dict(zip(unique, self._pool.grade_many(unique, self._config.grading), strict=True))
            codes = np.array([_WORDS.index(words.get(pair, "wrong")) for pair in pairs], np.int32)
        if jax.process_count() > 1:
            codes = multihost_utils.broadcast_one_to_all(codes)
        return [_WORDS[code] for code in codes]


def _truth(problem: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The true answer as far as it is known, and whether reinforcement learning may not see it."""
    if has_answer(problem):
        return problem["answer"], False
    return problem.get("gt_answer", "").strip() or None, True


def align(scores: Sequence[float], count: int) -> list[float] | None:
    """Step scores by step, for `count` steps; None where there are none to give.

    Another template may have the answer within the last step, or apart from it: then the last score stands for both, or the
    least of the two for the one.
    """
    if not scores or not count:
        return None
    if len(scores) < count:
        return [*scores, *[scores[-1]] * (count - len(scores))]
    return [*scores[: count - 1], min(scores[count - 1 :])]


def load_scorer(config: ConfigDict, mesh: Mesh, folder: Path | store.Described) -> tuple[Scorer, int]:
    """The scorer of `config.reward` with the model in `folder`, and the tokens of its rows."""
    kind, stored = store.load_config(folder)
    if kind != "reward":
        raise UserError(f"config.reward.model={config.model} holds a {kind} model where a reward model is needed")
    if config.row_length > stored.max_length:
        raise UserError(
            f"config.reward.row_length={config.row_length} is more than the model's {stored.max_length} positions; lower it"
        )
    with naming("config.reward."):
        store.check(config.dtype, config.quantize)
    graph, _, params = store.load_frozen(folder, mesh, "reward", config.dtype, config.quantize)
    return Scorer(graph, params, mesh), config.row_length or stored.max_length


class _RewardModel:
    """A frozen reward model with its tokenizer and its template."""

    def __init__(self, config: ConfigDict, mesh: Mesh):
        self._scorer, self._row_length = load_scorer(config, mesh, Path(config.model))
        self._read_at = config.read_at or store.load_reads(config.model).get("read_at", "separator_last")
        self.tokenizer, own = load_tokenizer(config.model), recorded_template(config.model) or get_template("e2h")
        self.template = get_template(config.template, config.model, self.tokenizer) if config.template else own
        check_tag(self.tokenizer, self.template)
        self._packing = {"tokens_per_batch": config.tokens_per_batch, "shards": axis_size(mesh, "batch"), "granularity": 1}

    def scores(
        self, questions: Sequence[str], texts: Sequence[str], template: Template
    ) -> Callable[[], list[list[float] | None]]:
        """Step probabilities of each solution, which is written in `template`; None for one that is longer than a row.

        The device begins now; calling the result waits for it.
        """
        target = as_read(self.template, template)
        rewritten = [rewrite(text, template, target) for text in texts]
        encoded = encode_solutions(self.tokenizer, questions, rewritten, target, add_eos=False)
        logits = self.logits(encoded)
        return lambda: [
            None if row is None else step_scores(solution, row, self._read_at)[: len(solution.steps)]
            for solution, row in zip(encoded, logits(), strict=True)
        ]

    def logits(self, encoded: Sequence[EncodedSolution]) -> Callable[[], list[np.ndarray | None]]:
        """Score logits float32 [n] at each solution's n tokens; otherwise as `scores`."""
        fitting = [index for index, solution in enumerate(encoded) if len(solution.tokens) <= self._row_length]
        batches = plan([encoded[index] for index in fitting], row_length=self._row_length, **self._packing)
        computed = [(batch, self._scorer.logits(batch)) for batch in batches]

        def wait() -> list[np.ndarray | None]:
            found: list[np.ndarray | None] = [None] * len(encoded)
            for batch, device_BxL in computed:
                logits_BxL = np.asarray(device_BxL)
                for member, (row, start) in zip(batch.indices, batch.places, strict=True):
                    index = fitting[member]
                    found[index] = logits_BxL[row, start : start + len(encoded[index].tokens)]
            return found

        return wait
