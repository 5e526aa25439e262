"""Attention over whole rows by the kernels that accelerators have for it: scores of all pairs of tokens never exist.

TPU   Splash attention (a Pallas kernel that comes with JAX; Dao et al. 2022, arXiv 2205.14135, explain the method)
GPU   cuDNN's flash attention, by `jax.nn.dot_product_attention`
else  none: `attention.py` computes the scores

Both kernels multiply in bfloat16 with float32 sums and a float32 softmax. What is float32 is not for them: there every product
has to be float32's, see `projection.einsum`.

Shapes as in `attention.py`: q [B, L, H, h], k and v [B, L, K, h], segment ids int32 [B, L].
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from e2h_jax.parallel.mesh import platform
from e2h_jax.parallel.rules import axis_size, partition_spec

RESULT = "flash_attention"  # Splash's name, for rematerialisation, of its output and of its softmax's logarithmic sums
SHORTEST = 128  # tokens: shorter rows would be mostly padding
LANES = 128  # what Splash's blocks of keys and of queries must be multiples of


def kernel_for(q_BxLxHxh: jax.Array, window) -> Callable | None:
    """The kernel that suits these queries on the devices of the mesh that is set; None if there is none.

    No kernel for: other dtypes than bfloat16; rows of fewer than 128 tokens; a window that is traced; heads of other sizes than
    64 to 256 on TPU, and multiples of 8 up to 128 on GPU; rows that the mesh does not cut evenly.

    Returns:
      a function (q, k, v, segment_ids, window) -> out, causal and within segments.
    """
    batch, length, _, head_dim = q_BxLxHxh.shape
    kernels = {"tpu": (splash, range(64, 257)), "gpu": (cudnn, range(8, 129, 8))}
    if platform() not in kernels:
        return None
    kernel, head_dims = kernels[platform()]
    suits = q_BxLxHxh.dtype == jnp.bfloat16 and length >= SHORTEST and head_dim in head_dims
    even = batch % axis_size(jax.sharding.get_abstract_mesh(), "batch") == 0
    return functools.partial(on_mesh, kernel) if suits and even and not isinstance(window, jax.Array) else None


def keep_results(primitive, *_, **parameters) -> bool:
    """Rematerialisation policy: a kernel's results are kept, so that the backward pass need not run it forward again."""
    named = primitive.name == "name" and parameters["name"] == RESULT
    return named or primitive.name == "dot_product_attention_fwd_wrapper"  # cuDNN's


def on_mesh(kernel: Callable, q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, segment_ids_BxL, window) -> jax.Array:
    """The kernel on every device's own rows and heads: the compiler does not cut a kernel by itself."""
    heads = partition_spec(("batch", "length", "heads", "head_dim"))
    kv_heads = partition_spec(("batch", "length", "kv_heads", "head_dim"))
    local = jax.shard_map(
        lambda *operands: kernel(*operands, window),
        in_specs=(heads, kv_heads, kv_heads, partition_spec(("batch", "length"))),
        out_specs=heads,
        check_vma=False,  # Pallas calls do not say how their results vary over the mesh
    )
    return local(q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, segment_ids_BxL)


def splash(q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, segment_ids_BxL, window: int | None, interpret: bool = False) -> jax.Array:
    """Splash attention. Rows are padded to 128, 256, 384, 512 or a multiple of 256 tokens, heads to a multiple of 64.

    Padding is a segment of its own. `interpret` runs the kernel as plain JAX, on any device.
    """
    length, heads, head_dim = q_BxLxHxh.shape[1:]
    padding = -length % (LANES if length <= 512 else 256)
    widths = ((0, 0), (0, padding), (0, 0), (0, -head_dim % 64))
    q, k, v = (jnp.pad(x, widths).swapaxes(1, 2) for x in (q_BxLxHxh * head_dim**-0.5, k_BxLxKxh, v_BxLxKxh))
    segment_ids = jnp.pad(segment_ids_BxL, widths[:2])
    kernel = _splash_kernel(heads, length + padding, window, interpret)

    def row(q, k, v, ids):
        return kernel(q, k, v, splash_attention.SegmentIds(ids, ids))

    return jax.vmap(row)(q, k, v, segment_ids).swapaxes(1, 2)[:, :length, :, :head_dim]


def _splash_kernel(heads: int, length: int, window: int | None, interpret: bool):
    """Of one row of `length` tokens: causal, or causal within a window."""
    block = length if length <= 512 else 512 if length % 512 == 0 else 256
    if window is None or window >= length:
        mask = splash_attention.CausalMask((length, length))
    else:
        mask = splash_attention.LocalMask((length, length), (window - 1, 0), 0)
    forward = dict(block_q=block, block_kv=block, block_kv_compute=block)
    backward = dict(block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(**forward, **backward),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESULT,
        interpret=interpret,
    )


def cudnn(q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, segment_ids_BxL, window: int | None) -> jax.Array:
    """cuDNN's flash attention. Segments are a mask bfloat16 [B, 1, L, L] that all heads share."""
    length = q_BxLxHxh.shape[1]
    padding = -length % 2  # the backward pass wants an even length
    widths = ((0, 0), (0, padding), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x, widths) for x in (q_BxLxHxh, k_BxLxKxh, v_BxLxKxh))
    segment_ids = jnp.pad(segment_ids_BxL, widths[:2])
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=(segment_ids[:, :, None] == segment_ids[:, None, :])[:, None],
        is_causal=True,
        local_window_size=None if window is None or window >= length else (window - 1, 0),
        implementation="cudnn",
    )
    return out[:, :length]
