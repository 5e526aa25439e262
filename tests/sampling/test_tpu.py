"""The sampler's programs, compiled for a TPU v5e:2x2 that is not there, and examined. launch/test.sh installs the compiler."""

import importlib.util
import re

import jax
import pytest
from flax import nnx
from jax.experimental import topologies

from e2h_jax.models import projection
from e2h_jax.models.llama import Llama, LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.rules import state_shardings
from e2h_jax.sampling.choose import Settings
from e2h_jax.sampling.kernel import Kernel

GROUPS, ROWS, VOCABULARY = 4, 16, 512
pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, TPU's compiler, is not installed")


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    with pytest.MonkeyPatch.context() as patch:
        # There is no TPU to ask; and to the environment libtpu would write guesses that `start_multi_host` reads.
        for name, value in ("SKIP_MDS_QUERY", "1"), ("WORKER_HOSTNAMES", "localhost"), ("ACCELERATOR_TYPE", "v5litepod-4"):
            patch.setenv(f"TPU_{name}", value)
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another test may have it
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
        mesh = make_mesh((1, 2, 2), topology.devices)
        # 320 columns of the MLP a device: no multiple of 128, as Llama's 11,008 are none over 4 devices.
        shape = dict(width=256, layers=2, heads=4, kv_heads=2, head_dim=128, mlp_width=640, dtype="bfloat16")
        config = LlamaConfig(VOCABULARY, **shape)
        graph, abstract = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))
        params = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract, state_shardings(mesh, abstract),
        )  # fmt: skip
        settings = Settings(128, (2,), top_p=0.9)
        rows = {"groups": GROUPS, "rows": ROWS, "prompt_bucket": 128}
        kernel = Kernel(graph, config, params, mesh, **rows, seed=0, settings=settings)
        kernel.foresee([128])
        kernel.compile()
    return kernel


def bytes_of(columns: int, rows: int = 1) -> int:
    """Of that many columns of the cache on one of the four devices: layers, keys and values, heads, head size, bfloat16."""
    return GROUPS * rows * columns * 2 * 2 * 2 * 128 * 2 // 4


def test_decoding_updates_the_suffix_in_place_and_copies_none_of_it(kernel):
    less, more = (kernel.programs["decode", 1, pieces].memory_analysis() for pieces in (1, 2))
    added = bytes_of(64, ROWS)
    assert less.alias_size_in_bytes >= added
    assert more.alias_size_in_bytes - less.alias_size_in_bytes == added
    assert more.temp_size_in_bytes - less.temp_size_in_bytes < added / 4  # which would be one layer's keys


def test_prefill_writes_the_prompts_in_place(kernel):
    memory = kernel.programs["prefill", 128].memory_analysis()
    assert memory.alias_size_in_bytes >= bytes_of(128)
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < bytes_of(128) / 8


def test_prefill_never_has_the_scores_of_all_pairs_of_tokens(kernel):
    text = kernel.programs["prefill", 128].as_text()
    assert "splash_mha_fwd" in text and not re.search(r"f32\[(\d+,)+128,128\]", text)


def test_top_p_does_not_sort_the_vocabulary(kernel, tools):
    """`top_k` alone does, there: TPU's compiler has no other way for it."""
    assert not tools.sorts(kernel.programs["decode", 1, 1].as_text(), VOCABULARY // 2)


def test_decoding_does_not_turn_weights(kernel):
    """A device has [128 inputs, 2 or 1 heads, 128] of q, k and v and [128 inputs, 320] of gate and up; kept so, they would be
    copied to the layout that products read."""
    text = kernel.programs["decode", 1, 1].as_text()
    assert not re.search(r"= bf16\[(128|256),([12],128|320)\]\S* copy\(", text)
    shapes = {param.shape for name, param in nnx.to_flat_state(kernel._params[1][0]) if name[-1] in projection.TURNED}
    assert shapes == {(512, 256), (256, 256), (640, 256)}


def test_products_of_cached_keys_are_bfloat16s_there(kernel):
    """Widened to float32, as they must be on a CPU, the cache would be read twice as wide."""
    text = kernel.programs["decode", 1, 2].as_text()
    chunk = f"[{GROUPS // 2},1,{ROWS},64,128]"
    assert f"bf16{chunk}" in text and f"f32{chunk}" not in text
