"""The training loop: the same curve on every mesh, in microbatches and in any packing; what it logs; what it refuses."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from e2h_jax.data.batches import packed_batches
from e2h_jax.errors import UserError
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.rules import batch_sharding
from e2h_jax.training import loop
from e2h_jax.training.optimizer import make_optimizer

ONE = "one device"


def mesh_of(shape):
    return make_mesh((1, 1, 1), jax.devices()[:1]) if shape == ONE else make_mesh(shape)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_device(tiny, tmp_path_factory):
    """The curve to compare with: five epochs on one device, 20 or more steps."""
    workdir = tmp_path_factory.mktemp("one")
    mesh = mesh_of(ONE)
    params, summary = loop.fit(workdir, tiny.config(epochs=5), mesh, tiny.params(mesh), tiny.loss_fn, tiny.examples)
    return lines(workdir), jax.tree.map(np.asarray, params), summary


@pytest.mark.parametrize(("shape", "microbatches"), [((2, 2, 2), 1), ((2, 1, 4), 4)])
def test_one_loss_curve_on_meshes_and_in_microbatches(tiny, one_device, tmp_path, shape, microbatches):
    expected, expected_params, _ = one_device
    mesh = mesh_of(shape)
    config = tiny.config(epochs=5, microbatches=microbatches)
    params, _ = loop.fit(tmp_path, config, mesh, tiny.params(mesh), tiny.loss_fn, tiny.examples)
    found = lines(tmp_path)
    assert len(found) == len(expected) >= 20
    for name in ("loss", "token_accuracy", "loss_tokens"):
        np.testing.assert_allclose([x[name] for x in found], [x[name] for x in expected], atol=1e-5, rtol=0)
    np.testing.assert_allclose([x["grad_norm"] for x in found], [x["grad_norm"] for x in expected], rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), jax.tree.map(np.asarray, params), expected_params)


def test_what_is_logged(tiny, one_device):
    found, params, summary = one_device
    assert [x["step"] for x in found] == list(range(1, summary["steps"] + 1))
    assert set(found[0]) == {
        "step", "time", "loss", "grad_norm", "token_accuracy", "loss_tokens", "padding", "tokens_per_second"
    }  # fmt: skip
    # Every weighted token of every example is counted once an epoch.
    assert sum(x["loss_tokens"] for x in found) == 5 * sum(float(e["loss_weights"].sum()) for e in tiny.examples)
    assert found[0]["loss"] == pytest.approx(np.log(16), abs=1.0)
    assert np.mean([x["loss"] for x in found[-4:]]) < 0.75 * found[0]["loss"]
    assert summary["loss"] == found[-1]["loss"]


@pytest.mark.parametrize("log_every", [1, 3])
def test_tokens_per_second_leaves_out_padding(tiny, tmp_path, monkeypatch, log_every):
    """By a clock that says two seconds whenever a step is logged."""
    mesh, config = mesh_of((2, 2, 2)), tiny.config(log_every=log_every, checkpoint_every=4)
    config.length = 32  # a third of the last batch and the ends of rows are padding
    dataset, steps = packed_batches(tiny.examples, length=32, batch_size=8, seed=0, epochs=1)
    tokens = np.array([np.count_nonzero(batch["segment_ids"]) for batch in dataset])
    assert len(tokens) == steps >= 3 and tokens.sum() == sum(len(example["tokens"]) for example in tiny.examples)
    clock = iter([10.0])
    monkeypatch.setattr(loop, "clock", lambda: next(clock, 12.0))
    summary = loop.fit(tmp_path, config, mesh, tiny.params(mesh), tiny.loss_fn, tiny.examples)[1]
    logged = lines(tmp_path)
    numbers = [line["step"] for line in logged]
    assert numbers == sorted({*range(log_every, steps + 1, log_every), steps})
    assert [2 * line["tokens_per_second"] for line in logged] == [tokens[:step].sum() for step in numbers]
    np.testing.assert_allclose([line["padding"] for line in logged], 1 - tokens[np.array(numbers) - 1] / (8 * 32), atol=1e-6)
    assert 2 * summary["tokens_per_second"] == tokens.sum() and "tokens" not in summary


@pytest.fixture(scope="module")
def stepping(tiny):
    """One compiled step on (2, 2, 2), its first state's maker and batches."""
    mesh = make_mesh((2, 2, 2))
    dataset, steps = packed_batches(tiny.examples, length=16, batch_size=8, seed=0, epochs=1)
    optimizer = make_optimizer(tiny.config().optimizer, steps, tiny.params(mesh))
    sharding = batch_sharding(mesh)
    batches = [{name: jax.device_put(array, sharding) for name, array in batch.items()} for batch in dataset]

    def start():
        return loop.init_state(tiny.params(mesh), optimizer, mesh)

    with jax.set_mesh(mesh):
        train_step = loop.make_train_step(tiny.loss_fn, optimizer, start())
    return mesh, train_step, start, batches


