"""A CPU's cores as devices: how many a mesh takes, and who says how many there are."""

import os
import subprocess
import sys

import pytest

from e2h_jax.parallel.mesh import cores_taken


@pytest.mark.parametrize(
    ("shape", "rows", "cores", "taken"),
    [
        ((1, -1, 1), (), 8, (8, 1, 1)),
        ((1, -1, 1), (256,), 2, (2, 1, 1)),
        ((-1, 1, 1), (12, 8), 8, (4, 1, 1)),  # 8 does not divide 12
        ((1, -1, 1), (6,), 4, (2, 1, 1)),
        ((1, -1, 1), (1,), 8, (1, 1, 1)),
        ((2, -1, 1), (4,), 8, (4, 1, 1)),
        ((-1, 2, 1), (8,), 8, (4, 2, 1)),
        ((1, -1, 2), (2,), 8, (2, 1, 2)),
        ((1, 1, -1), (8,), 8, (1, 1, 1)),
        ((1, 1, 1), (8,), 8, (1, 1, 1)),
        ((8, 1, 1), (8,), 2, (8, 1, 1)),  # too few: told by make_mesh
    ],
)
def test_no_more_cores_than_divide_the_rows(shape, rows, cores, taken):
    assert cores_taken(shape, rows, cores) == taken


@pytest.mark.parametrize(
    ("environment", "sizes"),
    [
        ({}, "4 4 1 2 1"),  # of six cores: a power of 2
        ({"JAX_NUM_CPU_DEVICES": "3"}, "3 3 3 3 3"),  # the user's word: all of them, whatever the rows
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, "1 1 1 1 1"),
    ],
)
def test_cores_are_devices_unless_the_user_says_how_many(environment, sizes):
    code = """
import os
os.sched_getaffinity = lambda process: set(range(6))
from e2h_jax.parallel.mesh import make_mesh
import jax
meshes = [make_mesh((1, -1, 1)), make_mesh((1, -1, 1), width=512), *(make_mesh((-1, 1, 1), rows=(n,)) for n in (6, 7))]
print(jax.device_count(), *(mesh.devices.size for mesh in meshes))
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PJRT_NPROC")} | environment
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sizes
