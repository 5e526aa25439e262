"""A tiny reward model with random weights and a random score head, and solutions of every shape to judge."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e2h_jax.data import arithmetic
from e2h_jax.data.steps import EncodedSolution, read_positions
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import build_tokenizer, train_bpe
from e2h_jax.models import store
from e2h_jax.models.attention import packed_causal
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.rewards.scoring import Scorer

E2H = get_template("e2h")


@dataclass
class Judge:
    """A reward model and its tokenizer."""

    tokenizer: Any
    config: LlamaConfig
    graph: nnx.GraphDef
    params: nnx.State
    mesh: jax.sharding.Mesh

    @functools.cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.graph, self.params, self.mesh)

    def plain_scores(self, solution: EncodedSolution, where: str = "separator_last") -> list[float]:
        """Step scores from a forward pass of this solution alone."""
        tokens = np.zeros((1, 300), np.int32)  # one shape, compiled once
        tokens[0, : len(solution.tokens)] = solution.tokens
        logits = np.asarray(_plain(self.graph, self.params, tokens, len(solution.tokens)))
        lowest = [min(float(logits[i]) for i in positions) for positions in read_positions(solution, where)]
        return [1 / (1 + np.exp(-x)) for x in lowest] + ([] if solution.has_answer else [0.0])


@functools.partial(jax.jit, static_argnums=0)
def _plain(graph, params, tokens_1xL, length):
    positions = jnp.arange(tokens_1xL.shape[1])[None]
    return nnx.merge(graph, params)(tokens_1xL, positions, packed_causal((positions < length).astype(jnp.int32)))[0][0]


def make_judge(tokenizer: Any, shape: tuple[int, int, int] = (1, 1, 1)) -> Judge:
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(shape))])
    config = LlamaConfig(len(tokenizer), width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_length=400)
    graph, params = store.create("reward", config, mesh, seed=4)
    head = jax.device_put(np.random.default_rng(0).normal(0, 0.4, config.width).astype(np.float32))
    params["score_head"] = params["score_head"].replace(jax.device_put(head, params["score_head"].get_value().sharding))
    return Judge(tokenizer, config, graph, params, mesh)


def solutions() -> list[tuple[dict, str]]:
    """(problem, text): right and wrong solutions of all levels, and texts that no one asked for."""
    found = []
    for level in arithmetic.OPERATIONS:
        for index, problem in enumerate(arithmetic.problems(0, "test", level, 8)):
            steps, answer = arithmetic.solve(problem["question"])
            if index % 2:
                steps[index % len(steps)] = steps[0]
            found.append((problem, E2H.format_solution(steps, answer if index % 4 else None)))
    problem = found[0][0]
    odd = ["", "\n\n", "# Answer", "# Answer\n\n", "# Answer\n\n3", "a=1+1=2", "a=1+1=2\n\n"]
    odd.append("a=1+1=2\n\n\n\n\nb=2\n\n# Answer\n\n3\n\nand")
    return found + [(problem, text) for text in [*odd, "Zürich ≤ 7\n\n</s>\n\n# Answer\n\n½"]]


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`words`, the curriculum's own, and `bpe`, another model's."""
    folder = tmp_path_factory.mktemp("tokenizers")
    texts = [E2H.format_prompt(problem["question"]) + text for problem, text in solutions()]
    return {"words": build_tokenizer(arithmetic.PIECES, folder / "words"), "bpe": train_bpe(texts, 340, folder / "bpe")}


@pytest.fixture(scope="session")
def judge(tokenizers: dict[str, Any]) -> Judge:
    return make_judge(tokenizers["words"])


@pytest.fixture(scope="session")
def judge_of() -> Any:
    return make_judge


@pytest.fixture(scope="session")
def texts() -> list[tuple[dict, str]]:
    return solutions()


@pytest.fixture(scope="session")
def llama2_like(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer whose every newline is a token, as Llama 2's."""
    pieces = [piece for piece in arithmetic.PIECES if "\n" not in piece]
    letters = [letter for letter in "\nabcdefghijklmnopqrstuvwxyz# QSA" if letter not in pieces]
    return build_tokenizer([*pieces, *letters], tmp_path_factory.mktemp("llama2_like"))
