"""Which stages of a config compute on devices, and the programs of each."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from e2h_jax import recipe, stage
from e2h_jax.errors import UserError
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.programs import Assumed, Program
from e2h_jax.planning import prompts
from e2h_jax.planning.prompts import Prompt
from e2h_jax.planning.topologies import Topology

DEVICE_STAGES = ("sft", "reward", "sample", "score", "rest_em", "dpo", "ppo")


class Planned(NamedTuple):
    """A stage that is to be planned."""

    name: str  # within the recipe; of a single stage its own
    stage: str
    config: ConfigDict
    prefix: str  # of its fields on the command line: "config." or "config.NAME."
    stages: Mapping[str, tuple[str, ConfigDict]] = {}  # of the recipe

    def programs(self, topology: Topology, assumed: Assumed) -> Iterator[Program]:
        """What it runs on a slice; UserError where it does not fit the slice's devices."""
        mesh = make_mesh(self.config.mesh, topology.devices())
        if prompt := self.prompt(assumed):
            assumed = dataclasses.replace(assumed, default_prompt=sum(prompt))
        return stage.load(self.stage).programs(self.config, mesh, assumed)

    def prompt(self, assumed: Assumed) -> Prompt | None:
        """The longest prompt that is assumed for it; None where the user says it for all, and of a stage that has none."""
        return None if assumed.prompt_tokens else prompts.longest(self.config, self.stages)


def stages_of(config: ConfigDict) -> dict[str, tuple[str, ConfigDict]]:
    """{name: (stage, config)}: those of a recipe, or the one stage whose fields the config has."""
    if "stages" in config:
        stage.check_config("recipe", config)
        return {name: recipe.stage_of(config, name) for name in config.stages}
    for name in DEVICE_STAGES:
        if set(stage.load(name).defaults()) == set(config):
            stage.check_config(name, config)
            return {name: (name, config)}
    raise UserError(
        "the config has the fields of no stage that computes on devices; start it from the defaults() of one of "
        f"{', '.join(DEVICE_STAGES)}, or of a recipe"
    )


def planned(config: ConfigDict, only: str = "") -> list[Planned]:
    """The stages of a config that compute on devices; only the one of that name if there is one."""
    found = stages_of(config)
    if only and only not in found:
        raise UserError(f"--stage={only}: the config has no such stage; there are {', '.join(found)}")
    single = "stages" not in config
    plans = [
        Planned(name, kind, fields, "config." if single else f"config.{name}.", found)
        for name, (kind, fields) in found.items()
        if kind in DEVICE_STAGES and only in ("", name)
    ]
    if not plans:
        which = f"{only} does not compute" if only else f"none of {', '.join(found)} computes"
        raise UserError(f"nothing to plan: {which} on devices")
    return plans
