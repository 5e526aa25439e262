"""LoRA's arithmetic: merged = base + adapter, off = base, no gradient of frozen weights; the files for `peft`."""

import json

import hub_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from safetensors.numpy import load_file, save_file

from e2h_jax.models import lora, store
from e2h_jax.models.attention import packed_causal
from e2h_jax.models.projection import project
from e2h_jax.parallel.mesh import make_mesh

NAME = "qwen2"  # grouped heads, biases
RANK, ALPHA = 3, 12.0
TOKENS = hub_models.prompt(NAME)[None]


def one_device():
    return make_mesh((1, 1, 1), jax.devices()[:1])


def forward(graph, params):
    """Logits of a policy, scores of a reward model."""
    model, positions = nnx.merge(graph, params), jnp.arange(TOKENS.shape[1])[None]
    out, hidden = model(TOKENS, positions, packed_causal(jnp.ones_like(TOKENS)))
    return out if isinstance(model, store.RewardModel) else model.logits(out)


# Compared to the last bits: compiled as outside of the tests (conftest.py has other flags).
AS_USED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


def output(graph, params):
    return np.asarray(jax.jit(forward, static_argnums=0, compiler_options=AS_USED)(graph, params))


def rounding(config):
    """How far float32's rounding may take two computations of the same logits apart, relative to the largest logit.

    Two orders of summation of n products differ by n rounding errors at most, in units of the sum of their sizes; and the sums
    on the way from a token to its logits follow each other.
    """
    attention = config.width + config.head_dim + TOKENS.shape[1] + config.heads * config.head_dim  # q and k, scores, values, o
    sums = config.layers * (attention + config.width + config.mlp_width) + config.width
    return np.finfo(np.float32).eps * sums


def adapted(folder, mesh, kind="policy", targets=lora.TARGETS, **loading):
    """A loaded model with an adapter that does something; and the model before."""
    graph, config, base = store.load(folder, mesh, kind, **loading)
    with_factors, params = lora.add(graph, base, mesh, targets, RANK, ALPHA, seed=3)
    rng = np.random.default_rng(4)
    trained, frozen = lora.split(params)

    def learn(param):
        change = rng.normal(0, 0.05, param.shape).astype(np.float32)
        return param.replace(jax.device_put(param[...] + change, param[...].sharding))

    trained = jax.tree.map(learn, trained, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    return (graph, base), (with_factors, trained, frozen)


def test_the_product_by_hand():
    module, rng = nnx.Module(), np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
    weights = {"o": (4, 3, 6), "o_lora_a": (4, 3, 2), "o_lora_b": (2, 6)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in weights.items()}
    for name, value in weights.items():
        setattr(module, name, nnx.Param(jnp.asarray(value)))
    module.lora_scale = 2.5
    w, a, b = (weights[name].reshape(-1, weights[name].shape[-1]) for name in weights)
    expected = x.reshape(2, 5, 12) @ (w + 2.5 * a @ b)
    np.testing.assert_allclose(project(module, "o", jnp.asarray(x)), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_merged_is_base_plus_adapter_and_off_is_the_base_to_the_bit(imported, shape):
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(shape))])
    (graph, base), (with_factors, trained, frozen) = adapted(imported(NAME), mesh)
    with jax.set_mesh(mesh):
        plain = output(graph, base)
        found = output(with_factors, nnx.merge_state(frozen, trained))
        assert np.abs(found - plain).max() > 0.5
        merged = jax.jit(lora.merge, static_argnums=2)(base, trained, ALPHA / RANK)
        bound = rounding(store.load_config(imported(NAME))[1]) * np.abs(found).max()
        np.testing.assert_allclose(output(graph, merged), found, rtol=0, atol=bound)
        off = lora.remove(with_factors, nnx.merge_state(frozen, trained))
        assert off[0] == graph  # the very same program
        np.testing.assert_array_equal(output(*off), plain)
    same = jax.tree.map(lambda a, b: a is b, off[1], base)
    assert all(jax.tree.leaves(same))  # one copy of the weights
    if shape == (2, 2, 2):
        spec = lambda name: trained["blocks"][name][...].sharding.spec  # noqa: E731
        assert spec("q_lora_a") == jax.P(None, "fsdp", None) and spec("q_lora_b") == jax.P(None, None, "tensor", None)
        assert spec("o_lora_a") == jax.P(None, "tensor", None, None) and spec("o_lora_b") == jax.P(None, None, "fsdp")


