"""What a stage tells `e2h plan`: the programs it will run, made by the same code that will run them.

A stage that computes on devices has, beside `run`, a function `programs(config, mesh, assumed) -> Iterator[Program]`. Nothing
in it reads a model, a tokenizer or data: models are described by `assumed`, arrays are shapes (`shapes.py`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from e2h_jax.errors import UserError

KINDS = ("parameters", "optimiser", "gradients", "cache")


class Unit(NamedTuple):
    """What a stage's time is counted in."""

    name: str  # "step", "1M sampled tokens"
    tokens: float  # of one
    count: int | None = None  # how many the config asks for; None where data decides


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One program of a stage and what lies on the devices while it runs.

    Attributes:
      name: "train step", "decode".
      function: what `jax.jit` returned, or a `functools.partial` of it.
      arguments: arrays or shapes, as it will be called with.
      held: {kind: trees} of all that outlives the call, its arguments among them; kinds are those of `KINDS`.
      unit, runs: how often it runs in one unit of the stage's work.
      loops: iterations of the loops whose number only the run knows, the outermost first.
      work: operations and bytes of one device in a run, by a formula that knows more than the compiled text.
    """

    name: str
    function: Any
    arguments: tuple
    mesh: Mesh
    held: Mapping[str, Any]
    unit: Unit
    runs: float = 1.0
    loops: tuple[int, ...] = ()
    work: tuple[float, float] | None = None

    def trace(self) -> jax.stages.Traced:
        """The program before it is lowered."""
        function, keywords = self.function, {}
        if isinstance(function, functools.partial):
            function, keywords = function.func, function.keywords
        with jax.set_mesh(self.mesh):
            return function.trace(*self.arguments, **keywords)


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What a plan takes for granted, where a run reads a model, a tokenizer or data.

    Attributes:
      model: the path of a model in the config -> a `models.store.Described`.
      prompt_tokens: of the longest prompt; 0 = `default_prompt`, or as many as the config leaves room for.
      solution_tokens: of a solution; 0 = as many as the config allows, or 1024 where it does not say.
      vocabulary: of a tokenizer that a new model is made for.
      steps: optimiser steps of a training stage.
      default_prompt: tokens of the longest prompt of the stage that is planned, by what else the config says.
    """

    model: Callable[[str], Any]
    prompt_tokens: int = 0
    solution_tokens: int = 0
    vocabulary: int = 32_000
    steps: int = 1000
    default_prompt: int = 1024

    def prompt(self, most: int, why: str) -> int:
        """Tokens of the longest prompt, where there is room for `most`; UserError where there is not for what was asked for."""
        if most < max(1, self.prompt_tokens):
            raise UserError(f"a prompt of {max(1, self.prompt_tokens)} tokens does not fit: {why} leaves {most}")
        return self.prompt_tokens or min(self.default_prompt, most)

    def solution(self, most: int) -> int:
        """Tokens of a solution, of which there can be `most`."""
        return min(self.solution_tokens or most, most)


def prefixed(name: str, programs: Iterator[Program]) -> Iterator[Program]:
    """The programs of a part of a stage: "sample: decode"."""
    return (dataclasses.replace(program, name=f"{name}: {program.name}") for program in programs)
