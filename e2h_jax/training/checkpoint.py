"""Training checkpoints: one Orbax save holds parameters, optimiser, step and the Grain iterator.

A checkpoint is a flat {path: array} mapping, so it restores on another mesh by handing Orbax the new shardings.
Saves are asynchronous and become visible only when complete; a killed run resumes from the last complete one.
"""

import json
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


class _IteratorState:
    """Lets Orbax store a Grain iterator's position inside the checkpoint.

    Every process is at the same global batch, and `data/batches.py` counts in those: one file serves any number of processes.
    """

    def __init__(self, iterator):
        self._iterator = iterator

    async def save(self, directory):
        state = json.dumps(self._iterator.get_state())

        async def write():
            folder = await directory.await_creation()
            if jax.process_index() == 0:
                Path(folder / "iterator.json").write_text(state)

        return write()

    async def load(self, directory):
        async def read():
            self._iterator.set_state(json.loads(Path(directory / "iterator.json").read_text()))

        return read()


def flatten(state: Any) -> dict[str, jax.Array]:
    """{tree path: leaf} of any pytree."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


class Checkpoints:
    """The checkpoints of one training run, in `folder`; keeps the newest `keep`."""

    def __init__(self, folder: Path, keep: int = 2):
        self._checkpointer = ocp.training.Checkpointer(
            Path(folder).absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # the loop decides when
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """Training step of the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Any, iterator=None) -> None:
        """Starts a save; returns once the state is copied off the devices, before it is on disk."""
        data = {} if iterator is None else {"data": _IteratorState(iterator)}
        self._checkpointer.save_checkpointables_async(step, {"state": flatten(state)} | data)

    def restore(self, state: Any, iterator=None) -> Any:
        """Loads the newest checkpoint into the shapes and shardings of `state`, and moves `iterator` to its position."""
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in flatten(state).items()
        }
        data = {} if iterator is None else {"data": _IteratorState(iterator)}
        loaded = self._checkpointer.load_checkpointables(abstract_checkpointables={"state": abstract} | data)
        leaves = [loaded["state"][name] for name in flatten(state)]
        return jax.tree.unflatten(jax.tree.structure(state), leaves)
