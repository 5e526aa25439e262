"""A recipe: stages in order, each in its own folder of the recipe's folder.

    config.stages = ("prepare", "sft", "sample", …)    names, in the order in which they run
    config.<name>                                      that stage's config, and in it `stage`: which stage it is
    config.publish = (("evaluate/results.json", "results.json"), …)    copied to the top when all have finished
    config.report = True                               then write report.html, as `e2h show` does

The stage called "sft" works in WORKDIR/sft. Wherever a string of its config holds {run}, WORKDIR takes its place; so
"{run}/sft/model" is how one stage reads what another wrote.

Run again, a recipe goes on where it stopped: finished stages are skipped, an interrupted one resumes. A stage whose
config has changed is refused, and so is one that was made from an earlier run of a stage it reads (because that one's
folder was deleted meanwhile): the message names the folders to delete. Nothing is ever deleted for you. All of this, and the
values of every config, is checked before the first stage starts.
"""

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from e2h_jax import stage as stages
from e2h_jax.config import suggest_field
from e2h_jax.errors import UserError, naming
from e2h_jax.evaluation.report.folders import SHOWN
from e2h_jax.parallel import hosts

RESERVED = ("stages", "publish", "report", "seed")


def defaults() -> ConfigDict:
    """Fields of a recipe, besides a group for each of its stages."""
    config = ConfigDict()
    config.stages = ()  # names of stages, in order; config.<name> is the config of each
    config.publish = ()  # pairs (file in WORKDIR, its name at the top of WORKDIR)
    config.report = False  # at the end, write WORKDIR/report.html as `e2h show` does
    config.seed = 0  # for stages to refer to: config.sft.seed = config.get_ref("seed")
    return config.lock()


def configure(stage: str, fields: Mapping[str, Any]) -> ConfigDict:
    """The config of one stage of a recipe: the stage's defaults with these fields changed, and `stage` itself.

    Nested fields are nested mappings; `check` refuses a field that the stage does not have.
    """
    config = ConfigDict(stages.load(stage).defaults()).unlock()
    config.update(fields)
    config.stage = stage
    return config


def all_defaults(config: ConfigDict) -> ConfigDict:
    """The recipe's defaults and, in `config.<name>`, those of each of its stages, which tell what groups are open."""
    fields = defaults().unlock()
    for name, group in config.items():
        stage = group.get("stage") if isinstance(group, ConfigDict) else None
        if name not in RESERVED and isinstance(stage, str) and stage in stages.STAGES:  # `check` refuses the others
            fields[name] = stages.load(stage).defaults()
    return fields


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs all stages, which `check_start` has found fit to start; returns their seconds and their summaries.

    Raises:
      UserError: a stage's, with the stage's name in front.
    """
    console = Console(highlight=False, markup=False)
    total = len(config.stages)
    if _waiting(config, workdir) and hosts.process_index() == 0:
        (workdir / "done.json").unlink(missing_ok=True)  # it told of an earlier run

    began = time.perf_counter()
    metrics, seconds, ran = {}, {}, {}
    for number, name in enumerate(config.stages, start=1):
        stage, stage_config = stage_of(config, name)
        elapsed = _clock(time.perf_counter() - began)
        console.rule(f"[{number}/{total}] {name} ({stage}) · {elapsed} so far", align="left")
        ran[name] = not (workdir / name / "done.json").exists()
        inputs = {source: _run_of(workdir, source) for source in _reads(config, name)}
        try:
            metrics[name] = stages.execute(stage, stage_config, workdir / name, run=str(workdir), inputs=inputs)
        except UserError as error:
            raise UserError(f"stage {name} ({number} of {total}): {error}") from error
        except Exception as error:
            error.add_note(f"in stage {name} ({number} of {total}) of the recipe in {workdir}")
            raise
        # Another host's done.json may not have reached this one yet; the first process's count is the one that is kept.
        seconds[name] = (stages.read_json(workdir / name / "done.json") or {"seconds": 0.0})["seconds"]

    _publish(config, workdir)
    # A recipe run in part may have nothing to show yet.
    if config.report and hosts.process_index() == 0 and {stage_of(config, name)[0] for name in config.stages} & set(SHOWN):
        from e2h_jax.evaluation.report import show  # not at the top: a mistake in the config is told half a second sooner

        console.print(f"report: {show.write([workdir])}")
    table = Table("stage", title="Seconds per stage", title_justify="left")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for name in config.stages:
        table.add_row(name, f"{seconds[name]:.1f}", "" if ran[name] else "done before")
    table.add_row("all", f"{sum(seconds.values()):.1f}", end_section=True)
    console.print(table)
    return {"seconds": seconds, "metrics": metrics}


def check(config: ConfigDict) -> None:
    """Raises UserError unless every stage that the recipe lists has a config that fits it."""
    for name in ("stages", "publish"):
        if not isinstance(config.get(name), tuple | list):
            raise UserError(
                f'a recipe\'s config needs a tuple "config.{name}"; start it from e2h_jax.recipe.defaults().'
            )
    if type(config.get("report")) is not bool:
        raise UserError('a recipe\'s config needs "config.report", True or False; start it from e2h_jax.recipe.defaults().')
    if not config.stages:
        raise UserError("a recipe needs a config that lists its stages, such as --config=configs/quickstart.py.")
    for pair in config.publish:
        if not (isinstance(pair, tuple | list) and [type(entry) for entry in pair] == [str, str]):
            raise UserError(f'"config.publish" holds {pair!r}, which is not a pair (file, name).')
    for name in config.stages:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or name in RESERVED:
            raise UserError(f'"config.stages" holds {name!r}, which cannot be the name of a folder.')
        if list(config.stages).count(name) > 1:
            raise UserError(f'"config.stages" holds "{name}" twice; give the second one another name.')
        if not isinstance(config.get(name), ConfigDict):
            groups = ConfigDict({group: value for group, value in config.items() if isinstance(value, ConfigDict)})
            raise UserError(f'the stage "{name}" has no config{suggest_field(name, "config", groups)}.')
    for name in config:
        if name in RESERVED:
            continue
        if not isinstance(config[name], ConfigDict):
            raise UserError(f'there is no field "config.{name}"; a recipe has {", ".join(RESERVED)} and a group per stage.')
        kind = config[name].get("stage")
        if not isinstance(kind, str) or kind not in stages.STAGES or kind == "recipe":
            valid = ", ".join(other for other in stages.STAGES if other != "recipe")
            raise UserError(f'"config.{name}.stage" is {kind!r}; it is one of {valid}.')
        stage, stage_config = stage_of(config, name)
        stages.check_config(stage, stage_config, f"config.{name}")
    for name in config.stages:
        _reads(config, name)


def check_start(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError for what can be told before anything is written: folders, inputs and values of the stages."""
    for name in config.stages:
        stages.check_folder(*stage_of(config, name), workdir / name)
    _check_inputs(config, workdir)
    for name in _waiting(config, workdir):
        _check_values(config, name)


