"""Every family and feature against transformers and torch: imported, the same logits and the same greedy tokens."""

import dataclasses

import hub_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e2h_jax.models import store
from e2h_jax.models.attention import packed_causal
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.sampling.choose import Settings
from e2h_jax.sampling.kernel import Kernel
from e2h_jax.sampling.scheduler import Request, draw

BOUND = 1e-4  # of the difference of two logits; the logits reach 6 to 8
ONE = (1, 1, 1)


def load(folder, shape):
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(shape))])
    return mesh, *store.load(folder, mesh, "policy")


def forward(mesh, graph, params, tokens_BxL):
    @jax.jit
    def logits(params, tokens):
        model = nnx.merge(graph, params)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return model.logits(model(tokens, positions, packed_causal(jnp.ones_like(tokens)))[0])

    with jax.set_mesh(mesh):
        return np.asarray(logits(params, tokens_BxL))


@pytest.mark.parametrize("name", hub_models.MODELS)
def test_logits_of_a_prompt(name, imported, expected):
    mesh, graph, _, params = load(imported(name), ONE)
    logits = forward(mesh, graph, params, hub_models.prompt(name)[None])[0]
    assert np.abs(logits - expected[f"{name}/logits"]).max() < BOUND


def greedy(name, shape, imported, expected):
    """Prefill and greedy decoding of the model's prompt beside three shorter ones, as `e2h sample` would."""
    mesh, graph, config, params = load(imported(name), shape)
    settings = Settings(hub_models.NEW, (config.vocab_size,), temperature=0.0)
    kernel = Kernel(graph, config, params, mesh, groups=8, rows=1, seed=0, settings=settings, prompt_bucket=208)
    kernel.foresee([208])
    prompt = hub_models.prompt(name)
    requests = [Request(str(length), prompt[:length], [0]) for length in (200, 7, 120, 1)]
    drawn = {sample.problem_id: sample.tokens for round_ in draw(kernel, requests) for sample in round_.drawn}
    np.testing.assert_array_equal(drawn["200"], expected[f"{name}/greedy"])


@pytest.mark.parametrize("name", hub_models.MODELS)
def test_greedy_decoding(name, imported, expected):
    greedy(name, ONE, imported, expected)


@pytest.mark.parametrize("name", ["llama_dynamic_grows", "llama_one_kv_head", "qwen2_window", "qwen3"])
def test_greedy_decoding_on_eight_devices(name, imported, expected):
    # One key/value head cannot be cut in two.
    greedy(name, (4, 2, 1) if name == "llama_one_kv_head" else (2, 2, 2), imported, expected)


@pytest.mark.parametrize(("window", "rows"), [(200, 200), (150, 150)])
def test_a_window_matters_for_tokens_beyond_it_only(window, rows, imported):
    mesh, _, config, params = load(imported("mistral_window"), ONE)
    assert config.window == 50
    tokens = hub_models.prompt("mistral_window")[None]
    through, everything = (
        forward(mesh, store.abstract("policy", dataclasses.replace(config, window=size))[0], params, tokens)[0]
        for size in (window, 0)
    )
    np.testing.assert_allclose(through[:rows], everything[:rows], atol=1e-5)
    assert (np.abs(through[rows:] - everything[rows:]).max(-1) > 1e-3).all()
