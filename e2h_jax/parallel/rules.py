"""The one sharding table: logical axis names (carried by parameters and activations) to mesh axes.

Nothing else in the package decides where an array lives. Parameters carry their logical axes as `nnx.Param(..., axes=...)`
metadata; activations name theirs in `constrain`.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e2h_jax.errors import nearest

MESH_AXES = ("data", "fsdp", "tensor")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "look_up": "data",  # rows whose embeddings are looked up, while fsdp cuts the width
    "length": None,
    # parameters (and the tensor-parallel dimensions of activations)
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "rank": None,  # of LoRA's factors
}


def partition_spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Maps logical axes to a PartitionSpec; raises ValueError for an unknown name or a mesh axis used twice."""
    entries, used = [], set()
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r}{nearest(axis, RULES)}")
        entry = RULES[axis] if axis is not None else None
        for mesh_axis in (entry,) if isinstance(entry, str) else entry or ():
            if mesh_axis in used:
                raise ValueError(f"logical axes {tuple(axes)} use mesh axis {mesh_axis!r} twice")
            used.add(mesh_axis)
        entries.append(entry)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation's layout on the mesh set by `jax.set_mesh`; the identity where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def axis_size(mesh: Mesh, axis: str) -> int:
    """Number of shards into which the logical axis is cut on this mesh."""
    entry = RULES[axis]
    names = (entry,) if isinstance(entry, str) else entry or ()
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return size


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """NamedShardings for a pytree of `nnx.Param`s (or of their ShapeDtypeStructs), from each parameter's `axes` metadata.

    Returns the same tree with a NamedSharding as each parameter's value, fit for `jax.jit(out_shardings=...)`. That the mesh
    divides the dimensions is `checks.check_model`'s to see.
    """
    return jax.tree.map(
        lambda param: param.replace(NamedSharding(mesh, partition_spec(param.get_metadata("axes")))),
        state,
        is_leaf=lambda leaf: hasattr(leaf, "get_metadata"),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a [batch, ...] array: rows over every data-parallel axis, the rest replicated."""
    return NamedSharding(mesh, partition_spec(("batch",)))
