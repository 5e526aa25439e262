"""The one training loop, used by every algorithm that takes gradient steps on batches from a Grain dataset.

Same seed and data, same parameters, bit for bit, also when the run is killed and resumed; on any mesh up to rounding.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from e2h_jax.data.batches import Example, packed_batches
from e2h_jax.data.parts import about, choose
from e2h_jax.data.storage import check_same
from e2h_jax.errors import UserError
from e2h_jax.metrics import MetricsWriter
from e2h_jax.models import store
from e2h_jax.parallel.checks import check_hosts
from e2h_jax.parallel.chosen import begun_with
from e2h_jax.parallel.compilation import clock
from e2h_jax.parallel.devices import free_memory
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.programs import Program, Unit
from e2h_jax.parallel.progress import Estimate
from e2h_jax.parallel.rules import axis_size, batch_sharding, constrain, state_shardings
from e2h_jax.parallel.shapes import device_bytes, is_abstract, made
from e2h_jax.training import optimizer as optimizers
from e2h_jax.training.checkpoint import Checkpoints
from e2h_jax.training.faults import FiniteCheck, interrupts, stop

Batch = dict[str, jax.Array]
# loss_fn(params, batch) -> (loss, sums to log); batch weights are normalised, so both are sums over its tokens
LossFn = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]


def defaults() -> ml_collections.ConfigDict:
    """Fields that every training stage has."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.mesh = (1, -1, 1)  # devices along (data, fsdp, tensor); -1 = all the rest
    config.epochs = 1  # passes over the data
    config.length = 1024  # tokens per packed row
    config.batch_size = 128  # packed rows per optimiser step, over all devices
    config.microbatches = 1  # gradient accumulation: the batch is cut into this many parts; 0 = as few as memory allows
    config.remat = ""  # what the backward pass recomputes: none | dots | full, see models/llama.py; "" = the model's own
    config.optimizer = optimizers.defaults()
    config.log_every = 10  # steps
    config.checkpoint_every = 500  # steps; a killed run loses at most these
    return config


