"""What every stage shares: finding its code, and the folder it works in.

A stage is a module with a docstring, `defaults() -> ConfigDict` and `run(config, workdir: Path) -> dict` (its summary).
Around `run`, `execute` keeps these files in the stage's folder:

    config.json    what was asked for: stage, config and its fingerprint, written before the stage starts; `beside`: what was in
                   the folder before; `taken_up`: the config as a later version has it
    done.json      what came of it: summary, seconds and outputs; there only when the stage has finished
    seconds.json   seconds of earlier, interrupted runs (a run ended by kill -9 is not counted)
    chosen.json    what the stage chose for the machine it began on ("" or 0 in its config), and keeps when it is resumed
    metrics.jsonl  of a stage that logs nothing while it runs, the numbers of its summary; tensorboard/ the same
    wandb/         what Weights & Biases keeps, if asked for
    .compiled/     programs compiled for accelerators (in a recipe, for all of its stages): only time is lost with it; for CPUs
                   they are in a folder of the user's (parallel/compilation.py)
    .examples/     on several hosts: tokenised data, while sft or reward is training
    .lock          held while a process works here, so that no second one does; the lock dies with its process

A finished folder is not run again, and refused when what the stage wrote has been deleted; an unfinished one is resumed by the
stage; one with another config is refused. A start that the stage refuses, with a UserError before the first line of metrics,
leaves the folder as it was, so that the mistake can be mended there.

Folders of an older version are taken up where the config is the same but for fields that are new since then and have their
defaults; which fields is printed. A field that has gone, or a default that has changed, is a difference like any other.
"""

import contextlib
import errno
import fcntl
import importlib
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from e2h_jax.config import check_fields, differences, fingerprint, plain, substitute
from e2h_jax.data.storage import write_json
from e2h_jax.errors import UserError, nearest
from e2h_jax.metrics import begin_peak, peak_memory, wandb_run, write_summary
from e2h_jax.parallel import hosts

OWN_FILES = {"config.json", "done.json", "seconds.json", "wandb", ".lock", ".compiled", ".examples"}
# Of a finished stage, what may be deleted: nothing reads it any more.
SPARE = re.compile(r"checkpoints(-damaged)?|tensorboard|metrics\.jsonl|inputs\.json|data\.json|chosen\.json|nan|round-\d+|\..*")
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
        from e2h_jax.parallel import compilation

        compilation.keep_programs(folder / ".compiled")
    with _lock(folder):
        check_folder(stage, config, folder)
        asked = read_json(folder / "config.json")
        identity = {"stage": stage, "fingerprint": fingerprint(config)}
        # A recipe looks at each of its stages every time, so it is never finished as a whole.
        if stage != "recipe" and (done := read_json(folder / "done.json")):
            if first:
                _take_up(folder, asked, plain(config))
            print(f"{folder}: {stage} is done already, skipped (to run it again, delete the folder)")
            return done["metrics"]
        if stage == "recipe":
            module.check_start(config, folder)
        fresh = asked is None or _is_untouched(folder)
        before = _states(folder) if fresh and stage != "recipe" else {}
        record = identity | {"inputs": dict(inputs or {}), "config": plain(config)}
        hosts.wait(f"{folder} begun")  # what all have looked at must not change before
        if first and (fresh or stage == "recipe"):
            record |= {"beside": before} if before else {}
            write_json(folder / "config.json", record)
        elif first:
            record = _take_up(folder, asked, plain(config))
        earlier = 0.0 if stage == "recipe" else (read_json(folder / "seconds.json") or {"seconds": 0.0})["seconds"]
        began = time.perf_counter()
        begin_peak()
        try:
            metrics = {}
            logged = first and stage != "recipe"  # a recipe's stages are, each on its own
            with wandb_run(stage, plain(config), folder) if logged else contextlib.nullcontext():
                if first or stage not in ONE_HOST:
                    metrics = module.run(substitute(config, run) if run is not None else config, folder)
                fresh = False  # it has worked
                metrics = plain(metrics, "summary")
                if logged:
                    write_summary(folder, metrics)
        except BaseException as error:
            if first and stage != "recipe":
                if isinstance(error, UserError) and fresh and _undo(folder, before):
                    raise
                with contextlib.suppress(OSError):  # a full disk, say: what is wrong is told by what is raised
                    write_json(folder / "seconds.json", {"seconds": earlier + time.perf_counter() - began})
            raise
        hosts.wait(f"{folder} finished")  # done.json must not appear while another host still writes its shard
        if first:
            seconds = round(earlier + time.perf_counter() - began, 3)
            outcome = {"run": uuid.uuid4().hex, "seconds": seconds, "metrics": metrics}
            if stage != "recipe":  # its stages have begun their own peaks
                # A stage that found all its work done has changed nothing; what it found is its own.
                outputs = _outputs(folder, _beside(folder, record)) or _outputs(folder)
                outcome |= _peaks(module) | {"outputs": outputs}
            write_json(folder / "done.json", identity | outcome)
            (folder / "seconds.json").unlink(missing_ok=True)
        hosts.wait(f"{folder} done")  # nor may another host take up the next stage before
    return metrics


def _peaks(module: ModuleType) -> dict[str, float]:
    """GiB of memory that the stage has had at most."""
    peaks: dict[str, float | None] = {"peak_memory_gib": peak_memory()}
    if hasattr(module, "programs"):  # it has devices
        from e2h_jax.parallel import devices

        peaks["peak_device_memory_gib"] = devices.peak_memory()
    return {name: round(value / 2**30, 3) for name, value in peaks.items() if value is not None}


