"""Slices by name: their devices without hardware, and which slice is the next larger one."""

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

from packaging.requirements import Requirement

from e2h_jax.errors import UserError, nearest

# Shapes that Cloud TPU rents, smallest first.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SHAPES = {"v4": _CUBIC, "v5e": _FLAT, "v5p": _CUBIC, "v6e": _FLAT, "tpu7x": _CUBIC}


class Topology(NamedTuple):
    """A slice: "v5e:4x4", or "cpu:8"."""

    name: str
    kind: str  # "v5e", "cpu"
    chips: int

    def devices(self) -> list[Any]:
        """Its devices, as far as a compiler needs them; UserError if there is no such slice."""
        import jax
        from jax.experimental import topologies

        if self.kind == "cpu":
            found = jax.devices("cpu")
            if len(found) < self.chips:
                raise UserError(f"--topology={self.name}: this process has been started with {len(found)} devices")
            return found[: self.chips]
        options = {"chip_config_name": "megacore"} if self.kind == "v4" else {}  # both cores of a v4 chip are one device
        if self.chips < 4:  # a part of a host; by default the compiler takes hosts of 2x2
            sizes = [int(size) for size in self.name.partition(":")[2].split("x")]
            options["chips_per_host_bounds"] = tuple(sizes + [1] * (3 - len(sizes)))
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options).devices
        except Exception as error:  # of libtpu, which knows more about slices than this table
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--topology={self.name} is no slice that the TPU compiler knows ({reason})") from None

    def larger(self) -> list["Topology"]:
        """Larger slices of the same chips, the next one first."""
        shapes = SHAPES.get(self.kind, ())
        return [found for shape in shapes if (found := parse(f"{self.kind}:{shape}")).chips > self.chips]


def parse(name: str) -> Topology:
    """The slice of that name; UserError for a name that is none."""
    kind, _, shape = name.partition(":")
    if kind == "cpu" and shape.isdecimal() and int(shape) > 0:
        return Topology(name, kind, int(shape))
    if kind not in SHAPES:
        close = nearest(kind, [*SHAPES, "cpu"])
        raise UserError(f'--topology={name}: "{kind}" is unknown{close}; there are {", ".join(SHAPES)} and cpu')
    example = SHAPES[kind][3]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") != example.count("x"):
        raise UserError(f"--topology={name}: a slice of {kind} is written like {kind}:{example}")
    chips = 1
    for size in shape.split("x"):
        chips *= int(size)
    return Topology(name, kind, chips)


def prepare(topologies: Sequence[Topology], environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets what JAX and libtpu read when they are loaded; UserError if the TPU compiler is missing."""
    simulated = max((topology.chips for topology in topologies if topology.kind == "cpu"), default=0)
    flags = environment.get("XLA_FLAGS", "")
    if simulated and "jax" not in sys.modules and "xla_force_host_platform_device_count" not in flags:
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={simulated}".strip()
    if all(topology.kind == "cpu" for topology in topologies):
        return
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"the compiler of TPUs is not installed; get it with `pip install '{named_by_jax()}'` (for Linux on x86-64; "
            "no TPU is needed)"
        )
    environment["JAX_PLATFORMS"] = "cpu"
    # There is no TPU to ask; and to the environment libtpu would write guesses that `start_multi_host` reads.
    environment.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-4")
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"  # texts that jaxlib cannot read are met (compiling.py), and need no stack trace
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # only one process may hold a TPU, but many may compile for one


def named_by_jax() -> Requirement:
    """The TPU compiler that the installed JAX asks for in its extra `tpu`, which a pod has: libtpu==0.0.42.*, say."""
    asked = map(Requirement, importlib.metadata.requires("jax"))
    named = next(one for one in asked if one.name == "libtpu" and one.marker.evaluate({"extra": "tpu"}))
    return Requirement(f"{named.name}{named.specifier}")


def another_compiler(topologies: Sequence[Topology]) -> str:
    """A sentence for the user where TPU programs are not compiled by the compiler that JAX names; "" where all is well."""
    if all(topology.kind == "cpu" for topology in topologies):
        return ""
    named, installed = named_by_jax(), importlib.metadata.version("libtpu")
    if named.specifier.contains(installed):
        return ""
    return (
        f"this plan is made with libtpu {installed}; a pod will have the one that JAX names, whose programs may need more "
        f"memory or less: get it with `pip install '{named}'`"
    )