def test_a_fresh_adapter_changes_nothing(imported):
    mesh = one_device()
    graph, _, base = store.load(imported(NAME), mesh, "policy")
    fresh = lora.add(graph, base, mesh, ("q", "down"), RANK, ALPHA, seed=3)
    np.testing.assert_array_equal(output(*fresh), output(graph, base))
    trained, _ = lora.split(fresh[1])
    assert set(trained["blocks"]) == {f"{name}_lora_{part}" for name in ("q", "down") for part in "ab"}
    assert 0.9 < float(jnp.abs(trained["blocks"]["q_lora_a"][...]).max()) * 32**0.5 <= 1


def arrays_of(jaxpr):
    """Shapes and dtypes of everything that a program makes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from ((var.aval.shape, var.aval.dtype) for var in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from arrays_of(inner)


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_no_gradient_of_a_frozen_weight_exists(imported, kind):
    _, (graph, trained, frozen) = adapted(imported(NAME), one_device(), kind, quantize="int8")
    assert set(trained) == ({"blocks"} if kind == "policy" else {"trunk", "score_head", "score_bias"})

    def loss(trained, frozen):
        return (forward(graph, nnx.merge_state(frozen, trained)) ** 2).sum()

    gradients = jax.make_jaxpr(jax.grad(loss))(trained, frozen)
    stacks = {leaf.shape for leaf in jax.tree.leaves(frozen) if leaf.dtype == jnp.int8 and leaf.ndim > 2}
    assert len(stacks) == 5  # q, k and v, o, gate and up, down; of all layers
    made = list(arrays_of(gradients.jaxpr))
    assert len(made) > 100
    assert not [shape for shape, dtype in made if shape in stacks]
    graph, _, base = store.load(imported(NAME), one_device(), kind)
    everything = jax.make_jaxpr(jax.grad(lambda params: (forward(graph, params) ** 2).sum()))(base)
    assert [shape for shape, _ in arrays_of(everything.jaxpr) if shape in stacks]  # it would be found


@pytest.fixture(scope="module")
def exported(imported, run_convert, tmp_path_factory):
    """The base in the Hub's form, an adapter for `peft` beside it, and our logits with the adapter on."""
    folder = tmp_path_factory.mktemp("peft")
    run_convert(imported(NAME), folder, to="huggingface")
    mesh = one_device()
    _, (graph, trained, frozen) = adapted(imported(NAME), mesh)
    with jax.set_mesh(mesh):
        lora.write_peft(folder / "adapter", trained, ALPHA, "base")
    return folder, output(graph, nnx.merge_state(frozen, trained))[0]


def test_the_adapter_file_merged_with_numpy(exported, run_convert):
    """W + alpha / r · B A of every tensor pair, as `peft` defines it, is a model that gives our logits."""
    folder, expected = exported
    factors = load_file(folder / "adapter" / "adapter_model.safetensors")
    text = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (text["r"], text["lora_alpha"], text["task_type"]) == (RANK, ALPHA, "CAUSAL_LM")
    assert text["target_modules"] == [f"{name}_proj" for name in lora.TARGETS]
    model = load_file(folder / "huggingface" / "model.safetensors")
    assert len(factors) == 2 * 7 * 3
    for name, a in factors.items():
        if name.endswith(".lora_A.weight"):
            weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
            b = factors[name.replace("lora_A", "lora_B")]
            model[weight] = model[weight] + text["lora_alpha"] / text["r"] * b @ a
    save_file(model, folder / "huggingface" / "model.safetensors", {"format": "pt"})
    run_convert(folder / "huggingface", folder)
    graph, config, params = store.load(folder / "model", one_device(), "policy")
    np.testing.assert_allclose(output(graph, params)[0], expected, rtol=0, atol=rounding(config) * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for what it has renamed
def test_peft_loads_the_adapter_with_the_same_logits(imported, run_convert, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    mesh, ids = one_device(), torch.from_numpy(TOKENS.astype(np.int64))
    for kind, auto, options in (
        ("policy", AutoModelForCausalLM, {}),
        ("reward", AutoModelForTokenClassification, {"num_labels": 1}),
    ):
        _, (graph, trained, frozen) = adapted(imported(NAME), mesh, kind)
        run_convert(imported(NAME), tmp_path / kind, to="huggingface")
        with jax.set_mesh(mesh):
            lora.write_peft(tmp_path / kind / "adapter", trained, ALPHA, str(tmp_path / kind / "huggingface"))
        base = auto.from_pretrained(tmp_path / kind / "huggingface", **options)
        model = peft.PeftModel.from_pretrained(base, tmp_path / kind / "adapter").eval()
        with torch.no_grad():
            theirs = model(ids).logits[0].numpy()
        ours = output(graph, nnx.merge_state(frozen, trained))[0].reshape(theirs.shape)
        print(kind, "largest difference to peft", np.abs(theirs - ours).max(), "of", np.abs(ours).max())
        assert np.abs(ours).std() > 0.1
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
