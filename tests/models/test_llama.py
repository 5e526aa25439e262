"""The network against an independent one in plain numpy, and its uses against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e2h_jax.models import attention, llama, quantize
from e2h_jax.models.heads import RewardModel
from e2h_jax.models.llama import Llama, LlamaConfig
from e2h_jax.models.projection import PRODUCTS, stacked_input_axes
from e2h_jax.training.losses import cross_entropy

GQA = LlamaConfig(vocab_size=40, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, norm_eps=1e-2)


def random_model(config, seed, kind=Llama):
    """Random parameters without compiling their initialisation; attention that is sharp, norm scales that are not 1."""
    graph, params = nnx.split(nnx.eval_shape(lambda: kind(config, nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        mean = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(rng.normal(mean, 0.3, x.shape), x.dtype)

    return graph, jax.tree_util.tree_map_with_path(draw, params)


@pytest.fixture(scope="module")
def policy():
    return random_model(GQA, 0)


@jax.jit(static_argnums=0)
def forward(graph, params, tokens, positions, segment_ids):
    model = nnx.merge(graph, params)
    hidden, kept = model(tokens, positions, attention.packed_causal(segment_ids))
    assert kept is None
    return model.logits(hidden)


def logits_of(policy, tokens, positions=None, segment_ids=None):
    """Logits of tokens [B, L], by a program of one shape for all tests: the rest is padding."""
    tokens = np.asarray(tokens)
    rows, length = tokens.shape
    if positions is None:
        positions = np.broadcast_to(np.arange(length), tokens.shape)
    if segment_ids is None:
        segment_ids = np.ones_like(tokens)
    arrays = [np.pad(x, ((0, 4 - rows), (0, 16 - length))).astype(np.int32) for x in (tokens, positions, segment_ids)]
    return np.asarray(forward(*policy, *arrays))[:rows, :length]


def reference(params, config, tokens, positions):
    """One sequence through a Llama in float64 numpy, written with loops over heads and positions."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(params))
    blocks, c = p["blocks"], config

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * scale

    def rope(x, position):  # [h]: pairs (i, i + h/2)
        half = c.head_dim // 2
        turned = np.empty_like(x)
        for i in range(half):
            angle = position / c.rope_base ** (2 * i / c.head_dim)
            turned[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
            turned[i + half] = x[i] * np.sin(angle) + x[i + half] * np.cos(angle)
        return turned

    x = p["embedding"][tokens]
    for n in range(c.layers):
        y = norm(x, blocks["attention_norm"][n])
        out = np.zeros_like(x)
        for head in range(c.heads):
            kv = head // (c.heads // c.kv_heads)
            q = [rope(row @ blocks["q"][n][:, head], t) for row, t in zip(y, positions, strict=True)]
            k = [rope(row @ blocks["k"][n][:, kv], t) for row, t in zip(y, positions, strict=True)]
            v = y @ blocks["v"][n][:, kv]
            for t in range(len(tokens)):
                scores = np.array([q[t] @ k[s] for s in range(t + 1)]) / np.sqrt(c.head_dim)
                weights = np.exp(scores - scores.max())
                out[t] += (weights / weights.sum()) @ v[: t + 1] @ blocks["o"][n][head]
        x = x + out
        y = norm(x, blocks["mlp_norm"][n])
        gate = y @ blocks["gate"][n]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ blocks["up"][n])) @ blocks["down"][n]
    return norm(x, p["norm"]) @ p["lm_head"]


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_agrees_with_plain_numpy(kv_heads):
    config = dataclasses.replace(GQA, kv_heads=kv_heads, rope_base=100.0)
    policy = random_model(config, 1)
    tokens = np.random.default_rng(0).integers(0, 40, (2, 12))
    positions = np.stack([np.arange(12), np.r_[:4, 30:38]])
    logits = logits_of(policy, tokens, positions)
    assert logits.dtype == np.float32
    for row in range(2):
        np.testing.assert_allclose(logits[row], reference(policy[1], config, tokens[row], positions[row]), atol=1e-4)


def test_a_packed_row_equals_separate_rows(policy):
    rng = np.random.default_rng(1)
    parts = [rng.integers(0, 40, n) for n in (5, 6, 1, 2)]
    tokens = np.concatenate([*parts, np.zeros(2, int)])[None]
    positions = np.concatenate([*[np.arange(len(part)) for part in parts], np.zeros(2, int)])[None]
    segments = np.concatenate([*[np.full(len(part), i + 1) for i, part in enumerate(parts)], np.zeros(2, int)])[None]
    packed = logits_of(policy, tokens, positions, segments)[0]
    start = 0
    for part in parts:
        alone = logits_of(policy, part[None])[0]
        np.testing.assert_allclose(packed[start : start + len(part)], alone, atol=1e-4)
        start += len(part)
    assert np.isfinite(packed).all()


