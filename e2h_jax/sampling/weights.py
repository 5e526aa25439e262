"""A policy's weights as decoding reads them: matrices in the compute dtype, layer by layer. Made of shapes, they are shapes."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
from flax import nnx

from e2h_jax.models.llama import unstack
from e2h_jax.parallel.shapes import is_abstract, shapes

_unstack = jax.jit(unstack, static_argnums=1)
Weights = tuple[nnx.State, list[nnx.State]]  # all but the layers', those of every layer


def unstacked(params: nnx.State, dtype: str) -> Weights:
    """New arrays beside `params`, which stay what they are; see `models.llama.unstack`."""
    if is_abstract(params):
        return shapes(_unstack.lower(params, dtype).compile().out_info)
    return _unstack(params, dtype)


def take(params: nnx.State, dtype: str) -> Weights:
    """The same where nobody else needs `params`, which is left empty: one parameter after the other is taken out of it.

    So the devices never hold more than one of them twice. Shapes stay where they are.
    """
    # Not before the new arrays are there is the memory of the old one free.
    made = [jax.block_until_ready(unstacked(part, dtype)) for part in _each(params)]
    rest, layers = zip(*made, strict=True)
    return _joined(rest), [_joined(parts) for parts in zip(*filter(None, layers), strict=True)]


def _each(params: nnx.State) -> Iterator[nnx.State]:
    """Each parameter alone; of arrays, the caller has the only reference. (nnx.to_flat_state leaves some in cycles.)"""
    if is_abstract(params):
        params = jax.tree.map(lambda shape: shape, params)
    blocks = params.pop("blocks")
    while blocks:
        yield nnx.State({"blocks": nnx.State(dict([blocks.popitem()]))})
    while params:
        yield nnx.State(dict([params.popitem()]))


def _joined(parts: Iterable[nnx.State]) -> nnx.State:
    return nnx.State({name: param for part in parts for name, param in part.items()})


class Load(NamedTuple):
    """The program that makes the weights, for `e2h plan`; where they are taken, the largest parameter's."""

    function: jax.stages.Wrapped
    arguments: tuple[nnx.State, str]
    beside: Any  # weights that are there already while it runs


def describe_load(params: nnx.State, dtype: str, *, taken: bool) -> Load:
    """The largest program of `take`, at the moment when all other parameters are there in either form; or of `unstacked`."""
    if not taken:
        return Load(_unstack, (params, dtype), ())
    parts = sorted(_each(params), key=lambda part: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(part)))
    return Load(_unstack, (parts[-1], dtype), parts[:-1])