def test_one_compilation_and_shardings_that_stay(stepping):
    mesh, train_step, start, batches = stepping
    with jax.set_mesh(mesh):
        state = first = start()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, first)
        for batch in batches:
            state, _ = train_step(state, batch)
        assert train_step._cache_size() == 1
    assert jax.tree.leaves(shardings) == [leaf.sharding for leaf in jax.tree.leaves(state)]


def test_the_old_state_is_donated(stepping):
    mesh, train_step, start, batches = stepping
    with jax.set_mesh(mesh):
        old = start()
        new, _ = train_step(old, batches[0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state)))
    assert int(new.step) == 1


def test_the_loss_is_a_mean_over_weighted_tokens_whatever_the_packing(stepping, tiny):
    """The same eight examples one per row, and packed into few rows beside rows of padding."""
    mesh, train_step, start, _ = stepping
    examples = sorted(tiny.examples, key=lambda e: len(e["tokens"]))[:8]
    alone = {name: np.zeros((8, 16), array.dtype) for name, array in examples[0].items()}
    alone["segment_ids"] = np.zeros((8, 16), np.int32)
    packed = {name: array.copy() for name, array in alone.items()}
    row, used = 0, 0
    for index, example in enumerate(examples):
        size = len(example["tokens"])
        if used + size > 16:
            row, used = row + 1, 0
        for name, array in example.items():
            alone[name][index, :size] = array
            packed[name][row, used : used + size] = array
        alone["segment_ids"][index, :size] = 1
        packed["segment_ids"][row, used : used + size] = index + 1
        used += size
    assert row < 7
    results = []
    with jax.set_mesh(mesh):
        for batch in (alone, packed):
            _, metrics = train_step(start(), {k: jax.device_put(v, batch_sharding(mesh)) for k, v in batch.items()})
            results.append({name: float(value) for name, value in metrics.items()})
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], abs=1e-5)
    assert results[0]["grad_norm"] == pytest.approx(results[1]["grad_norm"], rel=1e-4)
    assert results[0]["loss_tokens"] == results[1]["loss_tokens"] == sum(e["loss_weights"].sum() for e in examples)


def test_as_few_microbatches_as_memory_allows_and_the_same_when_resumed(tiny, tmp_path, monkeypatch):
    """What a step needs beside its arguments is the compiler's word; with little memory the shards' rows go one by one."""
    mesh, found = make_mesh((1, 1, 1), jax.devices()[:1]), []
    steps = {}

    def make(*arguments):
        steps[arguments[3]] = make_train_step(*arguments)
        return steps[arguments[3]]

    make_train_step = loop.make_train_step
    monkeypatch.setattr(loop, "make_train_step", make)
    data = mesh, tiny.params(mesh), tiny.loss_fn
    fields = {"length": 64, "batch_size": 8}
    config = tiny.config(microbatches=0, **fields)
    for name, free in (("much", 1e12), ("little", 1), ("little", 1e12)):
        steps.clear()
        monkeypatch.setattr(loop, "free_memory", lambda device, free=free, **_: free)
        loop.fit(tmp_path / name, config, mesh, tiny.params(mesh), tiny.loss_fn, tiny.examples)
        found.append((list(steps)[-1], len(steps)))
    assert found == [(1, 1), (8, 4), (8, 1)]  # of 1, 2, 4 and 8
    needed = {}
    for number in (1, 4):
        (program,) = loop.programs(tiny.config(microbatches=number, **fields), *data, tiny.examples[0], 10)
        needed[number] = program.trace().lower().compile().memory_analysis().temp_size_in_bytes
    monkeypatch.setattr(loop, "free_memory", lambda device, **_: (needed[1] + needed[4]) / 2)
    loop.fit(tmp_path / "some", config, *data, tiny.examples)
    assert list(steps)[-1] in (2, 4)
    assert json.loads((tmp_path / "some" / "chosen.json").read_text()) == {"microbatches": list(steps)[-1]}


def linear(examples=16):
    """A one-parameter model, for what needs no network: compiles at once. Example i has target i."""
    return [
        {"tokens": np.array([i], np.float32), "targets": np.array([i], np.float32), "loss_weights": np.ones(1, np.float32)}
        for i in range(examples)
    ]


def linear_params(mesh):
    return jax.device_put(nnx.State({"w": nnx.Param(jnp.ones((1,)), axes=(None,))}), NamedSharding(mesh, P()))


def linear_loss(params, batch):
    return (jnp.square(batch["tokens"] * params["w"][...]) * batch["loss_weights"]).sum(), {}


@pytest.mark.parametrize("when", ["logged", "not logged", "last"])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_never_kept(tiny, tmp_path, when):
    examples = linear()

    def loss_fn(params, batch):  # the parameter survives, so only the loss tells
        loss, sums = linear_loss(params, batch)
        return loss + jnp.where((batch["targets"] == 15).any(), jnp.nan, 0.0), sums

    mesh = make_mesh((1, 8, 1))
    config = tiny.config(
        length=1,
        epochs=1 if when == "last" else 2,
        log_every=1 if when == "logged" else 100,
        checkpoint_every=1,
        seed=next(s for s in range(50) if _step_of(examples, 15, s) == 2),
    )
    for _ in range(2):  # run again, it does not take up from a broken state, nor finish
        with pytest.raises(UserError, match=r"the loss is nan at step 2; lower config\.optimizer\.learning_rate"):
            loop.fit(tmp_path, config, mesh, linear_params(mesh), loss_fn, examples)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert all(x["step"] < 2 for x in lines(tmp_path))


