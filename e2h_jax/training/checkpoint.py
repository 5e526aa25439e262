"""Training checkpoints: one Orbax save holds parameters, optimiser, step and the Grain iterator.

A checkpoint is a flat {path: array} mapping, so it restores on another mesh by handing Orbax the new shardings.
Saves are asynchronous and become visible only when complete; a killed run resumes from the last complete one, and from the one
before when that cannot be read.
"""

import json
import shutil
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from e2h_jax.errors import UserError
from e2h_jax.parallel import hosts


class _Later:
    """An awaitable for Orbax. A coroutine object would warn if it were never awaited, as after a failed save."""

    def __init__(self, function: Callable[[], Coroutine]):
        self._function = function

    def __await__(self):
        return self._function().__await__()


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

        return _Later(write)

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
        self._folder = Path(folder).absolute()
        self._newest = 0  # step of the newest save, which may not be on disk yet
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # the loop decides when
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._checkpointer.close()

    def save(self, step: int, state: Any, iterator=None) -> None:
        """Starts a save; returns once the state is copied off the devices, before it is on disk."""
        data = {} if iterator is None else {"data": _IteratorState(iterator)}
        self._newest = step
        self._checkpointer.save_checkpointables_async(step, {"state": flatten(state)} | data)

    def steps(self) -> set[int]:
        """The steps from which the run may be resumed: of the checkpoints on disk, and of the one that is being written."""
        steps = {int(path.name) for path in self._folder.glob("*") if path.name.isdigit()}
        return steps | ({self._newest} if self._newest else set())

    def restore(self, state: Any, iterator=None) -> tuple[int, Any]:
        """Loads the newest checkpoint that can be read into the shapes and shardings of `state`, and moves `iterator` there.

        Damaged ones are moved to `checkpoints-damaged/` beside the folder, which is said on stderr.

        Returns:
          the step of the checkpoint and what it holds; 0 and `state` where there is no checkpoint yet.

        Raises:
          UserError: the checkpoints are of another model, or none of them can be read.
        """
        steps = [checkpoint.step for checkpoint in reversed(self._checkpointer.checkpoints)]
        errors = []
        for step in steps:
            loaded, error = None, None
            try:
                loaded = self._load(step, state, iterator)
            except UserError:
                raise
            except Exception as exception:  # Orbax and TensorStore have no class for damage
                error = exception
            if _everywhere(error is None):
                self._move_aside(steps[: len(errors)], errors)
                return step, loaded
            errors.append(error)
        if steps:
            raise UserError(
                f"no checkpoint in {self._folder} can be read ({_reason(errors[0])}): restore the folder from a copy, or "
                "delete it to start from the beginning"
            ) from errors[0]
        return 0, state

    def _load(self, step: int, state: Any, iterator) -> Any:
        flat = flatten(state)
        abstract = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in flat.items()}
        found = self._checkpointer.checkpointables_metadata(step).metadata["state"]
        if found is None:
            raise ValueError("the list of its arrays is damaged")
        if {name: leaf.shape for name, leaf in found.items()} != {name: leaf.shape for name, leaf in abstract.items()}:
            raise UserError(f"{self._folder}/{step} is a checkpoint of another model or optimiser; use another --workdir")
        loaded = self._checkpointer.load_checkpointables(step, abstract_checkpointables={"state": abstract})
        if iterator is not None:  # not together: where the state is damaged, Orbax would leave coroutines of this behind
            self._checkpointer.load_checkpointables(step, abstract_checkpointables={"data": _IteratorState(iterator)})
        return jax.tree.unflatten(jax.tree.structure(state), [loaded["state"][name] for name in flat])

    def _move_aside(self, steps: list[int], errors: list[Exception | None]) -> None:
        if not steps:
            return
        for step, error in zip(steps, errors, strict=True):
            aside = self._folder.with_name(f"{self._folder.name}-damaged") / str(step)
            reason = _reason(error) if error else "not by every process"
            print(f"e2h: the checkpoint of step {step} cannot be read ({reason}); it is now {aside}", file=sys.stderr)
            if jax.process_index() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(aside)
        hosts.wait("damaged checkpoints moved aside")
        self._checkpointer.reload()


def _everywhere(right: bool) -> bool:
    """Whether it is right on all processes of the job."""
    return bool(np.all(multihost_utils.process_allgather(np.array(right)))) if jax.process_count() > 1 else right


def _reason(error: BaseException) -> str:
    """The first words of the error that began it."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return " ".join(str(error).split())[:200] or type(error).__name__
