"""Compiling a program for devices that are not there, and reading off the result what it needs. Equal programs once only."""

import dataclasses
import hashlib
import importlib.metadata
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from e2h_jax.parallel.programs import Program
from e2h_jax.planning import traffic
from e2h_jax.planning.hlo import Module, arrays

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program on one device, in bytes.

    Attributes:
      temporary, code: what it needs beside arguments and results.
      results: results that do not take an argument's place.
      padding: of arguments, to the tiles of the chip's memory.
      moved: read from and written to main memory in a run; None, as `collectives` is empty, where the text cannot be read.
      collectives: {kind: (how many, bytes sent)} in a run.
      wanted: None; or what it would need, where the compiler refused.
      seconds: that compiling took, when it was compiled.
    """

    temporary: float = 0
    code: float = 0
    results: float = 0
    padding: float = 0
    moved: float | None = 0
    collectives: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    wanted: float | None = None
    wanted_arguments: bool = False  # `wanted` counts arguments, too
    seconds: float = 0


class Compiler:
    """Compiles programs; keeps what came of each by its text, in `folder` too if there is one. `versions`: of what compiles."""

    def __init__(self, folder: Path | None = None):
        self._folder, self._found = folder, {}
        self.versions = {name: _version(name) for name in ("jax", "jaxlib", "libtpu")}

    def __call__(self, program: Program, traced: jax.stages.Traced, target: str) -> Compiled:
        """`target` names the devices: the same text for other devices is another program."""
        with jax.set_mesh(program.mesh):
            lowered = traced.lower()
        identity = json.dumps([target, program.loops, self.versions, lowered.as_text()])
        key = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        if key not in self._found:
            self._found[key] = self._kept(key) or self._keep(key, _compile(lowered, program.loops))
        return self._found[key]

    def _kept(self, key: str) -> Compiled | None:
        path = self._folder / f"{key}.json" if self._folder else None
        return Compiled(**json.loads(path.read_text())) if path and path.exists() else None

    def _keep(self, key: str, compiled: Compiled) -> Compiled:
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f".{key}.tmp"
            temporary.write_text(json.dumps(dataclasses.asdict(compiled)) + "\n")
            temporary.rename(self._folder / f"{key}.json")
        return compiled


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _compile(lowered: jax.stages.Lowered, loops: Sequence[int]) -> Compiled:
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return dataclasses.replace(refusal(str(error)), seconds=time.perf_counter() - began)
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    found = Compiled(
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        moved=None,
        seconds=seconds,
    )
    try:
        module = Module(compiled.as_text())
    except jax.errors.JaxRuntimeError:  # another libtpu than JAX names: jaxlib 0.10 cannot read some v5p programs of 0.0.51
        return found
    entry = module.computations[module.entry]
    arguments = sum(array.bytes for i in entry if i.opcode == "parameter" for array in arrays(i.shape))
    moves = traffic.measure(module, loops)
    padding = max(0.0, memory.argument_size_in_bytes - arguments)
    return dataclasses.replace(found, padding=padding, moved=moves.bytes, collectives=moves.collectives)


def refusal(message: str) -> Compiled:
    """What a program wanted that the compiler refused for want of memory; any other error is raised again."""
    size = r"\(?([\d.]+)([KMGT]?)i?B?\)?"
    if found := re.search(rf"total memory required for HLO temporaries {size}", message):
        return Compiled(wanted=float(found[1]) * _UNITS[found[2]])
    if found := re.search(rf"Used {size} of [\d.]+\w* hbm", message):
        return Compiled(wanted=float(found[1]) * _UNITS[found[2]], wanted_arguments=True)
    raise RuntimeError(message)


def held_bytes(tree: Any, seen: set[int] | None = None) -> float:
    """Bytes of a tree's arrays, or shapes, on one device; each leaf once, and none that is in `seen`, which grows."""
    seen = set() if seen is None else seen
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        if id(leaf) in seen or not hasattr(leaf, "shape"):
            continue
        seen.add(id(leaf))
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(tuple(leaf.shape)) if sharding is not None else leaf.shape
        size = leaf.dtype.itemsize
        for length in shape:
            size *= length
        total += size
    return total