def test_nothing_flows_back_in_time(policy):
    tokens = np.random.default_rng(2).integers(0, 40, (1, 10))
    changed = tokens.copy()
    changed[0, 6:] = (changed[0, 6:] + 1) % 40
    before, after = logits_of(policy, tokens), logits_of(policy, changed)
    np.testing.assert_array_equal(before[0, :6], after[0, :6])
    assert (np.abs(before[0, 6:] - after[0, 6:]).max(-1) > 1e-3).all()


def test_only_differences_of_positions_matter(policy):
    tokens = np.random.default_rng(3).integers(0, 40, (1, 8))
    np.testing.assert_allclose(
        logits_of(policy, tokens, np.arange(8)[None]), logits_of(policy, tokens, np.arange(100, 108)[None]), atol=1e-3
    )
    gap = logits_of(policy, tokens, np.r_[:4, 20:24][None])
    np.testing.assert_array_equal(gap[0, :4], logits_of(policy, tokens)[0, :4])
    assert np.abs(gap[0, 4:] - logits_of(policy, tokens)[0, 4:]).max() > 0.05


def loss_and_gradient(config, params, tokens, positions, segment_ids, weights):
    graph, _ = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))

    @jax.jit
    def run(params):
        def loss(params):
            model = nnx.merge(graph, params)
            hidden, _ = model(tokens, positions, attention.packed_causal(segment_ids))
            return cross_entropy(hidden, model.output_matrix(), jnp.roll(tokens, -1, 1), weights)[0]

        return jax.value_and_grad(loss)(params)

    return run(params)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(6)
    tokens = jnp.asarray(rng.integers(0, 40, (2, 10)))
    positions = jnp.broadcast_to(jnp.arange(10), (2, 10))
    return tokens, positions, jnp.ones((2, 10), int), jnp.ones((2, 10)) / 20


@pytest.fixture(scope="module")
def plain(policy, batch):
    return loss_and_gradient(GQA, policy[1], *batch)


@pytest.mark.parametrize("changes", [{"unroll": 9}, {"remat": "full"}, {"remat": "dots", "unroll": 2}])
def test_unrolling_and_rematerialisation_change_nothing(policy, batch, plain, changes):
    loss, grads = plain
    other_loss, other_grads = loss_and_gradient(dataclasses.replace(GQA, **changes), policy[1], *batch)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, other_grads)
    assert all(np.abs(grad).max() > 0 for grad in jax.tree.leaves(grads))


def test_the_gradient_of_a_tied_embedding_is_that_of_embedding_and_head(batch):
    _, untied = random_model(GQA, 0)
    params = nnx.to_pure_dict(untied)
    params["lm_head"] = params["embedding"].T
    nnx.replace_by_pure_dict(untied, params)
    loss, grads = loss_and_gradient(GQA, untied, *batch)
    config = dataclasses.replace(GQA, tie_embeddings=True)
    _, tied = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))
    del params["lm_head"]
    nnx.replace_by_pure_dict(tied, params)
    tied_loss, tied_grads = loss_and_gradient(config, tied, *batch)
    np.testing.assert_allclose(tied_loss, loss, rtol=1e-6)
    both = grads["embedding"][...] + grads["lm_head"][...].T
    np.testing.assert_allclose(tied_grads["embedding"][...], both, atol=1e-6)


def test_every_feature_at_once_trains_under_rematerialisation(batch):
    """Biases, query and key norms, a window from the second layer on: all have gradients, the same with and without remat."""
    features = dict(qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True, window=4, window_from=1)
    config = dataclasses.replace(GQA, **features)
    _, params = random_model(config, 7)
    loss, grads = loss_and_gradient(config, params, *batch)
    assert all(np.abs(grad).max() > 0 for grad in jax.tree.leaves(grads))
    other_loss, other_grads = loss_and_gradient(dataclasses.replace(config, remat="full"), params, *batch)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, other_grads)


