"""The device mesh ("data", "fsdp", "tensor").

A CPU is one device to JAX, and the operations of a small model keep one core busy. So its cores become devices here: a mesh
with -1 along data or fsdp takes as many of them as divide a stage's rows, along data, since they share one memory. A model that
is wider than WIDEST has operations that XLA cuts over the cores by itself, and takes one device (docs/performance.md).
Whoever sets --xla_force_host_platform_device_count in XLA_FLAGS, or JAX_NUM_CPU_DEVICES, has a mesh of so many devices, always.
"""

import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from e2h_jax.errors import UserError
from e2h_jax.parallel import compilation, hosts
from e2h_jax.parallel.rules import MESH_AXES

MOST_CORES = 8
WIDEST = 256

_cores = False  # the devices are a CPU's cores, and this file has made them so


def platform() -> str:
    """Of the devices of the mesh that is set (`jax.set_mesh`): "tpu", "gpu", "cpu"; "" without a mesh.

    They are the devices that are compiled for, which need not be those of the machine that compiles.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else ""


def make_mesh(
    shape: Sequence[int], devices: Sequence[jax.Device] | None = None, rows: Sequence[int] = (), width: int = 0
) -> Mesh:
    """Builds the mesh of `shape` = (data, fsdp, tensor); one entry may be -1 (all remaining devices).

    Auto axis types: the compiler propagates shardings from the annotations that `rules.py` decides.

    Args:
      rows: numbers of rows that will be cut along (data, fsdp): of a CPU's cores, no more are taken than divide them all.
      width: of the model; decides whether a CPU's cores are taken one by one.

    Raises UserError when the shape does not multiply to the number of devices.
    """
    shape = tuple(int(size) for size in shape)
    if len(shape) != len(MESH_AXES) or any(size == 0 or size < -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(f"config.mesh={shape} must be three sizes {MESH_AXES}, positive, at most one of them -1")
    hosts.start()
    if devices is None:  # the machine's own: what is compiled will run on them
        _make_cores_devices()
        devices = jax.devices()
        compilation.start(devices[0].platform)
        if _cores and devices[0].platform == "cpu":
            shape = cores_taken(shape, rows, len(devices) if width <= WIDEST else 1)
            devices = devices[: int(np.prod(shape))]
    devices = list(devices)
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


def _make_cores_devices() -> None:
    """Tells JAX to make a device of each core of the CPU, before its first use; not where the user has said how many, or in a
    job of several processes, whose meshes take all devices."""
    global _cores
    told = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices >= 0
    if _cores or told or hosts.joined():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(MOST_CORES, 1 << cores.bit_length() - 1)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX was used before, by a notebook say
        return
    _cores = True
    if count > 1:
        # Threads of XLA. A device that waits for the others in a collective holds one, and with one for each device, which is
        # what XLA makes, the last may find none.
        os.environ.setdefault("PJRT_NPROC", str(4 * count))


def cores_taken(shape: tuple[int, ...], rows: Sequence[int], cores: int) -> tuple[int, ...]:
    """The mesh of a CPU's cores for this shape: in place of -1 along data or fsdp as many along data as there are and divide
    all `rows`, a power of 2; along tensor, where they would have to divide the model, 1."""
    if -1 not in shape:
        return shape
    data, fsdp, tensor = (1 if size == -1 else size for size in shape)
    while shape[2] != -1 and 2 * data * fsdp * tensor <= cores and all(count % (2 * data * fsdp) == 0 for count in rows):
        data *= 2
    return data, fsdp, tensor
