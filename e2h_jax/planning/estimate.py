"""From a program to its needs: memory by kind, operations, bytes, and the least time that the chip's limits allow."""

import dataclasses

import jax

from e2h_jax.parallel.devices import CHIPS, PUBLISHED
from e2h_jax.parallel.programs import KINDS, Assumed, Program, Unit
from e2h_jax.planning import flops
from e2h_jax.planning.compiling import Compiler, held_bytes, refusal
from e2h_jax.planning.stages import Planned
from e2h_jax.planning.topologies import Topology

# Shares of the published peaks that good programs reach. They are assumptions: nothing here was run on a TPU.
EFFICIENCY = {"compute": 0.5, "memory": 0.8, "links": 0.5}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one program needs on one device.

    Attributes:
      memory: {kind: bytes}: `KINDS` of what is held, "other" (batch, results, code, padding) and "temporary".
      limit: bytes that there are; None where that is not known (a CPU).
      flops, moved, sent: operations, bytes of main memory, bytes sent to other devices, in a run; None: not known.
      seconds: {limit: seconds of a run} for those limits that are known.
    """

    program: str
    memory: dict[str, float]
    limit: float | None
    flops: float
    moved: float | None
    sent: float | None
    collectives: dict[str, tuple[float, float]]
    seconds: dict[str, float]
    compile_seconds: float
    refused: bool  # the compiler would not make it: `temporary` is what it asked for
    unit: Unit
    runs: float

    @property
    def total(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return not self.refused and (self.limit is None or self.total <= self.limit)

    @property
    def time(self) -> float | None:
        """Seconds of a run: the longest of those that its limits ask for."""
        return max(self.seconds.values()) if self.seconds and not self.refused else None

    @property
    def limited_by(self) -> str:
        return max(self.seconds, key=self.seconds.get) if self.time else ""


def held(program: Program) -> tuple[dict[str, float], float]:
    """({kind: bytes}, bytes of the arguments that are none of these) on one device, which needs no compiler."""
    seen: set[int] = set()
    kinds = {kind: held_bytes(program.held.get(kind), seen) for kind in KINDS}
    keywords = getattr(program.function, "keywords", {})
    return kinds, held_bytes((program.arguments, keywords), seen)


def estimate(program: Program, topology: Topology, compile_: Compiler) -> Estimate:
    """Compiles a program for a slice and takes its needs together."""
    device = program.mesh.devices.flat[0]
    platform = "cpu" if topology.kind == "cpu" else "tpu"
    traced = program.trace()
    found = compile_(program, traced, f"{topology.kind} {program.mesh.devices.size}")
    kinds, arguments = held(program)
    memory = kinds | {"other": arguments + found.results + found.padding + found.code, "temporary": found.temporary}
    if found.wanted is not None:
        memory["temporary"] = max(0.0, found.wanted - sum(memory.values())) if found.wanted_arguments else found.wanted
    operations = flops.count(traced, platform, program.loops) / program.mesh.devices.size
    moved = found.moved
    if program.work is not None:
        operations, moved = program.work
    sent = None if found.moved is None else sum(size for _, size in found.collectives.values())
    seconds, chip = {}, CHIPS.get(device.device_kind)
    if chip is not None:
        peaks = PUBLISHED[device.device_kind]
        seconds = {
            "compute": operations / peaks.flops / EFFICIENCY["compute"],
            "memory": (moved or 0) / peaks.bandwidth / EFFICIENCY["memory"],
            "links": (sent or 0) / chip.links / EFFICIENCY["links"],
        }
    return Estimate(
        program.name,
        memory,
        chip.memory if chip else None,
        operations,
        moved,
        sent,
        found.collectives,
        seconds,
        found.seconds,
        found.wanted is not None,
        program.unit,
        program.runs,
    )


def programs_of(plan: Planned, topology: Topology, assumed: Assumed) -> tuple[list[Program], list[Estimate]]:
    """The programs of a stage; and where there is not even room for the weights and caches that they share, what those want."""
    programs: list[Program] = []
    try:
        for program in plan.programs(topology, assumed):
            programs.append(program)
    except jax.errors.JaxRuntimeError as error:
        wanted = refusal(str(error)).wanted
        memory = dict.fromkeys((*KINDS, "other"), 0.0) | {"temporary": wanted}
        limit = CHIPS[topology.devices()[0].device_kind].memory
        return programs, [Estimate("weights and caches", memory, limit, 0, 0, 0, {}, {}, 0, True, Unit("", 0), 0)]
    return programs, []


def estimates(plan: Planned, topology: Topology, assumed: Assumed, compile_: Compiler) -> list[Estimate]:
    """Those of all programs of a stage."""
    programs, refused = programs_of(plan, topology, assumed)
    return [*(estimate(program, topology, compile_) for program in programs), *refused]
