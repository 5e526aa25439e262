"""Arrays that are not there: `ShapeDtypeStruct`s with shardings stand in for them where `e2h plan` makes a stage's programs.

What makes a stage's state and its programs takes either: of arrays it makes arrays, of shapes it makes shapes.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def is_abstract(tree: Any) -> bool:
    """Whether there are shapes in place of arrays in the tree."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def placed(shapes: Any, shardings: Any) -> Any:
    """The shapes with these shardings, a tree of the same structure."""
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, shardings)


def shapes(tree: Any) -> Any:
    """The shapes of a tree, each leaf an object of its own: what stands for two arrays must not be taken for one."""
    return placed(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))


def device_bytes(tree: Any) -> int:
    """Bytes of a tree's arrays, or shapes, on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def made(function: Callable, shardings: Any, *arguments: Any, abstract: bool | None = None) -> Any:
    """What `function(*arguments)` returns, made in place in these shardings; its shapes if the arguments are `abstract`."""
    if is_abstract(arguments) if abstract is None else abstract:
        return placed(jax.eval_shape(function, *arguments), shardings)
    return jax.jit(function, out_shardings=shardings)(*arguments)
