"""Arithmetic of a traced program: the operations of its matrix products, loops counted as often as they run.

XLA's own cost analysis counts the body of a scan once. Here the jaxpr is walked, where every scan says how long it is. What the
backward pass recomputes is in it; elementwise arithmetic is not counted.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def count(traced: Any, platform: str, loops: Sequence[int] = ()) -> float:
    """Floating-point operations of all devices together.

    Args:
      traced: what `jit(f).trace(...)` returns.
      platform: "tpu" or "cpu": of alternatives for several platforms the one that is compiled.
      loops: iterations of the `while` loops, the outermost first: the jaxpr does not say.
    """
    return _count(traced.jaxpr.jaxpr, platform, tuple(loops))


def _count(jaxpr: Jaxpr, platform: str, loops: tuple[int, ...]) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        parameters = equation.params
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = parameters["dimension_numbers"]
                shape = equation.invars[0].aval.shape
                total += 2 * math.prod(shape[axis] for axis in contracted) * equation.outvars[0].aval.size
            case "while":
                times, inner = (loops[0], loops[1:]) if loops else (1, ())
                total += times * _count(parameters["body_jaxpr"].jaxpr, platform, inner)
            case "cond":
                total += _branches(parameters, platform, loops)
            case "pallas_call":
                total += _kernel(parameters, platform)
            case name:
                times = {"scan": "length"}.get(name)
                factor = parameters[times] if times else 1
                if name == "shard_map":  # its body is one device's
                    factor = math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
                total += factor * sum(_count(inner, platform, loops) for inner in _inside(parameters))
    return total


def _branches(parameters: dict, platform: str, loops: tuple[int, ...]) -> float:
    """The dearest branch; of `platform_dependent` the one that this platform gets."""
    counts = [_count(branch.jaxpr, platform, loops) for branch in parameters["branches"]]
    for count, platforms in zip(counts, parameters.get("branches_platforms") or (), strict=False):
        if platforms is None or platform in platforms:
            return count
    return max(counts)


def _kernel(parameters: dict, platform: str) -> float:
    """A Pallas kernel: what it says of itself, else its body for every point of the grid."""
    estimate = parameters.get("cost_estimate")
    if estimate is not None:
        return float(estimate.flops)
    points = math.prod(size for size in parameters["grid_mapping"].grid if isinstance(size, int))
    return points * _count(parameters["jaxpr"], platform, ())


def _inside(parameters: dict) -> Iterator[Jaxpr]:
    for value in parameters.values():
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, Jaxpr):
                yield entry