def mesh_of(config: ml_collections.ConfigDict, width: int = 0) -> Mesh:
    """The mesh of a training stage's config, which divides the rows of a microbatch, for a model of this width."""
    return make_mesh(config.mesh, rows=(config.batch_size // max(1, config.microbatches),), width=width)


class TrainState(NamedTuple):
    """Everything that a training step changes."""

    step: jax.Array  # int32 scalar: optimiser steps taken
    params: Any  # nnx.State of float32 parameters
    opt_state: Any


def init_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A state at step 0 whose optimiser moments are laid out like their parameters; of shapes, its shapes."""
    shapes = jax.eval_shape(optimizer.init, params)
    replicated = NamedSharding(mesh, PartitionSpec())
    is_param = lambda leaf: hasattr(leaf, "get_metadata")  # noqa: E731
    shardings = jax.tree.map(
        lambda leaf: (state_shardings(mesh, leaf) if jax.tree.leaves(leaf) else leaf) if is_param(leaf) else replicated,
        shapes,
        is_leaf=is_param,  # a frozen parameter's moments are a Param without leaves
    )
    step = made(lambda: jnp.int32(0), replicated, abstract=is_abstract(params))
    return TrainState(step, params, made(optimizer.init, shardings, params))


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, state: TrainState, microbatches: int = 1, frozen: Any = None
) -> Callable:
    """Returns jitted `step(state, batch) -> (state, metrics)`; the old state's buffers are donated.

    The new state keeps the shardings of `state`: left to itself, the compiler writes the same layouts in other words
    (P() for P(None, None)), and the second step compiles all over again.

    The batch's `*weights` arrays are divided by their sum over the whole batch first: every loss is a mean over its weighted
    tokens, whatever the packing, the number of microbatches or devices.

    `frozen` is an nnx.State of parameters beside those of `state`, which `loss_fn` gets as one: nothing is kept or computed for
    them but the forward pass, and they are of any dtype.
    """

    def train_step(state: TrainState, batch: Batch, frozen: Any = None):
        batch = {name: constrain(array, "batch", *[None] * (array.ndim - 1)) for name, array in batch.items()}
        totals = {name: array.sum() for name, array in batch.items() if name.endswith("weights")}
        batch |= {name: batch[name] / jnp.maximum(total, 1e-6) for name, total in totals.items()}

        def whole(params):
            params = optimizers.stop_frozen(optimizer, params)
            return params if frozen is None else nnx.merge_state(frozen, params)

        gradient = jax.value_and_grad(lambda params, batch: loss_fn(whole(params), batch), has_aux=True)
        if microbatches == 1:
            (loss, sums), grads = gradient(state.params, batch)
        else:
            parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)

            def accumulate(total, part):
                part = {name: constrain(x, "batch", *[None] * (x.ndim - 1)) for name, x in part.items()}
                return jax.tree.map(jnp.add, total, gradient(state.params, part)), None

            first = jax.tree.map(lambda x: x[0], parts)
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, state.params, first))
            ((loss, sums), grads), _ = jax.lax.scan(accumulate, zeros, parts)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        counts = {name.replace("weights", "tokens"): total for name, total in totals.items()}  # trained on in this batch
        tokens = jnp.count_nonzero(batch["segment_ids"])  # without padding
        counts |= {"tokens": tokens, "padding": 1 - tokens / batch["segment_ids"].size}
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **sums, **counts}
        return TrainState(state.step + 1, params, opt_state), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
    return step if frozen is None else functools.partial(step, frozen=frozen)


def train(
    *,
    workdir: Path,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    state: TrainState,
    train_step: Callable,
    dataset,
    steps: int,
) -> tuple[TrainState, dict[str, float]]:
    """Runs `steps` optimiser steps, resuming from the newest checkpoint in `workdir/checkpoints`.

    Args:
      dataset: a Grain IterDataset of this process's batches, at least `steps` of them.

    Returns:
      the final state and a summary (last logged metrics, tokens per second).

    Raises:
      UserError: a loss or a gradient is not finite.
      KeyboardInterrupt, SystemExit: after saving, when Ctrl-C or SIGTERM arrived.
    """
    sharding = batch_sharding(mesh)
    iterator = iter(dataset)
    with interrupts() as interrupted, Checkpoints(workdir / "checkpoints") as checkpoints:
        start, state = checkpoints.restore(state, iterator)
        writer = MetricsWriter(workdir, resume_step=start, enabled=jax.process_index() == 0)
        bar = tqdm(total=steps, initial=start, unit="step", desc=workdir.name, disable=jax.process_index() > 0)
        last: dict[str, float] = writer.last
        tokens, began = [0], clock()  # their sum is the number of tokens trained on; the last are on the device
        pending, finite = None, FiniteCheck(workdir)  # metrics are read one step late, so the device never waits for the host
        estimate = Estimate(bar)
        with writer, bar:
            for step in range(start + 1, steps + 1):
                own = next(iterator)
                batch = {name: jax.make_array_from_process_local_data(sharding, array) for name, array in own.items()}
                state, metrics = train_step(state, batch)
                finite.add(step, metrics, own)
                if pending is not None:
                    finite.until(step - 1)
                    last = _log(writer, bar, *pending, tokens, began)
                    pending = None
                tokens.append(metrics["tokens"])
                if step == start + 1:  # waited for, as the next one is: the time between is a step's
                    jax.block_until_ready(metrics)
                    stepped = clock()
                elif not estimate.told:
                    jax.block_until_ready(metrics)
                    seconds = max(1e-9, clock() - stepped)
                    estimate.tell(seconds * (steps - step), int(metrics["tokens"]) / seconds)
                if step % config.log_every == 0 or step == steps:
                    pending = (step, metrics)
                bar.update()
                signal_number = interrupted()
                if step % config.checkpoint_every == 0 or step == steps or signal_number:
                    # First its metrics: a resumed run does not write them again, nor may it resume from a broken state.
                    finite.until(step)
                    if pending is not None:
                        last = _log(writer, bar, *pending, tokens, began)
                        pending = None
                    checkpoints.save(step, state, iterator)
                if signal_number:
                    break
    # The checkpoint is on disk. Also a signal that came during the last step, or while it was written, ends the stage.
    stop(interrupted(last=True))
    return state, last | {"steps": steps}


def _log(writer: MetricsWriter, bar: tqdm, step: int, metrics: Batch, tokens: list, began: float) -> dict[str, float]:
    """Logs a step that has ended; `tokens`: counts of all steps so far; they are summed in place."""
    values = {name: float(np.asarray(value)) for name, value in metrics.items() if name != "tokens"}
    tokens[:] = [sum(map(int, tokens))]
    values["tokens_per_second"] = rate = tokens[0] / (clock() - began)
    writer.write(step, values)
    bar.set_postfix_str(f"loss {values['loss']:.4f}, {rate:,.0f} tokens/s")
    return values


def fit_length(examples: Sequence[Example], length: int, too_long: str, max_length: int) -> tuple[Sequence[Example], int]:
    """Keeps the examples that fit into a row; returns them and how many were dropped.

    Raises UserError for one that does not with too_long = "error", and for positions beyond the model's `max_length`.
    """
    facts = about(examples)
    fits = facts["length"] <= length
    dropped = len(examples) - int(fits.sum())
    if too_long not in ("drop", "error"):
        raise UserError(f"config.too_long={too_long!r} must be drop or error")
    if dropped and too_long == "error":
        raise UserError(
            f"{dropped} of {len(examples)} examples are longer than config.length={length}, the longest has "
            f"{facts['length'].max()} tokens; raise it or set config.too_long=drop"
        )
    farthest = facts["reach"][fits].max(initial=0)
    if farthest > max_length:
        raise UserError(f"an example reaches position {farthest}, the model has {max_length}; lower config.length")
    return choose(examples, fits), dropped


def check_data(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for a limit, a way to treat long examples, or a dtype that makes no sense."""
    fit_length([], config.length, config.too_long, 0)
    store.check(config.dtype, "")
    if config.limit < 0:
        raise UserError("config.limit must be at least 0 (0 = all)")


def begun_dtype(workdir: Path, config: ml_collections.ConfigDict, model: Path | store.Described, mesh: Mesh) -> str:
    """See `store.begun_dtype`."""
    return store.begun_dtype(workdir, config.dtype, model, mesh, resumed=(workdir / "checkpoints").exists())


def own_rows(mesh: Mesh, rows: int) -> list[int]:
    """Which of a batch's rows lie on this process's devices, in order."""
    placed = batch_sharding(mesh).devices_indices_map((rows,))
    mine = [where for device, (where,) in placed.items() if device.process_index == jax.process_index()]
    return sorted({row for where in mine for row in range(*where.indices(rows))})


def _check_same_data(workdir: Path, examples: Sequence[Example]) -> None:
    """Keeps a digest of the examples beside the checkpoints; UserError when a resumed run would go on with other data."""
    digest = hashlib.blake2b(about(examples)["digest"].tobytes(), digest_size=16)
    data, resumed = {"examples": len(examples), "digest": digest.hexdigest()}, (Path(workdir) / "checkpoints").exists()
    first = jax.process_index() == 0
    check_same(Path(workdir) / "data.json", data, resumed=resumed, write=first, doing="training on other data")


def check(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises UserError for sizes below 1, a batch that the microbatches and the mesh do not divide, and a bad optimiser."""
    optimizers.check(config.optimizer)
    if config.get("seed", 0) < 0:  # ReST-EM and DPO fill in a seed per round
        raise UserError(f"config.seed={config.seed} must be at least 0")
    for name in ("epochs", "batch_size", "log_every", "checkpoint_every"):
        if config[name] < 1:
            raise UserError(f"config.{name}={config[name]} must be at least 1")
    if config.microbatches < 0:
        raise UserError(f"config.microbatches={config.microbatches} must be at least 0 (0 = as few as memory allows)")
    microbatches = max(1, config.microbatches)
    rows = microbatches * axis_size(mesh, "batch")
    if config.batch_size % rows:
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide by {rows} = config.microbatches "
            f"{microbatches} x {rows // microbatches} shards along (data, fsdp)"
        )
    check_hosts(mesh)


def fit(
    workdir: Path,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    params: Any,
    loss_fn: LossFn,
    examples: Sequence[Example],
    frozen: Any = None,
) -> tuple[Any, dict[str, float]]:
    """Trains `params` on packed `examples` for `config.epochs` epochs; returns the trained parameters and a summary.

    `frozen` parameters belong to the model and stay as they are, see `make_train_step`; checkpoints do not hold them.

    Raises UserError for sizes below 1, and a batch that the microbatches and the mesh do not divide.
    """
    check(config, mesh)
    _check_same_data(workdir, examples)
    dataset, steps = packed_batches(
        examples,
        length=config.length,
        batch_size=config.batch_size,
        seed=config.seed,
        epochs=config.epochs,
        own=own_rows(mesh, config.batch_size),
    )
    state, make_step = _begin(config, mesh, params, loss_fn, steps, frozen)
    if not (microbatches := config.microbatches):
        free = free_memory(mesh.local_devices[0], sharing=len(mesh.local_devices))
        batch = batch_shapes(examples[0] | {"segment_ids": np.zeros(0, np.int32)}, config.batch_size, config.length, mesh)
        microbatches = begun_with(workdir, "microbatches", lambda: fewest_microbatches(make_step, state, batch, mesh, free))
    train_step = make_step(microbatches)
    with jax.set_mesh(mesh):
        state, summary = train(
            workdir=workdir, config=config, mesh=mesh, state=state, train_step=train_step, dataset=dataset, steps=steps
        )
    return state.params, summary


def _begin(
    config: ml_collections.ConfigDict, mesh: Mesh, params: Any, loss_fn: LossFn, steps: int, frozen: Any
) -> tuple[TrainState, Callable]:
    """The state at step 0, and what makes a training step of a number of microbatches."""
    optimizer = optimizers.make_optimizer(config.optimizer, steps, params)
    with jax.set_mesh(mesh):
        state = init_state(params, optimizer, mesh)
    return state, lambda microbatches: make_train_step(loss_fn, optimizer, state, microbatches, frozen)


def fewest_microbatches(make_step: Callable, state: TrainState, batch: Batch, mesh: Mesh, free: float) -> int:
    """The fewest microbatches of a training step whose temporary arrays find room in `free` bytes of a device, by its compiler.

    They are the ones of a row each where no number does.
    """
    most = len(batch["tokens"]) // axis_size(mesh, "batch")  # rows of a shard
    for number in (number for number in range(1, most) if most % number == 0):
        step = make_step(number)
        function, keywords = (step.func, step.keywords) if isinstance(step, functools.partial) else (step, {})
        try:
            with jax.set_mesh(mesh):
                compiled = function.lower(state, batch, **keywords).compile()
        except jax.errors.JaxRuntimeError:  # the compiler refuses what does not fit
            continue
        if compiled.memory_analysis().temp_size_in_bytes <= free:
            return number
    return most


def programs(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    params: Any,
    loss_fn: LossFn,
    example: Example,
    steps: int,
    frozen: Any = None,
) -> Iterator[Program]:
    """The program of `fit`: its training step, for batches of examples that have the fields of `example`."""
    check(config, mesh)
    state, make_step = _begin(config, mesh, params, loss_fn, steps, frozen)
    batch = batch_shapes(example | {"segment_ids": np.zeros(0, np.int32)}, config.batch_size, config.length, mesh)
    if not (microbatches := config.microbatches):
        free = free_memory(mesh.devices.flat[0], described=True) - device_bytes((params, frozen, state.opt_state))
        microbatches = fewest_microbatches(make_step, state, batch, mesh, free)
    held = {"parameters": (params, frozen), "optimiser": state.opt_state}
    unit = Unit("step", config.batch_size * config.length)
    yield Program("train step", make_step(microbatches), (state, batch), mesh, held, unit)


def batch_shapes(fields: Mapping[str, np.ndarray], rows: int, length: int, mesh: Mesh) -> Batch:
    """Shapes [rows, length] of a batch that has arrays of these dtypes."""
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct((rows, length), array.dtype, sharding=sharding) for name, array in fields.items()}
