"""The training step, compiled for a TPU v5e:2x2 that is not there, and examined. launch/test.sh installs the compiler."""

import dataclasses
import importlib.util
import re
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.experimental import topologies

from e2h_jax.models.attention import packed_causal
from e2h_jax.models.llama import Llama, LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.rules import batch_sharding, state_shardings
from e2h_jax.training import loop, losses

LENGTH = 384
SHAPE = LlamaConfig(512, width=256, layers=3, heads=4, kv_heads=2, head_dim=128, mlp_width=640, dtype="bfloat16")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, TPU's compiler, is not installed")


@pytest.fixture(scope="module")
def mesh():
    with pytest.MonkeyPatch.context() as patch:
        # There is no TPU to ask; and to the environment libtpu would write guesses that `start_multi_host` reads.
        for name, value in ("SKIP_MDS_QUERY", "1"), ("WORKER_HOSTNAMES", "localhost"), ("ACCELERATOR_TYPE", "v5litepod-4"):
            patch.setenv(f"TPU_{name}", value)
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another test may have it
        kept = jax.config.jax_enable_compilation_cache
        jax.config.update("jax_enable_compilation_cache", False)  # it could not read back what it keeps
        yield make_mesh((1, 2, 2), topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
        jax.config.update("jax_enable_compilation_cache", kept)


def compiled(mesh, **changes) -> str:
    """The program's text. A warning is an error, as of buffers that were given away and could not be used."""
    config = dataclasses.replace(SHAPE, **changes)
    graph, params = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        params, state_shardings(mesh, params),
    )  # fmt: skip
    optimizer = optax.sgd(0.1)
    state = loop.TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=jax.NamedSharding(mesh, jax.P())), params, None)
    state = state._replace(opt_state=jax.eval_shape(optimizer.init, params))

    def loss_fn(params, batch):
        model = nnx.merge(graph, params)
        hidden, _ = model(batch["tokens"], batch["positions"], packed_causal(batch["segment_ids"]))
        return losses.cross_entropy(hidden, model.output_matrix(), batch["targets"], batch["loss_weights"])[0], {}

    dtypes = dict.fromkeys(("tokens", "positions", "segment_ids", "targets"), jnp.int32) | {"loss_weights": jnp.float32}
    batch = {
        name: jax.ShapeDtypeStruct((8, LENGTH), dtype, sharding=batch_sharding(mesh)) for name, dtype in dtypes.items()
    }
    with jax.set_mesh(mesh), warnings.catch_warnings():
        warnings.simplefilter("error")
        return loop.make_train_step(loss_fn, optimizer, state, microbatches=2).lower(state, batch).compile().as_text()


def kernels(text: str) -> dict[str, int]:
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    return {name: sum(f"splash_mha_{name}" in line.split("=")[0] for line in calls) for name in ("fwd", "dq", "dkv")}


def scores(text: str) -> list[str]:
    """Buffers with a number for every pair of tokens."""
    return re.findall(rf"f32\[(?:\d+,)*{LENGTH},{LENGTH}\]", text)


@pytest.mark.parametrize(
    ("forward", "changes"),
    [
        (1, {"remat": "none", "window": 100}),
        (1, {"remat": "dots", "window": LENGTH, "window_from": 1}),  # in which no row is long enough for layers to differ
        (2, {"remat": "full", "head_dim": 64}),
    ],
)
def test_splash_is_in_the_program_and_runs_forward_once_unless_all_is_recomputed(mesh, capfd, forward, changes):
    text = compiled(mesh, **changes)
    assert kernels(text) == {"fwd": forward, "dq": 1, "dkv": 1}
    assert not scores(text) and "highest" not in text
    assert "rematerialization" not in capfd.readouterr().err  # XLA's word on a layout that it cannot have without a full copy


def test_windows_that_differ_by_layer_are_left_to_xla(mesh):
    text = compiled(mesh, window=LENGTH - 1, window_from=1)
    assert kernels(text)["fwd"] == 0 and scores(text)


def test_float32_models_multiply_in_float32(mesh):
    text = compiled(mesh, dtype="float32", layers=1, width=128, head_dim=64, mlp_width=128)
    assert kernels(text)["fwd"] == 0
    products = [line for line in text.splitlines() if re.search(r" = f32\S* (convolution|dot)\(", line)]
    assert len(products) > 20
    assert [line for line in products if "operand_precision={highest,highest}" not in line] == []
