"""The weights that a sampler keeps, made beside the parameters or in their place."""

import jax
import numpy as np
import pytest

from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.shapes import shapes
from e2h_jax.planning.compiling import held_bytes
from e2h_jax.sampling import weights

CONFIG = LlamaConfig(64, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_width=64, qkv_bias=True)


def bytes_of(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.fixture
def params():
    return store.create("policy", CONFIG, make_mesh((2, 2, 2)), seed=0)[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_taken_are_those_that_are_made_beside(params, dtype):
    with jax.set_mesh(make_mesh((2, 2, 2))):
        expected = weights.unstacked(params, dtype)
        abstract = weights.take(shapes(params), dtype)
        found = weights.take(params, dtype)
    assert jax.tree.structure(found) == jax.tree.structure(expected) and not params
    for new, old, shape in zip(*map(jax.tree.leaves, (found, expected, abstract)), strict=True):
        assert new.dtype == old.dtype == shape.dtype
        assert all(other.sharding.is_equivalent_to(new.sharding, new.ndim) for other in (old, shape))
        assert np.array_equal(np.asarray(new), np.asarray(old))


def test_no_more_than_one_parameter_is_there_twice_and_the_plan_says_so(params, monkeypatch):
    before, total, seen = bytes_of(jax.live_arrays()), bytes_of(params), []
    largest, on_device = max(map(bytes_of, jax.tree.leaves(params))), held_bytes(params)
    with jax.set_mesh(make_mesh((2, 2, 2))):
        load = weights.describe_load(shapes(params), CONFIG.dtype, taken=True)
        made = weights.unstacked
        assert held_bytes((load.arguments, load.beside)) == on_device
        assert held_bytes(made(*load.arguments)) == largest / 4  # cut along fsdp and tensor

        def watched(part, dtype):
            new = made(part, dtype)
            # Of the parameters that are taken, and what was made of them.
            seen.append(bytes_of(jax.live_arrays()) - before + total)
            return new

        monkeypatch.setattr(weights, "unstacked", watched)
        weights.take(params, CONFIG.dtype)
    assert len(seen) == 15 and total < max(seen) <= total + largest
