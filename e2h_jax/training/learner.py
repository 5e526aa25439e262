"""A model that learns from a varying number of equal microbatches: the optimiser's side of reinforcement learning.

Rollouts have different lengths, so that the rows of a minibatch, packed, are never as many twice. Microbatches of one fixed
shape are accumulated one after the other and applied once: two programs, whatever comes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e2h_jax.parallel.programs import Program, Unit
from e2h_jax.parallel.rules import batch_sharding
from e2h_jax.parallel.shapes import placed
from e2h_jax.training import optimizer as optimizers
from e2h_jax.training.loop import Batch, TrainState, init_state


def to_device(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Rows of a batch that every process holds whole, cut over the mesh's batch axes."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(array.shape, sharding, lambda index, array=array: array[index])
        for name, array in batch.items()
    }


class Learner:
    """Parameters, optimiser state and programs of one model on one mesh.

    Args:
      loss_fn: (params, microbatch) -> (loss, sums to log); both are sums over the microbatch's tokens, whose weights the
        caller has normalised over the whole minibatch.
      params: what is trained, nnx.State of float32. The learner owns it: its buffers are donated at the first update. With
        shapes in their place, `programs` tells what would run.
      frozen: the rest of the model (LoRA), None without.
    """

    def __init__(
        self,
        loss_fn: Callable[[Any, dict], tuple[jax.Array, dict]],
        optimizer: optax.GradientTransformation,
        params: nnx.State,
        frozen: nnx.State | None,
        mesh: Mesh,
    ):
        self.mesh, self.frozen = mesh, frozen
        with jax.set_mesh(mesh):
            self.state = init_state(params, optimizer, mesh)
        at = lambda tree: jax.tree.map(lambda leaf: leaf.sharding, tree)  # noqa: E731
        replicated = NamedSharding(mesh, PartitionSpec())

        def accumulate(params, frozen, total, batch):
            whole = lambda params: merged(optimizers.stop_frozen(optimizer, params), frozen)  # noqa: E731
            gradient = jax.value_and_grad(lambda params: loss_fn(whole(params), batch), has_aux=True)
            (loss, sums), grads = gradient(params)
            return jax.tree.map(jnp.add, total, grads), sums | {"loss": loss}

        def apply(state: TrainState, grads, step):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=step)
            params = optax.apply_updates(state.params, updates)
            return TrainState(state.step + 1, params, opt_state), optax.tree.norm(grads)

        shardings = at(self.state)
        self._zeros = jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params), out_shardings=shardings.params)
        self._accumulate = jax.jit(accumulate, donate_argnums=2, out_shardings=(shardings.params, replicated))
        self._apply = jax.jit(apply, donate_argnums=0, out_shardings=(shardings, replicated))

    @property
    def params(self) -> nnx.State:
        """All parameters of the model as they are now, frozen ones included."""
        return merged(self.state.params, self.frozen)

    def update(self, microbatches: Iterable[Mapping[str, np.ndarray]], step: int) -> dict[str, jax.Array]:
        """One optimiser step on the sum of the microbatches' gradients; returns the sums of what they log, not waited for.

        `step`: of the run, from 0; it says where the learning rate's schedule is, whatever the number of updates until then.
        """
        with jax.set_mesh(self.mesh):
            grads, totals = self._zeros(self.state.params), {}
            for batch in microbatches:
                grads, sums = self._accumulate(self.state.params, self.frozen, grads, to_device(self.mesh, batch))
                totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
            self.state, norm = self._apply(self.state, grads, np.int32(step))
        return totals | {"grad_norm": norm}

    def programs(
        self, name: str, batch: Batch, held: Mapping[str, Any], unit: Unit, updates: int, microbatches: float
    ) -> Iterator[Program]:
        """The programs of `update`, for `updates` a unit of so many microbatches of the shape of `batch`.

        `held` is what lies on the devices besides the gradients.
        """
        state, shardings = self.state, jax.tree.map(lambda leaf: leaf.sharding, self.state.params)
        grads = placed(state.params, shardings)
        held = {**held, "gradients": grads}
        accumulated = (state.params, self.frozen, grads, batch)
        yield Program(f"{name} gradient", self._accumulate, accumulated, self.mesh, held, unit, updates * microbatches)
        yield Program(f"{name} update", self._apply, (state, grads, np.int32(0)), self.mesh, held, unit, updates)


def merged(params: nnx.State, frozen: nnx.State | None) -> nnx.State:
    """Trained and frozen parameters of one model as one state."""
    return params if frozen is None else nnx.merge_state(frozen, params)