def test_padding_is_finite_and_teaches_nothing(policy, batch, plain):
    tokens, positions, segments, weights = batch
    loss, grads = plain
    # A padding tail of other tokens in each row, and a row of nothing but padding.
    wide = jnp.pad(tokens, ((0, 1), (0, 6)), constant_values=11)
    arguments = [jnp.pad(x, ((0, 1), (0, 6))) for x in (positions, segments, weights)]
    # The last real token's target is the next one in the row, so give it what it has in the narrow batch.
    wide = wide.at[:2, 10].set(tokens[:, 0])
    padded_loss, padded_grads = loss_and_gradient(GQA, policy[1], wide, *arguments)
    np.testing.assert_allclose(loss, padded_loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, padded_grads)
    assert np.isfinite(logits_of(policy, wide, *arguments[:2])).all()


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_where_it_matters(policy, batch):
    tokens, positions, segments, weights = batch
    config = dataclasses.replace(GQA, dtype="bfloat16")
    graph, _ = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))

    @jax.jit
    def run(params):
        model = nnx.merge(graph, params)
        hidden, _ = model(tokens, positions, attention.packed_causal(segments))
        return hidden, model.logits(hidden)

    hidden, logits = run(policy[1])
    assert hidden.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    exact = logits_of(policy, tokens)
    assert 1e-4 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_the_step_classifiers_score_is_linear_in_the_hidden_state(batch):
    tokens, positions, segments, _ = batch
    graph, params = random_model(GQA, 2, RewardModel)
    params["score_head"][...] = jnp.zeros(32)
    params["score_bias"][...] = jnp.zeros(())

    @jax.jit
    def run(params):
        return nnx.merge(graph, params)(tokens, positions, attention.packed_causal(segments))

    logits, hidden = run(params)
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32
    assert (logits == 0).all()
    params["score_head"][...] = jnp.arange(32.0) / 32
    params["score_bias"][...] = jnp.float32(-0.5)
    logits, hidden = run(params)
    np.testing.assert_allclose(logits, np.asarray(hidden) @ (np.arange(32) / 32) - 0.5, atol=1e-5)


def test_the_embedding_gradient_of_a_frequent_token_is_summed_in_float32():
    """In bfloat16 a sum over thousands of occurrences stops growing; the same network in float32 tells."""
    tokens = np.where(np.arange(4096) % 2, 3, np.arange(4096) % 7).reshape(16, 256)
    positions = np.broadcast_to(np.arange(256), tokens.shape)
    gradients = {}
    for dtype in ("float32", "bfloat16"):
        config = LlamaConfig(8, 16, 1, 2, 2, 8, 32, dtype=dtype)
        graph, params = nnx.split(Llama(config, nnx.Rngs(0)))

        def loss(params, graph=graph):
            hidden, _ = nnx.merge(graph, params)(tokens, positions, attention.packed_causal(jnp.ones(tokens.shape, int)))
            return (hidden.astype(jnp.float32) * jnp.arange(16)).sum()

        gradients[dtype] = jax.jit(jax.grad(loss))(params)["embedding"][...][3]
    error = jnp.linalg.norm(gradients["bfloat16"] - gradients["float32"]) / jnp.linalg.norm(gradients["float32"])
    assert error < 0.05


@pytest.mark.parametrize("quantized", [False, True])
def test_weights_turned_for_tpu_give_the_same(monkeypatch, quantized):
    """Decoding's weights [K x h, D] and [F, D], their biases and scales, run here; once also with F = D."""
    config = dataclasses.replace(GQA, qkv_bias=True, mlp_bias=True, mlp_width=GQA.width if quantized else GQA.mlp_width)
    graph, params = random_model(config, 3)
    if quantized:
        model = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0)))
        quantize.describe(model)
        graph, _ = nnx.split(model)
        for (*path, name), param in nnx.to_flat_state(params):
            if name in PRODUCTS:
                group = params["blocks"] if path else params
                weight, scale = quantize.quantize(param[...], stacked_input_axes(name, param))
                group[name], group[f"{name}_scale"] = param.replace(weight), nnx.Param(scale)
    tokens, found = np.arange(12).reshape(2, 6), []
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(llama, "platform", lambda platform=platform: platform)
        rest, layers = llama.unstack(params, "float32")
        assert layers[0]["k"][...].shape == ((32, 2, 8) if platform == "cpu" else (16, 32))
        model = nnx.merge(graph, nnx.State(dict(rest) | {"blocks": layers[0]}))
        attend = attention.prefill(jnp.array([6, 4]))
        found.append(np.asarray(model(tokens, np.tile(np.arange(6), (2, 1)), attend, [None] * 2, layers)[0]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
