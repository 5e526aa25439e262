"""Models on disk: the same bits back, on any mesh, as the kind that is needed."""

import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from e2h_jax.data.tokenizer import build_tokenizer, load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig, _param
from e2h_jax.models.presets import PRESETS, get_preset
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.rules import state_shardings

SHAPE = LlamaConfig(vocab_size=8, width=16, layers=2, heads=4, kv_heads=4, head_dim=4, mlp_width=32, unroll=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(("a", "b", "c", "d"), tmp_path_factory.mktemp("tokenizer"))


def random_params(kind, config, mesh, seed=0):
    """What training might have left, laid out on the mesh."""
    abstract = nnx.split(nnx.eval_shape(lambda: store.KINDS[kind](config, nnx.Rngs(0))))[1]
    rng = np.random.default_rng(seed)
    values = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract)
    return jax.device_put(values, state_shardings(mesh, abstract))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """A policy and a reward model saved from a (2, 2, 2) mesh: folder and parameters of each."""
    models = {}
    for kind in ("policy", "reward"):
        folder = tmp_path_factory.mktemp(kind) / "model"
        params = random_params(kind, SHAPE, make_mesh((2, 2, 2)))
        store.save(folder, kind, SHAPE, params, tokenizer)
        models[kind] = folder, params
    return models


def same_bits(a, b):
    a, b = nnx.to_pure_dict(a), nnx.to_pure_dict(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize("kind", ["policy", "reward"])
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 4), (8, 1, 1), "one device"])
def test_round_trip_onto_any_mesh(saved, kind, shape):
    folder, params = saved[kind]
    mesh = make_mesh((1, 1, 1), jax.devices()[:1]) if shape == "one device" else make_mesh(shape)
    graph, config, loaded = store.load(folder, mesh, kind)
    assert config == SHAPE
    same_bits(loaded, params)
    trunk = loaded if kind == "policy" else loaded["trunk"]
    q = trunk["blocks"]["q"][...]
    assert q.sharding.spec == P(None, "fsdp", "tensor", None)
    assert q.sharding.mesh == mesh
    assert q.addressable_shards[0].data.shape == (2, 16 // mesh.shape["fsdp"], 4 // mesh.shape["tensor"], 4)
    assert isinstance(nnx.merge(graph, loaded), store.KINDS[kind])


def test_creation_is_the_same_on_any_mesh_and_depends_on_the_seed(monkeypatch):
    class Matrix(nnx.Module):  # one parameter, made as all of the network's are; its initialisation compiles quickly
        def __init__(self, config, rngs):
            self.lm_head = _param(rngs, (config.width, config.vocab_size), ("embed", "vocab"), 1.0)

    monkeypatch.setitem(store.KINDS, "policy", Matrix)
    _, params = store.create("policy", SHAPE, make_mesh((2, 2, 2)), seed=4)
    assert params["lm_head"][...].sharding.spec == P("fsdp", "tensor")
    same_bits(params, store.create("policy", SHAPE, make_mesh((1, 1, 1), jax.devices()[:1]), seed=4)[1])
    _, other = store.create("policy", SHAPE, make_mesh((2, 2, 2)), seed=5)
    assert (np.asarray(other["lm_head"][...]) != np.asarray(params["lm_head"][...])).mean() > 0.9


def test_no_device_ever_holds_a_whole_matrix_of_a_fresh_model(monkeypatch):
    """Of the initialisation's compiled program, no buffer is larger than the largest shard."""
    shape = dataclasses.replace(SHAPE, layers=1, width=32, mlp_width=512, vocab_size=512)
    mesh, programs, jit = make_mesh((2, 2, 2)), [], jax.jit

    def keeping(*arguments, **options):
        return lambda: programs.append(jit(*arguments, **options).lower().compile()) or programs[-1]()

    monkeypatch.setattr(store.jax, "jit", keeping)
    _, params = store.create("policy", shape, mesh, seed=0)
    largest = max(leaf.size for leaf in jax.tree.leaves(params)) // 4
    (program,) = programs
    sizes = [math.prod(map(int, found.split(","))) for found in re.findall(r"[fus]32\[([\d,]+)\]", program.as_text())]
    assert largest in sizes and max(sizes) == largest
    assert program.memory_analysis().output_size_in_bytes < 4 * sum(leaf.size for leaf in jax.tree.leaves(params)) / 3.9


def test_a_policy_becomes_an_evaluator_with_the_same_trunk_and_a_zero_head(saved):
    folder, params = saved["policy"]
    graph, config, loaded = store.load(folder, make_mesh((1, 2, 4)), "reward")
    same_bits(loaded["trunk"], params)
    assert (np.asarray(loaded["score_head"][...]) == 0).all() and loaded["score_head"][...].shape == (16,)
    assert float(loaded["score_bias"][...]) == 0
    assert loaded["trunk"]["blocks"]["down"][...].sharding.spec == P(None, "tensor", "fsdp")
    assert isinstance(nnx.merge(graph, loaded), store.RewardModel)


def test_an_evaluator_is_no_policy(saved):
    with pytest.raises(UserError, match="holds a reward model where a policy is needed"):
        store.load(saved["reward"][0], make_mesh((1, 8, 1)), "policy")


def test_changes_of_the_config_that_leave_the_parameters(saved):
    folder, params = saved["policy"]
    graph, config, loaded = store.load(folder, make_mesh((1, 8, 1)), "policy", dtype="bfloat16", remat="full", unroll=1)
    assert config == dataclasses.replace(SHAPE, dtype="bfloat16", remat="full", unroll=1)
    assert nnx.merge(graph, loaded).config == config
    same_bits(loaded, params)


def test_no_model_no_load(tmp_path, saved):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"holds no model \(no model\.json\)"):
            store.load(folder, make_mesh((1, 8, 1)), "policy")


