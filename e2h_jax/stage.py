"""What every stage shares: finding its code, and the folder it works in.

A stage is a module with a docstring, `defaults() -> ConfigDict` and `run(config, workdir: Path) -> dict` (its summary).
Around `run`, `execute` keeps these files in the stage's folder:

    config.json    what was asked for: stage, config and its fingerprint; written before the stage starts
    done.json      what came of it: summary and seconds; there only when the stage has finished
    seconds.json   seconds of earlier, interrupted runs (a run ended by kill -9 is not counted)
    metrics.jsonl  of a stage that logs nothing while it runs, the numbers of its summary; tensorboard/ the same
    wandb/         what Weights & Biases keeps, if asked for
    .compiled/     programs compiled for accelerators (in a recipe, for all of its stages): only time is lost with it
    .examples/     on several hosts: tokenised data, while sft or reward is training
    .lock          held while a process works here, so that no second one does; the lock dies with its process

A finished folder is not run again; an unfinished one is resumed by the stage; one with another config is refused,
unless the stage has not written anything into it yet (its first start was refused for a mistake in the config, say).
"""

import contextlib
import errno
import fcntl
import importlib
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from e2h_jax.config import check_fields, differences, fingerprint, plain, substitute
from e2h_jax.data.storage import write_json
from e2h_jax.errors import UserError, nearest
from e2h_jax.metrics import wandb_run, write_summary
from e2h_jax.parallel import hosts

OWN_FILES = {"config.json", "done.json", "seconds.json", "wandb", ".lock", ".compiled", ".examples"}
ONE_HOST = {"prepare", "convert", "labels", "evaluate"}  # stages without a mesh: of several hosts the first one does it all

STAGES = {
    "prepare": "e2h_jax.data.prepare",
    "convert": "e2h_jax.models.convert",
    "sft": "e2h_jax.algorithms.sft",
    "reward": "e2h_jax.algorithms.reward_model",
    "rest_em": "e2h_jax.algorithms.rest_em",
    "dpo": "e2h_jax.algorithms.dpo",
    "ppo": "e2h_jax.algorithms.ppo",
    "sample": "e2h_jax.sampling.sample",
    "labels": "e2h_jax.rewards.labels",
    "score": "e2h_jax.rewards.score",
    "evaluate": "e2h_jax.evaluation.evaluate",
    "recipe": "e2h_jax.recipe",
}


def load(stage: str) -> ModuleType:
    """Imports a stage's module, and with it whatever it needs: JAX, for most.

    Raises:
      UserError: there is no such stage.
    """
    if stage not in STAGES:
        raise UserError(f'there is no stage "{stage}"{nearest(stage, STAGES)}; the stages are {", ".join(STAGES)}.')
    return importlib.import_module(STAGES[stage])


def execute(
    stage: str,
    config: ConfigDict,
    workdir: str | Path,
    *,
    run: str | None = None,
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs a stage in `workdir`, or returns its summary at once if it has finished there with this config.

    Args:
      config: already checked by `check_config`.
      run: within a recipe, its folder: takes the place of `{run}` in the config's strings. config.json and the
        fingerprint keep `{run}`, so a recipe's folder can be moved.
      inputs: within a recipe, the stages whose files this one reads, and which run of theirs made them; goes to
        config.json.

    Returns:
      the stage's summary.

    Raises:
      UserError: the folder holds another stage or another config, is in use, or the stage says so.
    """
    module = load(stage)
    folder = Path(workdir)
    hosts.start()
    first = hosts.process_index() == 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror.lower()}.") from None
    if "jax" in sys.modules:
        from e2h_jax.parallel import mesh

        mesh.keep_programs(folder / ".compiled")
    with _lock(folder):
        check_folder(stage, config, folder)
        # A recipe looks at each of its stages every time, so it is never finished as a whole.
        if stage != "recipe" and (done := read_json(folder / "done.json")):
            print(f"{folder}: {stage} is done already, skipped (to run it again, delete the folder)")
            return done["metrics"]
        hosts.wait(f"{folder} begun")  # what all have looked at must not change before
        identity = {"stage": stage, "fingerprint": fingerprint(config)}
        if first:
            asked = identity | {"inputs": dict(inputs or {}), "config": plain(config)}
            write_json(folder / "config.json", asked)
        earlier = 0.0 if stage == "recipe" else (read_json(folder / "seconds.json") or {"seconds": 0.0})["seconds"]
        began = time.perf_counter()
        try:
            metrics = {}
            logged = first and stage != "recipe"  # a recipe's stages are, each on its own
            with wandb_run(stage, plain(config), folder) if logged else contextlib.nullcontext():
                if first or stage not in ONE_HOST:
                    metrics = plain(module.run(substitute(config, run) if run is not None else config, folder), "summary")
                if logged:
                    write_summary(folder, metrics)
        except BaseException:
            if first and stage != "recipe":
                with contextlib.suppress(OSError):  # a full disk, say: what is wrong is told by what is raised
                    write_json(folder / "seconds.json", {"seconds": earlier + time.perf_counter() - began})
            raise
        hosts.wait(f"{folder} finished")  # done.json must not appear while another host still writes its shard
        if first:
            seconds = round(earlier + time.perf_counter() - began, 3)
            outcome = {"run": uuid.uuid4().hex, "seconds": seconds, "metrics": metrics}
            write_json(folder / "done.json", identity | outcome)
            (folder / "seconds.json").unlink(missing_ok=True)
        hosts.wait(f"{folder} done")  # nor may another host take up the next stage before
    return metrics


def check_folder(stage: str, config: ConfigDict, workdir: str | Path) -> None:
    """Raises UserError, showing the difference, if `workdir` holds another stage's run or one with another config."""
    asked = read_json(Path(workdir) / "config.json")
    if asked is None or _is_untouched(Path(workdir)):
        return
    if asked["stage"] != stage:
        raise UserError(f'{workdir} holds a run of "{asked["stage"]}"; give "{stage}" another --workdir.')
    if stage != "recipe" and asked["fingerprint"] != fingerprint(config):
        changes = differences(asked["config"], plain(config))
        shown = "; ".join(changes[:6]) + (f"; and {len(changes) - 6} more" if len(changes) > 6 else "")
        raise UserError(f"{workdir} holds a run with another config ({shown}): use another --workdir, or delete it.")


def _is_untouched(folder: Path) -> bool:
    """Whether nothing has come of the run in `folder`: it is not finished and has written no file."""
    return not (folder / "done.json").exists() and not any(
        path.is_file() and path.relative_to(folder).parts[0] not in OWN_FILES for path in folder.rglob("*")
    )


def check_config(stage: str, config: ConfigDict, prefix: str = "config") -> None:
    """Raises UserError unless `config` fits the stage (rules: top of config.py); `prefix` is its name."""
    module = load(stage)
    # A recipe's fields depend on the stages it lists, so it checks itself.
    if stage == "recipe":
        module.check(config)
    else:
        check_fields(config, module.defaults(), prefix)


def read_json(path: Path) -> Any:
    """The document in `path`, or None if there is no such file; UserError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{path} is damaged; delete its folder and run again.") from None


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps other processes out of `folder`. The kernel frees the lock when the process ends, by kill -9 too."""
    if hosts.process_index() > 0:
        yield
        return
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            # A POSIX lock, not flock: worker processes do not inherit it, so one that outlives its parent is in
            # nobody's way.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                raise UserError(f"{folder} is in use by another e2h process ({file.read().strip()}).") from None
            # A file system without locks: nothing keeps a second process out, but one works.
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()}\n")
            file.flush()
        yield
