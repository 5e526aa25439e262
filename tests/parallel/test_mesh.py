"""Meshes that fit, and one sentence for those that do not."""

import jax
import pytest
from jax.sharding import AxisType

from e2h_jax.errors import UserError
from e2h_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((8, 1, 1), (8, 1, 1)),
        ((2, 2, 2), (2, 2, 2)),
        ((1, -1, 1), (1, 8, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((1, 2, -1), (1, 2, 4)),
        ([2, 4, -1], (2, 4, 1)),
    ],
)
def test_shapes(shape, sizes):
    mesh = make_mesh(shape)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert sorted(device.id for device in mesh.devices.flat) == sorted(device.id for device in jax.devices())


def test_some_of_the_devices():
    mesh = make_mesh((1, -1, 1), jax.devices()[:2])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 1, 1), r"config\.mesh=\(1, 1, 1\) needs 1 devices but 8 are there"),
        ((4, 4, 1), "needs 16 devices but 8 are there.*-1"),
        ((3, -1, 1), "does not fit 8 devices: 3 does not divide them"),
        ((16, -1, 1), "does not fit 8 devices: 16 does not divide them"),
        ((-1, -1, 1), "at most one of them -1"),
        ((0, 8, 1), "positive"),
        ((-2, 2, 2), "positive"),
        ((8,), "three sizes"),
        ((2, 2, 2, 1), "three sizes"),
        ((), "three sizes"),
    ],
)
def test_shapes_that_do_not_fit(shape, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        make_mesh(shape)
    assert "\n" not in str(error.value)