def test_a_mesh_that_does_not_fit_the_model(saved):
    with pytest.raises(UserError, match="its tensor axis of 8 does not divide the key/value heads of .*, [24];"):
        store.load(saved["policy"][0], make_mesh((1, 1, 8)), "policy")
    with pytest.raises(UserError, match="its tensor axis of 8 does not divide"):
        store.create("policy", SHAPE, make_mesh((1, 1, 8)), seed=0)


def test_what_is_on_disk(saved, tokenizer):
    folder, _ = saved["reward"]
    description = json.loads((folder / "model.json").read_text())
    assert description == {"kind": "reward", "config": dataclasses.asdict(SHAPE), "bos": "tokenizer"}
    assert not (folder / "generation_config.json").exists()
    assert not list(folder.glob("*.tmp"))
    assert load_tokenizer(folder).get_vocab() == tokenizer.get_vocab()


def test_what_is_known_of_bos_and_end_tokens_goes_from_model_to_model(tmp_path, tokenizer):
    """As when a model of the Hub is trained: the ids of its generation config end solutions of the new one, too."""
    mesh, first, second = make_mesh((1, 8, 1)), tmp_path / "first", tmp_path / "second"
    params = random_params("policy", SHAPE, mesh)
    store.save(first, "policy", SHAPE, params, tokenizer)
    description = json.loads((first / "model.json").read_text())
    (first / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    for bos in ("tokenizer", None):  # None: as an earlier version wrote it
        (first / "model.json").write_text(
            json.dumps({"kind": "policy", "config": description["config"]} | ({"bos": bos} if bos else {}))
        )
        store.save(second, "policy", SHAPE, params, load_tokenizer(first))
        assert json.loads((second / "model.json").read_text())["bos"] == (bos or "always")
        again = load_tokenizer(second)
        assert again.bos_rule == (bos or "always") and sorted(again.generation_ends) == [2, 7]
        ids = json.loads((second / "generation_config.json").read_text())
        assert ids == {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": [2, 7]}


def test_saving_again_replaces(tmp_path, tokenizer):
    mesh = make_mesh((1, 8, 1))
    small = dataclasses.replace(SHAPE, layers=1)
    store.save(tmp_path, "policy", SHAPE, random_params("policy", SHAPE, mesh), tokenizer)
    params = random_params("policy", small, mesh, seed=1)
    store.save(tmp_path, "policy", small, params, tokenizer)
    _, config, loaded = store.load(tmp_path, mesh, "policy")
    assert config == small
    same_bits(loaded, params)


def test_count_parameters(saved):
    policy, reward = (store.count_parameters(saved[kind][1]) for kind in ("policy", "reward"))
    layer = 4 * 16 * 4 * 4 + 3 * 16 * 32 + 2 * 16
    assert policy == 2 * 8 * 16 + 2 * layer + 16
    assert reward == policy + 16 + 1


def test_presets_are_shapes_of_networks():
    for name, fields in PRESETS.items():
        config = LlamaConfig(**({"vocab_size": 100} | get_preset(name)))
        assert config.heads % config.kv_heads == 0 and config.heads * config.head_dim == config.width
        assert fields is not get_preset(name)
    with pytest.raises(UserError, match=r"llemma_7.*did you mean \"llemma_7b\""):
        get_preset("llemma_7")