def _waiting(config: ConfigDict, workdir: Path) -> list[str]:
    """The stages that have not finished yet."""
    return [name for name in config.stages if not (workdir / name / "done.json").exists()]


def _check_values(config: ConfigDict, name: str) -> None:
    """Raises what the stage itself would find wrong with its values, when its turn comes, before it reads a file."""
    stage, stage_config = stage_of(config, name)
    check_values = getattr(stages.load(stage), "check_values", None)
    if check_values is not None:
        with naming(f"config.{name}.", outside=()):
            check_values(stage_config)


def stage_of(config: ConfigDict, name: str) -> tuple[str, ConfigDict]:
    """Which stage `config.<name>` of a recipe is, and its config without that field."""
    stage_config = config[name].copy_and_resolve_references().unlock()
    stage = stage_config.stage
    del stage_config.stage
    return stage, stage_config.lock()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | ConfigDict):
        for _, entry in value.items():
            yield from _strings(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _strings(entry)


def _reads(config: ConfigDict, name: str) -> list[str]:
    """The stages whose folders `config.<name>` mentions, in order: all before it, if it mentions the whole {run}."""
    order = list(config.stages)
    before = order[: order.index(name)]
    found = set()
    for text in _strings(config[name]):
        for source in re.findall(r"\{run\}/*([\w-]*)", text):
            found |= {source} if source else set(before)
    if name in found or (later := [source for source in order if source in found and source not in before]):
        source = name if name in found else later[0]
        raise UserError(
            f'the stage "{name}" reads {{run}}/{source}, which is not there before it; change "config.stages".'
        )
    return sorted(found)


def _run_of(workdir: Path, name: str) -> str | None:
    """The identity of the run that finished in a stage's folder; None if none has."""
    return (stages.read_json(workdir / name / "done.json") or {"run": None})["run"]


def _check_inputs(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if a stage was made from an earlier run of a stage it reads: its results would not belong."""
    outdated, source_of_it = [], None
    for name in config.stages:
        asked = stages.read_json(workdir / name / "config.json")
        for source, identity in (asked["inputs"] if asked else {}).items():
            if name not in outdated and (source in outdated or _run_of(workdir, source) != identity):
                outdated.append(name)
                source_of_it = source_of_it or source
    if outdated:
        folders = " ".join(str(workdir / name) for name in outdated)
        raise UserError(
            f'"{outdated[0]}" was made from an earlier run of "{source_of_it}"; so that results fit together, delete '
            f"what came of it (rm -r {folders}) and run again."
        )


def _publish(config: ConfigDict, workdir: Path) -> None:
    if hosts.process_index() > 0:
        return
    for source, name in config.publish:
        # A recipe may be run in part (--config.stages=prepare,sft); it then publishes less.
        if source.split("/")[0] not in config.stages:
            continue
        target = workdir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            shutil.copyfile(workdir / source, temporary)
        except OSError:
            raise UserError(f'"config.publish" names {source}, which no stage wrote into {workdir}.') from None
        temporary.replace(target)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
