"""A tiny policy with random weights: about one in forty tokens is EOS, so solutions stop at all lengths."""

import re
from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e2h_jax.models import store
from e2h_jax.models.attention import packed_causal
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.sampling.choose import Settings
from e2h_jax.sampling.kernel import Kernel
from e2h_jax.sampling.scheduler import Drawn, Request, draw

EOS, VOCABULARY, BUCKET = 2, 36, 16
SHAPES = {
    "grouped": dict(heads=4, kv_heads=2, head_dim=8),
    "one_kv_head": dict(heads=4, kv_heads=1, head_dim=8),
    "ungrouped": dict(heads=2, kv_heads=2, head_dim=16),
}


def mesh_of(*shape: int) -> jax.sharding.Mesh:
    return make_mesh(shape, jax.devices()[: int(np.prod(shape))])


class Policy:
    """A model, its kernels (each compiled once), and its log-probabilities by full forward passes."""

    def __init__(self, shape: str = "grouped", mesh: tuple[int, int, int] = (1, 1, 1), **fields):
        self.mesh = mesh_of(*mesh)
        fields = dict(width=32, layers=2, mlp_width=48, max_length=256) | SHAPES[shape] | fields
        self.config = LlamaConfig(VOCABULARY, **fields)
        self.graph, self.params = store.create("policy", self.config, self.mesh, seed=3)
        self._kernels: dict[tuple, Kernel] = {}
        self._forward = jax.jit(self._logits)

    def _logits(self, params, tokens_BxL, lengths_B):
        positions = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
        model = nnx.merge(self.graph, params)
        hidden, _ = model(tokens_BxL, positions, packed_causal((positions < lengths_B[:, None]).astype(jnp.int32)))
        return model.logits(hidden)

    def logits(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Next-token logits [length, V] after every token of each row, from one full forward pass without any cache."""
        padded = np.zeros((-(-len(rows) // 8) * 8, 80), np.int32)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        lengths = np.array([len(row) for row in rows] + [1] * (len(padded) - len(rows)))
        logits = np.asarray(self._forward(self.params, padded, lengths))
        return [logits[index, : len(row)] for index, row in enumerate(rows)]

    def kernel(self, groups: int, rows: int, *, seed: int = 1, **settings) -> Kernel:
        settings = {"max_new_tokens": 24, "end_ids": (EOS,)} | settings
        key = (groups, rows, seed, *settings.items())
        if key not in self._kernels:
            self._kernels[key] = Kernel(
                self.graph,
                self.config,
                self.params,
                self.mesh,
                groups=groups,
                rows=rows,
                seed=seed,
                settings=Settings(**settings),
                prompt_bucket=BUCKET,
            )
        return self._kernels[key]

    def draw(self, requests: Sequence[Request], groups: int, rows: int, stop=None, **settings) -> dict[tuple[str, int], Drawn]:
        """Draws everything that is requested; nothing comes twice."""
        kernel = self.kernel(groups, rows, **settings)
        kernel.foresee(len(request.tokens) for request in requests)
        drawn = [d for round_ in draw(kernel, requests, stop) for d in round_.drawn]
        found = {(d.problem_id, d.sample): d for d in drawn}
        assert len(found) == len(drawn)
        return found


def prompts_of(lengths: Iterable[int], samples: Sequence[int] = range(8)) -> list[Request]:
    rng = np.random.default_rng(5)
    return [
        Request(f"problem/{i}", rng.integers(4, VOCABULARY, length).astype(np.int32), samples)
        for i, length in enumerate(lengths)
    ]


def bits(drawn: dict[tuple[str, int], Drawn]) -> dict[tuple[str, int], tuple]:
    """What must be identical: tokens, whether they ended, and every bit of the log-probabilities."""
    return {
        key: (d.tokens.tolist(), d.stopped, d.logprobs.tobytes(), d.sampling_logprobs.tobytes()) for key, d in drawn.items()
    }


def sorts(compiled: str, vocabulary: int) -> list[str]:
    """The instructions of a compiled program that sort along a dimension of the vocabulary's size or more."""
    found = re.finditer(r"= \(?\w+\[([\d,]+)\].* sort\(.*dimensions=\{(\d+)\}", compiled)
    return [match[0] for match in found if int(match[1].split(",")[int(match[2])]) >= vocabulary]


@pytest.fixture(scope="session")
def policy() -> Policy:
    return Policy()


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    return SimpleNamespace(policy=Policy, prompts_of=prompts_of, bits=bits, bucket=BUCKET, eos=EOS, sorts=sorts)
