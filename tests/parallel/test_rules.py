"""The one sharding table: logical axes to mesh axes."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from e2h_jax.models.heads import RewardModel
from e2h_jax.models.llama import Llama, LlamaConfig
from e2h_jax.parallel import rules
from e2h_jax.parallel.mesh import make_mesh

TINY = LlamaConfig(vocab_size=32, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64)


def abstract(kind, config=TINY):
    return nnx.split(nnx.eval_shape(lambda: kind(config, nnx.Rngs(0))))[1]


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        (("batch", "length", None), P(("data", "fsdp"), None, None)),
        (("layers", "embed", "heads", "head_dim"), P(None, "fsdp", "tensor", None)),
        (("layers", "heads", "head_dim", "embed"), P(None, "tensor", None, "fsdp")),
        (("embed", "vocab"), P("fsdp", "tensor")),
        (("batch", "length", "mlp"), P(("data", "fsdp"), None, "tensor")),
        ((), P()),
    ],
)
def test_the_table(axes, spec):
    assert rules.partition_spec(axes) == spec


def test_an_unknown_axis_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown logical axis 'head'.*\"heads\""):
        rules.partition_spec(("embed", "head"))


@pytest.mark.parametrize("axes", [("heads", "mlp"), ("batch", "embed"), ("vocab", "vocab")])
def test_the_same_mesh_axis_twice_is_refused(axes):
    with pytest.raises(ValueError, match="twice"):
        rules.partition_spec(axes)


def test_every_rule_names_mesh_axes_only():
    for axis in rules.RULES:
        spec = rules.partition_spec((axis,))
        for entry in jax.tree.leaves(tuple(spec)):
            assert entry in rules.MESH_AXES


@pytest.mark.parametrize("kind", [Llama, RewardModel])
def test_every_parameter_has_an_axis_per_dimension_and_its_sharding(kind):
    mesh = make_mesh((2, 2, 2))
    state = abstract(kind)
    shardings = rules.state_shardings(mesh, state)
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: hasattr(x, "get_metadata"))
    assert len(leaves) == (12 if kind is Llama else 14)
    for path, param in leaves:
        axes = param.get_metadata("axes")
        assert len(axes) == param.get_value().ndim, jax.tree_util.keystr(path)
        assert param.get_value().dtype == jnp.float32
    by_path = {jax.tree_util.keystr(path): s for path, s in jax.tree_util.tree_leaves_with_path(shardings)}
    assert {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)} == set(by_path)
    q = next(s for path, s in by_path.items() if "'q'" in path)
    assert q.spec == P(None, "fsdp", "tensor", None)
    # All matrices of the network are cut along both parameter axes: a big model fits no device whole.
    for path, param in leaves:
        if param.get_value().ndim > 2 or "embedding" in str(path) or "lm_head" in str(path):
            spec = rules.partition_spec(param.get_metadata("axes"))
            assert {"fsdp", "tensor"} <= set(spec), jax.tree_util.keystr(path)


def test_axis_size():
    mesh = make_mesh((2, 1, 4))
    sizes = {axis: rules.axis_size(mesh, axis) for axis in ("batch", "length", "embed", "heads", "layers")}
    assert sizes == {"batch": 2, "length": 1, "embed": 1, "heads": 4, "layers": 1}
    assert rules.axis_size(make_mesh((2, 4, 1)), "batch") == 8


def test_constrain_lays_out_on_the_mesh_and_does_nothing_without():
    x = jnp.arange(32.0).reshape(8, 4)
    assert rules.constrain(x, "batch", None) is x
    mesh = make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: rules.constrain(x, "batch", "mlp"))(x)
    assert y.sharding.is_equivalent_to(jax.NamedSharding(mesh, P(("data", "fsdp"), "tensor")), 2)
    assert (y == x).all()
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 2)}


def test_batch_sharding_cuts_rows_over_every_data_axis():
    mesh = make_mesh((2, 2, 2))
    x = jax.device_put(jnp.zeros((8, 3)), rules.batch_sharding(mesh))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 3)}
