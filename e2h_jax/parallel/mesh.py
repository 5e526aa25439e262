"""The device mesh ("data", "fsdp", "tensor")."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from e2h_jax.errors import UserError
from e2h_jax.parallel import compilation, hosts
from e2h_jax.parallel.rules import MESH_AXES


def platform() -> str:
    """Of the devices of the mesh that is set (`jax.set_mesh`): "tpu", "gpu", "cpu"; "" without a mesh.

    They are the devices that are compiled for, which need not be those of the machine that compiles.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else ""


def make_mesh(shape: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh of `shape` = (data, fsdp, tensor); one entry may be -1 (all remaining devices).

    Auto axis types: the compiler propagates shardings from the annotations that `rules.py` decides.
    Raises UserError when the shape does not multiply to the number of devices.
    """
    hosts.start()
    if devices is None:  # the machine's own: what is compiled will run on them
        devices = jax.devices()
        compilation.start(devices[0].platform)
    devices = list(devices)
    shape = tuple(int(size) for size in shape)
    if len(shape) != len(MESH_AXES) or any(size == 0 or size < -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(f"config.mesh={shape} must be three sizes {MESH_AXES}, positive, at most one of them -1")
    if -1 in shape:
        rest = -int(np.prod(shape))
        if len(devices) % rest:
            raise UserError(f"config.mesh={shape} does not fit {len(devices)} devices: {rest} does not divide them")
        shape = tuple(len(devices) // rest if size == -1 else size for size in shape)
    if int(np.prod(shape)) != len(devices):
        raise UserError(
            f"config.mesh={shape} needs {int(np.prod(shape))} devices but {len(devices)} are there; "
            "use -1 for one entry to take all devices"
        )
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
