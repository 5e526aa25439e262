"""Rollouts for reinforcement learning: the sampler of `e2h sample`, whose programs stay while its weights change."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from e2h_jax.data.rollout import Rollout
from e2h_jax.data.templates import Template
from e2h_jax.data.tokenizer import decode_solution, end_ids
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.compilation import clock
from e2h_jax.sampling.prompts import fitting, prompts_of
from e2h_jax.sampling.sample import make_kernel, stop_texts
from e2h_jax.sampling.scheduler import Request, draw


class Sampler:
    """Draws solutions of a fixed set of problems with the weights it was last given; each program compiles once.

    A rollout is a function of (weights, config.seed, problem id, sample index): give every step other sample indices.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        graph: nnx.GraphDef,
        model_config: LlamaConfig,
        params: nnx.State,
        mesh: Mesh,
        tokenizer: Any,
        template: Template,
        problems: Sequence[Mapping],
        together: int,
    ):
        """`config`: fields of the `sample` stage, `model` to `limit` left aside. Raises UserError where they do not fit.

        `together`: of these problems are drawn at a time.
        """
        self.tokenizer, self.template, self._stop = tokenizer, template, stop_texts(tokenizer, template)
        prompts = prompts_of(tokenizer, problems, template)
        fitting(problems, prompts, model_config.max_length, config.max_new_tokens, "error")
        self.prompts = {problem["id"]: prompt for problem, prompt in zip(problems, prompts, strict=True)}
        lengths = [len(prompt) for prompt in self.prompts.values()]
        self._ends = end_ids(tokenizer, template)
        longest = max(lengths, default=0)
        self.kernel = make_kernel(config, graph, model_config, params, mesh, self._ends, longest, prompts=together)
        self.kernel.foresee(lengths)

    def draw(
        self, problems: Sequence[Mapping], samples: Sequence[int], interrupted: Callable[[], Any] = lambda: None
    ) -> tuple[list[Rollout], dict[str, float]] | None:
        """The samples with these indices of each problem (no problem twice), in that order, and the drawing's rates.

        On several hosts every process gets all of them. None as soon as `interrupted`, asked between dispatches, says so.
        """
        began, computed, found = clock(), 0, {}
        requests = [Request(problem["id"], self.prompts[problem["id"]], list(samples)) for problem in problems]
        for round_ in draw(self.kernel, requests, self._stop):
            computed += round_.steps * self.kernel.groups * self.kernel.rows
            found |= {(drawn.problem_id, drawn.sample): drawn for drawn in round_.drawn}
            if interrupted():
                return None
        rollouts = []
        for problem in problems:
            for sample in samples:
                drawn = found[problem["id"], sample]
                rollouts.append(
                    Rollout(
                        problem=problem,
                        sample=sample,
                        prompt=self.prompts[problem["id"]],
                        tokens=drawn.tokens,
                        logprobs=drawn.logprobs,
                        sampling_logprobs=drawn.sampling_logprobs,
                        stopped=drawn.stopped,
                        text=decode_solution(self.tokenizer, drawn.tokens, self.template, self._ends),
                    )
                )
        kept, seconds = sum(len(rollout.tokens) for rollout in rollouts), clock() - began
        return rollouts, {
            "length": kept / len(rollouts),
            "stopped": float(np.mean([rollout.stopped for rollout in rollouts])),
            "rollout_tokens_per_second": kept / seconds,
            "useful_tokens": kept / max(1, computed),
        }
