"""The nearest change of a config that makes it fit: a short list in order, sorted out by arithmetic, confirmed by compiling."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from e2h_jax.errors import UserError
from e2h_jax.parallel.programs import Assumed, Program
from e2h_jax.planning.compiling import Compiler
from e2h_jax.planning.estimate import Estimate, estimate, held, programs_of
from e2h_jax.planning.stages import Planned
from e2h_jax.planning.topologies import Topology

COMPILED = 6  # changes that are tried with the compiler, at most

# Where each stage keeps the fields that matter: of training, sampling and scoring.
_TRAINING = {"sft": "", "reward": "", "rest_em": "train.", "dpo": "train.", "ppo": ""}
_SAMPLING = {"sample": "", "rest_em": "sample.", "dpo": "sample.", "ppo": "sample."}
_SCORING = {"score": "", "rest_em": "score.", "dpo": "score.", "ppo": "reward."}
_FROZEN = {"sample": ("quantize",), "score": ("quantize",), "ppo": ("reward.quantize", "kl.quantize")}


class Change(NamedTuple):
    """Fields to set, or another slice; `scale` is what becomes of the temporary memory, roughly."""

    fields: dict[str, Any]
    topology: Topology
    scale: float = 1.0

    def words(self, plan: Planned, topology: Topology) -> str:
        """As flags of the command line."""
        flags = [f"--{plan.prefix}{name}={_written(value)}" for name, value in self.fields.items()]
        return " ".join([*flags, *([f"--topology={self.topology.name}"] if self.topology != topology else [])])


def _written(value: Any) -> str:
    return "'" + ",".join(map(str, value)) + "'" if isinstance(value, tuple) else str(value)


def nearest_fit(
    plan: Planned, topology: Topology, found: Sequence[Estimate], assumed: Assumed, compile_: Compiler
) -> tuple[Change, list[Estimate]] | None:
    """The first change with which every program of the stage compiles and fits, and its estimates; None if there is none."""
    tried = 0
    for change in changes(plan, topology):
        try:
            programs, refused = programs_of(changed(plan, change), change.topology, assumed)
        except UserError:  # of a mesh, say, that does not divide the model
            continue
        if refused:
            continue
        by_name = {program.name: program for program in programs}
        failing = [(by_name[old.program], old) for old in found if not old.fits and old.program in by_name]
        if not all(_hopeful(program, old, change) for program, old in failing):
            continue
        if tried == COMPILED:
            return None
        tried += 1
        if all(estimate(program, change.topology, compile_).fits for program, _ in failing):
            new = [estimate(program, change.topology, compile_) for program in programs]
            if all(one.fits for one in new):
                return change, new
    return None


def changed(plan: Planned, change: Change) -> Planned:
    """The stage with other fields."""
    config = plan.config.copy_and_resolve_references().unlock()
    for name, value in change.fields.items():
        *groups, last = name.split(".")
        holder = config
        for group in groups:
            holder = holder[group]
        holder[last] = value
    return plan._replace(config=config.lock())


def _hopeful(program: Program, old: Estimate, change: Change) -> bool:
    """Whether the program may fit: what it holds is known without compiling, and temporary memory goes with the work."""
    kinds, arguments = held(program)
    return old.limit is None or sum(kinds.values()) + arguments + old.memory["temporary"] * change.scale <= old.limit


def changes(plan: Planned, topology: Topology) -> Iterator[Change]:
    """What may be changed, the nearest first: each alone, all of them together, then larger slices."""
    kinds = [kind for kind in (list(of(plan, topology)) for of in (_remat, _smaller, _frozen, _meshes)) if kind]
    for kind in kinds:
        yield from kind
    together = Change({}, topology)
    for kind in kinds:
        strongest = kind[-1]
        together = Change({**together.fields, **strongest.fields}, topology, together.scale * strongest.scale)
        if len(together.fields) > 1:
            yield together
    data, fsdp, tensor = plan.config.mesh
    wider = {} if -1 in (data, fsdp, tensor) else {"mesh": (data, -1, tensor)}
    for larger in topology.larger()[:3]:
        yield Change(wider, larger, topology.chips / larger.chips)
        fields = wider | together.fields
        yield together._replace(fields=fields, topology=larger, scale=together.scale * topology.chips / larger.chips)


def _remat(plan: Planned, topology: Topology) -> Iterator[Change]:
    prefix = _TRAINING.get(plan.stage)
    if prefix is not None and _get(plan, f"{prefix}remat") != "full":
        yield Change({f"{prefix}remat": "full"}, topology, 0.3)


def _smaller(plan: Planned, topology: Topology) -> Iterator[Change]:
    """Less at a time: microbatches, and rows or tokens of a pass."""
    if (prefix := _TRAINING.get(plan.stage)) is not None and plan.stage != "ppo":
        name, batch = f"{prefix}microbatches", _get(plan, f"{prefix}batch_size")
        parts = max(1, _get(plan, name))
        factors = (factor for factor in (2, 4, 8, 16, 32) if batch % (parts * factor) == 0)
        yield from (Change({name: parts * factor}, topology, 1 / factor) for factor in factors)
    halved = [f"{_SAMPLING[plan.stage]}rows"] if plan.stage in _SAMPLING else []
    halved += [f"{_SCORING[plan.stage]}tokens_per_batch"] if plan.stage in _SCORING else []
    halved += ["update_rows", "forward_rows"] if plan.stage == "ppo" else []
    for divisor in (2, 4, 8):
        fields = {name: _get(plan, name) // divisor for name in halved}
        if fields and min(fields.values()) > 0:
            yield Change(fields, topology, 1 / divisor)


def _frozen(plan: Planned, topology: Topology) -> Iterator[Change]:
    names = [name for name in _FROZEN.get(plan.stage, ()) if not _get(plan, name)]
    if plan.stage == "ppo" and (plan.config.lora.rank or not plan.config.kl.coef):  # no reference policy of its own
        names = [name for name in names if name != "kl.quantize"]
    if names:
        yield Change(dict.fromkeys(names, "int8"), topology)


def _meshes(plan: Planned, topology: Topology) -> Iterator[Change]:
    for tensor in (1, 2, 4, 8):
        shape = (1, -1, tensor)
        if shape != tuple(plan.config.mesh) and topology.chips % tensor == 0:
            yield Change({"mesh": shape}, topology, 0.5 if tensor > 1 else 1.0)


def _get(plan: Planned, name: str) -> Any:
    value = plan.config
    for part in name.split("."):
        value = value[part]
    return value
