"""What training leaves behind when it ends before its time: the batch that broke it, all that a full disk had room for."""

import json
import os
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from e2h_jax import errors
from e2h_jax.errors import UserError
from e2h_jax.metrics import MetricsWriter
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.training import faults, loop


def examples(count, width=1):
    """Example i has tokens i."""
    return [
        {name: np.full(width, i, np.float32) for name in ("tokens", "targets")} | {"loss_weights": np.ones(width, np.float32)}
        for i in range(count)
    ]


def params_of(mesh, size=1):
    return jax.device_put(nnx.State({"w": nnx.Param(jnp.ones(size), axes=(None,))}), NamedSharding(mesh, PartitionSpec()))


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_for_the_next_boundary_once_there_has_been_one(number, ends):
    before = signal.getsignal(number)
    with pytest.raises(ends), faults.interrupts():
        os.kill(os.getpid(), number)  # while the first step is compiled
        pytest.fail("goes on")
    with faults.interrupts() as interrupted:
        assert interrupted() is None
        os.kill(os.getpid(), number)
        assert interrupted() == number and interrupted(last=True) == number
    with pytest.raises(ends):
        faults.stop(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("function", "at", "name"), [(jnp.log, -1.0, "loss is nan"), (jnp.sqrt, 0.0, "gradient's norm is (inf|nan)")]
)
def test_the_batch_that_broke_it_is_kept(tiny, tmp_path, function, at, name):
    """Example 150 asks for the logarithm of -1, or the slope of a root at 0."""
    seen = []

    def loss_fn(params, batch):
        jax.debug.callback(lambda tokens: seen.append(np.asarray(tokens)), batch["tokens"])
        x = params["w"][...] * jnp.where(batch["targets"] == 150, at, 1.0)
        return (function(x) * batch["loss_weights"]).sum(), {}

    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    config = tiny.config(length=1, log_every=100, checkpoint_every=10)
    told = rf"{name} at step (\d+); lower config.optimizer.learning_rate .*; the step's batch is kept in (\S+)"
    with pytest.raises(UserError, match=told) as error:
        loop.fit(tmp_path, config, mesh, params_of(mesh), loss_fn, examples(320))
    (path,) = (tmp_path / "nan").iterdir()
    assert str(path) in str(error.value)
    kept = dict(np.load(path))
    assert set(kept) == {"tokens", "targets", "loss_weights", "segment_ids"}
    assert 150 in kept["targets"] and kept["tokens"].shape == (8, 1)
    number = int(path.stem.removeprefix("step-"))
    np.testing.assert_array_equal(seen[number - 1], kept["tokens"])
    # It was found some steps later, and nothing was saved since.
    assert number < len(seen) <= number + faults.LAG + 1
    assert all(int(saved.name) < number for saved in (tmp_path / "checkpoints").iterdir())


def test_the_summary_of_a_run_that_was_killed_after_its_last_checkpoint(tiny, tmp_path):
    mesh, config = make_mesh((1, 1, 1), jax.devices()[:1]), tiny.config(length=1, log_every=3)
    loss_fn = lambda params, batch: ((params["w"][...] * batch["tokens"] * batch["loss_weights"]).sum(), {})  # noqa: E731
    runs = [loop.fit(tmp_path, config, mesh, params_of(mesh), loss_fn, examples(40))[1] for _ in range(2)]
    assert runs[0] == runs[1] and "loss" in runs[0]


@pytest.fixture
def disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_while_a_checkpoint_is_written(tiny, disk, tmp_path):
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    config = tiny.config(length=1, checkpoint_every=2)

    def fit(workdir):
        noise = jax.random.normal(jax.random.key(0), (20_000,))  # 80 kB that do not compress
        params = jax.tree.map(lambda _: noise, params_of(mesh, len(noise)))
        loss_fn = lambda params, batch: ((params["w"][...].sum() * batch["tokens"] * batch["loss_weights"]).sum(), {})  # noqa: E731
        return loop.fit(workdir, config, mesh, params, loss_fn, examples(80))[0]["w"][...]

    (disk / "ballast").write_bytes(bytes(2**20 - 230_000))
    with pytest.raises(Exception, match="No space left") as error:  # noqa: PT011 (whose class is TensorStore's)
        fit(disk / "run")
    assert "the disk is full (No space left on device); what was written before is whole" in errors.full_disk(error.value)
    saved = [path.name for path in (disk / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved and "10" not in saved
    (disk / "ballast").unlink()
    np.testing.assert_array_equal(fit(disk / "run"), fit(tmp_path / "whole"))


def test_a_full_disk_while_metrics_are_written(disk):
    with pytest.raises(OSError, match="No space left") as error, MetricsWriter(disk) as writer:  # noqa: PT012
        writer.write(1, {"loss": 1.0})
        (disk / "ballast").write_bytes(bytes(2**20 - 3 * 4096))
        for step in range(2, 10_000):
            writer.write(step, {"loss": 1.0})
    assert errors.full_disk(error.value)
    (disk / "ballast").unlink()
    with MetricsWriter(disk, resume_step=20) as writer:
        assert writer.last == {"loss": 1.0}
    steps = [json.loads(line)["step"] for line in (disk / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))


def test_other_errors_are_no_full_disk():
    assert errors.full_disk(OSError(2, "No such file")) is None and errors.full_disk(ValueError("full")) is None