def _step_of(examples, target, seed):
    dataset, _ = packed_batches(examples, length=1, batch_size=8, seed=seed, epochs=1)
    return next(step for step, batch in enumerate(dataset, start=1) if target in batch["targets"])


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("at", [2, 4])
def test_a_signal_saves_and_ends_the_run_also_at_its_last_step(tiny, tmp_path, monkeypatch, number, error, at):
    examples, mesh, config = linear(), make_mesh((1, 8, 1)), tiny.config(length=1, epochs=2, checkpoint_every=3, log_every=2)
    whole, _ = loop.fit(tmp_path / "whole", config, mesh, linear_params(mesh), linear_loss, examples)

    make = loop.make_train_step

    def signalling(*arguments):
        step = make(*arguments)

        def wrapped(state, batch):
            if int(state.step) + 1 == at:
                os.kill(os.getpid(), number)
            return step(state, batch)

        return wrapped

    monkeypatch.setattr(loop, "make_train_step", signalling)
    handler = signal.getsignal(number)
    with pytest.raises(error) as raised:
        loop.fit(tmp_path / "cut", config, mesh, linear_params(mesh), linear_loss, examples)
    assert number != signal.SIGTERM or raised.value.code == 143
    assert signal.getsignal(number) is handler
    assert (tmp_path / "cut" / "checkpoints" / str(at)).is_dir()
    monkeypatch.setattr(loop, "make_train_step", make)
    params, _ = loop.fit(tmp_path / "cut", config, mesh, linear_params(mesh), linear_loss, examples)
    np.testing.assert_array_equal(params["w"][...], whole["w"][...])
    strip = lambda found: [{k: v for k, v in x.items() if k not in ("time", "tokens_per_second")} for x in found]  # noqa: E731
    assert strip(lines(tmp_path / "cut")) == strip(lines(tmp_path / "whole"))
    assert [x["step"] for x in lines(tmp_path / "cut")] == [2, 4]


def test_old_checkpoints_go(tiny, tmp_path):
    config = tiny.config(length=1, epochs=3, checkpoint_every=1)
    mesh = make_mesh((1, 8, 1))
    loop.fit(tmp_path, config, mesh, linear_params(mesh), linear_loss, linear())
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [5, 6]


def test_examples_that_do_not_fit():
    examples = [{"tokens": np.zeros(n), "positions": np.arange(n)} for n in (3, 9, 4, 5)]
    kept, dropped = loop.fit_length(examples, 4, "drop", 512)
    assert [len(e["tokens"]) for e in kept] == [3, 4] and dropped == 2
    assert loop.fit_length(examples, 9, "error", 512) == (examples, 0)
    with pytest.raises(UserError, match=r"2 of 4 examples are longer than config\.length=4, the longest has 9 tokens"):
        loop.fit_length(examples, 4, "error", 512)
    with pytest.raises(UserError, match=r"reaches position 9, the model has 8"):
        loop.fit_length(examples, 9, "drop", 8)
    with pytest.raises(UserError, match=r"too_long='eror' must be drop or error"):
        loop.fit_length(examples, 9, "eror", 512)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"batch_size": 6}, r"config\.batch_size=6 does not divide by 8"),
        ({"batch_size": 8, "microbatches": 2}, r"config\.batch_size=8 does not divide by 16"),
        ({"microbatches": -1}, r"config\.microbatches=-1 must be at least 0 \(0 = as few as memory allows\)"),
        ({"epochs": 0}, r"config\.epochs=0"),
        ({"batch_size": -8}, r"config\.batch_size=-8"),
        ({"length": 0}, r"config\.length"),
    ],
)
def test_sizes_that_do_not_fit(tiny, tmp_path, fields, sentence):
    config = tiny.config(**({"length": 1} | fields))
    mesh = make_mesh((1, 8, 1))
    with pytest.raises(UserError, match=sentence):
        loop.fit(tmp_path, config, mesh, linear_params(mesh), linear_loss, linear())


def test_an_interrupted_run_is_not_resumed_on_other_data(tiny, tmp_path):
    examples, mesh, config = linear(), make_mesh((1, 8, 1)), tiny.config(length=1, epochs=1)
    loop.fit(tmp_path, config, mesh, linear_params(mesh), linear_loss, examples)
    other = [example | {"tokens": example["tokens"] + 1} for example in examples]
    with pytest.raises(UserError, match=r"was interrupted while training on other data"):
        loop.fit(tmp_path, config, mesh, linear_params(mesh), linear_loss, other)
