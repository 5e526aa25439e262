"""Meshes that a model or a batch does not fit, refused in one sentence before anything is loaded or compiled.

What does not divide is refused, never padded. The vocabularies of published models divide by 16 (Llemma's 32016, Llama 2's
32000, Qwen2.5's 151936), which no tensor axis needs to exceed; and padding would reach logits, samples and exports.
"""

from typing import Protocol

from jax.sharding import Mesh

from e2h_jax.errors import UserError
from e2h_jax.parallel.rules import RULES, axis_size


class Sizes(Protocol):
    """The dimensions of a model that are cut over a mesh: of a `LlamaConfig`."""

    width: int
    kv_heads: int
    mlp_width: int
    vocab_size: int


CUT = (  # query heads are a multiple of key/value heads
    ("kv_heads", "kv_heads", "key/value heads"),
    ("mlp_width", "mlp", "feed-forward width"),
    ("vocab_size", "vocab", "vocabulary"),
    ("width", "embed", "width"),
)


def check_model(mesh: Mesh, model: Sizes, name: str) -> None:
    """Raises UserError when an axis of the mesh does not divide the model's dimension that is cut over it.

    `name` is what the user calls the model: its folder or preset.
    """
    for field, axis, what in CUT:
        size, shards = getattr(model, field), axis_size(mesh, axis)
        if size % shards:
            most = max(n for n in range(1, shards) if size % n == shards % n == 0)
            raise UserError(
                f"config.mesh={tuple(mesh.shape.values())}: its {RULES[axis]} axis of {shards} does not divide the {what} "
                f"of {name}, {size}; choose one that does, such as {most}"
            )


def check_rows(mesh: Mesh, **fields: int) -> None:
    """Raises UserError for a number of rows, by its field's name, that the mesh's batch shards do not divide."""
    shards = axis_size(mesh, "batch")
    for name, rows in fields.items():
        if rows % shards:
            raise UserError(
                f"config.{name}={rows} does not divide by {shards}, the shards along (data, fsdp) of "
                f"config.mesh={tuple(mesh.shape.values())}; choose a multiple"
            )


def check_hosts(mesh: Mesh) -> None:
    """Raises UserError where two hosts share some rows of a training batch but not all: each places those that it has."""
    held: dict[int, set[int]] = {}
    for shard, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["tensor"])):
        for device in devices:
            held.setdefault(device.process_index, set()).add(shard)
    if sum(map(len, set(map(frozenset, held.values())))) > axis_size(mesh, "batch"):
        raise UserError(
            f"config.mesh={tuple(mesh.shape.values())} cuts rows across hosts that share others: choose a tensor axis that "
            "divides, or is a multiple of, a host's devices, and data and fsdp for the rest"
        )