def check_folder(stage: str, config: ConfigDict, workdir: str | Path) -> None:
    """Raises UserError if `workdir` holds another stage's run, another config's, or a finished one whose outputs are gone."""
    workdir = Path(workdir)
    asked = read_json(workdir / "config.json")
    if asked is None and stage != "recipe" and (workdir / "done.json").exists():
        raise UserError(f"{workdir} holds a finished run, but its config.json is gone; restore it, or delete the folder.")
    if asked is None:
        return
    if "stage" not in asked:  # a model's of the Hub, say
        raise UserError(f"{workdir}/config.json is not a stage's; give {stage} another --workdir.")
    if _is_untouched(workdir):
        return
    if asked["stage"] != stage:
        raise UserError(f'{workdir} holds a run of "{asked["stage"]}"; give "{stage}" another --workdir.')
    if stage == "recipe":
        return
    changes = differences(asked.get("taken_up", asked["config"]), plain(config), plain(load(stage).defaults()))
    if changes:
        shown = "; ".join(changes[:6]) + (f"; and {len(changes) - 6} more" if len(changes) > 6 else "")
        raise UserError(f"{workdir} holds a run with another config ({shown}): use another --workdir, or delete it.")
    if done := read_json(workdir / "done.json"):
        outputs, found = done.get("outputs"), _outputs(workdir)
        gone = [f"{name} is" for name, files in (outputs or {}).items() if found.get(name, 0) < files]
        if gone or outputs is None and not found:  # older versions did not write down what there was
            what = gone[0] if gone else "all it wrote is"
            raise UserError(f"{workdir}: {stage} is done, but {what} gone; restore it, or delete the folder to run it again.")


def _is_untouched(folder: Path) -> bool:
    """Whether nothing has come of the run in `folder`: it is not finished and has written no file."""
    left_out = OWN_FILES | _beside(folder, read_json(folder / "config.json") or {})
    return not (folder / "done.json").exists() and not any(
        path.is_file() and path.relative_to(folder).parts[0] not in left_out for path in folder.rglob("*")
    )


def _take_up(folder: Path, asked: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Returns what config.json says of a run that goes on, or has finished, with `config`, which is no other by `check_folder`.

    Where an older version began it, what was asked for then stays, `taken_up` holds `config`, and the new fields are printed.
    """
    known = asked.get("taken_up", asked["config"])
    if new := [change.partition(":")[0] for change in differences(known, config)]:
        asked = asked | {"taken_up": config}
        write_json(folder / "config.json", asked)
        fields = ", ".join(new)
        print(f"{folder}: begun by an older version, without {fields}; what that one wrote follows its rules (CHANGELOG.md)")
    return asked


def _states(folder: Path) -> dict[str, list[int]]:
    """`_state` of each file, and each folder with files, in `folder` but `OWN_FILES`, by name."""
    return {path.name: _state(path) for path in sorted(folder.iterdir()) if path.name not in OWN_FILES and _files(path)}


def _state(path: Path) -> list[int]:
    """What tells whether a file or a folder has changed: its size in bytes, and the time of the last change in ns."""
    found = [file.stat() for file in _files(path)]
    return [sum(file.st_size for file in found), max((file.st_mtime_ns for file in found), default=0)]


def _beside(folder: Path, record: Mapping[str, Any]) -> set[str]:
    """Names of what was in the folder before the run of config.json's `record`, and has not been changed since."""
    beside = record.get("beside", {})
    if isinstance(beside, list):  # 0.2.0 wrote down the names alone
        return set(beside)
    return {name for name, state in beside.items() if _state(folder / name) == state}


def _outputs(folder: Path, beside: Iterable[str] = ()) -> dict[str, int]:
    """What a stage wrote for others to read: files and folders by name, with the number of files in them that are not empty.

    `beside`: names that are not the stage's.
    """
    names = {path.name for path in folder.iterdir() if not SPARE.fullmatch(path.name)} - OWN_FILES - set(beside)
    return {name: sum(path.stat().st_size > 0 for path in _files(folder / name)) for name in sorted(names)}


def _undo(folder: Path, before: Mapping[str, list[int]]) -> bool:
    """Removes what a refused start has written; returns whether the folder is as it was.

    It stays where the start has worked already (a line of metrics, a checkpoint, a batch that was not finite), has changed what
    was there `before` (its `_states`), or cannot be removed.
    """
    if any(_state(folder / name) != state for name, state in before.items()):
        return False
    new = [path for path in folder.iterdir() if path.name not in OWN_FILES | before.keys()]
    for path in (file for entry in new for file in _files(entry)):
        if {"nan", "checkpoints"} & set(path.relative_to(folder).parts) or path.name == "metrics.jsonl" and path.stat().st_size:
            return False
    try:
        for path in new:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in ("config.json", "seconds.json"):
            (folder / name).unlink(missing_ok=True)
    except OSError:  # NFS keeps what is still open, say; what counts is what the stage has said
        return False
    return True


def _files(path: Path) -> list[Path]:
    return [file for file in (path, *path.rglob("*")) if file.is_file()]


def check_config(stage: str, config: ConfigDict, prefix: str = "config") -> None:
    """Raises UserError unless `config` fits the stage (rules: top of config.py); `prefix` is its name."""
    module = load(stage)
    # A recipe's fields depend on the stages it lists, so it checks itself.
    if stage == "recipe":
        module.check(config)
    else:
        check_fields(config, module.defaults(), prefix)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None if there is no such file; UserError if it is damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise UserError(f"{path} is damaged; delete its folder and run again.")
    return document


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps other processes out of `folder`. The kernel frees the lock when the process ends, by kill -9 too."""
    if hosts.process_index() > 0:
        yield
        return
    try:
        file = open(folder / ".lock", "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into the folder {folder}: {error.strerror.lower()}; give another --workdir.") from None
    with file:
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
