"""What a workdir holds: the finished evaluations and the training runs in it, whether it is a recipe's or a stage's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2h_jax.errors import UserError

TRAINING = ("sft", "reward", "rest_em", "dpo", "ppo")
SHOWN = (*TRAINING, "evaluate")


@dataclass(frozen=True)
class Folder:
    """The folder of one stage."""

    path: Path
    run: str  # what to call the workdir that it was found in
    name: str  # of the stage within the workdir
    stage: str  # which stage: evaluate, ppo …
    config: dict[str, Any]  # what was asked for, {run} replaced


def find(workdirs: Sequence[str]) -> list[Folder]:
    """The evaluations and training runs in these workdirs, in the order of each recipe.

    Raises:
      UserError: a workdir is none, or holds nothing that could be shown.
    """
    labels = _labels([Path(workdir) for workdir in workdirs])
    found: list[Folder] = []
    for workdir, label in zip(map(Path, workdirs), labels, strict=True):
        asked = _config(workdir)
        if asked["stage"] != "recipe":
            here = [_folder(workdir, label, workdir.resolve().name, asked)]
        else:
            started = [name for name in asked["config"]["stages"] if (workdir / name / "config.json").exists()]
            here = [_folder(workdir / name, label, name, _config(workdir / name)) for name in started]
        here = [folder for folder in here if folder.stage in SHOWN]
        shown = [folder for folder in here if folder.stage != "evaluate" or (folder.path / "results.json").exists()]
        if not shown:
            remedy = "; compare its samples or scores by `e2h evaluate` first" if asked["stage"] in ("sample", "score") else ""
            raise UserError(f"{workdir}: nothing to show yet; it has neither a training run nor a finished evaluation{remedy}.")
        found += shown
    return found


def _labels(workdirs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [workdir.resolve().parts for workdir in workdirs]
    if len(set(parts)) < len(parts):
        raise UserError("--workdir names the same folder twice; name each once.")
    length = next(n for n in range(1, 1 + max(map(len, parts))) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def _config(folder: Path) -> dict:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; --workdir is the folder of a recipe or a stage.")
    try:
        asked = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json in it; --workdir is the folder of a recipe or a stage.") from None
    except ValueError:
        raise UserError(f"{folder}/config.json is damaged; run the stage again.") from None
    if not isinstance(asked, dict) or not {"stage", "config"} <= asked.keys():  # a model's, say
        raise UserError(f"{folder}/config.json is no stage's; --workdir is the folder of a recipe or a stage.")
    return asked


def _folder(path: Path, run: str, name: str, asked: dict) -> Folder:
    # A stage of a recipe lies in the recipe's folder, wherever that was moved to.
    return Folder(path, run, name, asked["stage"], _replaced(asked["config"], str(path.resolve().parent)))


def _replaced(value: Any, run: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(entry, run) for key, entry in value.items()}
    if isinstance(value, list):
        return [_replaced(entry, run) for entry in value]
    return value.replace("{run}", run) if isinstance(value, str) else value
