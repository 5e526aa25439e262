"""The `e2h` command: runs one stage.

    e2h <stage> --config=configs/….py [--config.field=value …] --workdir=DIR

Exit codes: 0 finished · 2 the user's mistake or a full disk, told in one sentence · 130 Ctrl-C, 143 SIGTERM or another
process of the job has died, and 141 nobody reads what is printed any more (`| head`), resumable by the same command · 1 our
bug, with its traceback.

Nothing here imports JAX, so that help and refusals come at once.
"""

import ast
import importlib
import importlib.util
import logging
import os
import re
import select
import signal
import sys
import textwrap
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from absl import logging as absl_logging

from e2h_jax import __version__
from e2h_jax.errors import UserError, denied, full_disk, nearest
from e2h_jax.metrics import log_to_wandb
from e2h_jax.parallel import hosts

USAGE = "e2h <stage> --config=FILE.py [--config.field=value …] --workdir=DIR"

# Commands that are no stages: modules with a docstring, which is their help, and `main(arguments) -> exit code`.
COMMANDS: dict[str, str] = {
    "plan": "e2h_jax.planning.command",
    "show": "e2h_jax.evaluation.report.show",
    "try": "e2h_jax.interactive",
}


class Command(NamedTuple):
    """A command line, taken apart."""

    stage: str | None
    config: str | None  # path of the config file
    overrides: list[str]  # "field=value"
    workdir: str | None
    help: bool
    version: bool
    show: bool  # print what is in workdir, run nothing
    wandb: bool  # log to Weights & Biases too


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: this process's) and returns the exit code.

    A process of a job of several that fails does not return: see `hosts.leave`.
    """
    try:
        code = _main(argv)
    except Exception:
        if hosts.joined():
            hosts.leave(1, traceback.format_exc())
        raise
    if code and hosts.joined():
        hosts.leave(code)
    return code


def _main(argv: Sequence[str] | None) -> int:
    _quiet_libraries()
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        argv = list(sys.argv[1:] if argv is None else argv)
        if argv[:1] == ["help"]:  # `e2h help sft` is `e2h sft --help`
            argv = [*argv[1:], "--help"]
        code = _command(argv[0], argv[1:]) if argv and argv[0] in COMMANDS else _run(parse(argv))
        sys.stdout.flush()  # so that a closed pipe is met here
        return code
    except BrokenPipeError:  # of the output, or of a worker process: that would be a bug
        if not (closed := _closed_outputs()):
            raise
        for output in closed:  # what is still buffered would be written, and complained about, as the interpreter ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        return 141
    except UserError as error:
        print("e2h: " + " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _interrupted(130)
    except Exception as error:
        if not (sentence := full_disk(error) or denied(error)):
            raise
        print(f"e2h: {sentence}", file=sys.stderr)
        return 2
    except SystemExit as error:
        if error.code != 143:
            raise
        return _interrupted(143)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(signal_number: int, frame: Any) -> None:
    # Unwinds the stage like Ctrl-C does; a stage that has to save first puts its own handler here while it runs.
    raise SystemExit(143)


def _closed_outputs() -> list[int]:
    """Of stdout and stderr, those that are pipes without a reader."""
    outputs = select.poll()
    for output in (1, 2):
        outputs.register(output, 0)
    return [output for output, events in outputs.poll(0) if events & (select.POLLERR | select.POLLHUP)]


def _interrupted(code: int) -> int:
    print("\ne2h: interrupted; run the same command to resume.", file=sys.stderr)
    return code


def _command(name: str, arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(_docstring(COMMANDS[name]))
        return 0
    return importlib.import_module(COMMANDS[name]).main(arguments)


def _run(command: Command) -> int:
    if command.version:
        print(f"e2h {__version__}")
        return 0
    if command.stage is None:
        if command.help or not (command.config or command.overrides or command.workdir):
            print(overview())
            return 0
        raise UserError(f"which stage? The command is: {USAGE}")
    from e2h_jax import config as configs
    from e2h_jax import stage as stages

    if command.help:
        print(stage_help(command.stage))
        return 0
    if command.stage not in stages.STAGES:
        stages.load(command.stage)  # raises
    if command.show:
        print(_show(command))
        return 0
    if command.workdir is None:
        raise UserError(f"--workdir=DIR is missing: the folder that {command.stage} shall write into.")
    module = stages.load(command.stage)
    config = configs.load_file(command.config) if command.config else module.defaults().copy_and_resolve_references().lock()
    open_in = module.all_defaults(config) if command.stage == "recipe" else module.defaults()
    configs.override(config, command.overrides, open_in)
    stages.check_config(command.stage, config)
    if command.wandb:
        log_to_wandb()
    metrics = stages.execute(command.stage, config, command.workdir)
    print(summary(command.stage, Path(command.workdir), metrics))
    return 0


def _show(command: Command) -> str:
    from e2h_jax.stage import load

    module = load(command.stage)
    if not hasattr(module, "show"):
        raise UserError(f"--show is for `prepare`; {command.stage} has nothing to show.")
    if command.workdir is None:
        raise UserError("--show needs --workdir=DIR, the folder of what was prepared.")
    return module.show(Path(command.workdir))


def parse(argv: Sequence[str]) -> Command:
    """Takes a command line apart.

    Raises:
      UserError: an unknown flag, a flag without its value, or a word too many.
    """
    from e2h_jax.config import assignments

    overrides, rest = assignments(argv)
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("help", False, "", short_name="h", flag_values=values)
    flags.DEFINE_bool("version", False, "", flag_values=values)
    flags.DEFINE_bool("show", False, "", flag_values=values)
    flags.DEFINE_bool("wandb", False, "", flag_values=values)
    values.set_gnu_getopt(True)
    try:
        words = values(["e2h", *rest])[1:]
    except flags.UnrecognizedFlagError as error:
        name = "--" + error.flagname
        close = nearest(name.split(".")[0], ["--config", "--workdir", "--help", "--version", "--show", "--wandb"])
        raise UserError(f'there is no flag "{name}"{close}; the command is: {USAGE}') from None
    except flags.Error as error:
        raise UserError(f"{str(error).rstrip('.')}; the command is: {USAGE}") from None
    if len(words) > 1:
        raise UserError(f'"{words[1]}" is a word too many; the command is: {USAGE}')
    for name, value in (("config", values.config), ("workdir", values.workdir)):
        if value is not None and not value.strip():  # --workdir=$RUN, say, where RUN is not set
            raise UserError(f"--{name} is empty; name a {'file' if name == 'config' else 'folder'}. The command is: {USAGE}")
    stage = words[0] if words else None
    switches = values.help, values.version, values.show, values.wandb
    return Command(stage, values.config, overrides, values.workdir, *switches)


def overview() -> str:
    """What `e2h` and `e2h --help` print."""
    from e2h_jax.stage import STAGES

    lines = [f"  {name:10}{_docstring(module).partition(chr(10))[0]}" for name, module in (STAGES | COMMANDS).items()]
    return "\n".join(
        [
            "Easy-to-hard generalization for reasoning language models, in JAX.",
            "",
            f"  {USAGE}",
            "",
            *lines,
            "",
            "  e2h <stage> --help, e2h help <stage>  what it does, and the fields of its config",
            "  e2h --version                         the version that is installed",
            "  e2h prepare --show --workdir=DIR      the card and some records of a prepared data set",
            "  e2h <stage> … --wandb                 metrics to Weights & Biases too, of every stage of a recipe",
        ]
    )


def stage_help(stage: str) -> str:
    """What `e2h <stage> --help` prints: the stage's docstring and the commented fields of its config."""
    from e2h_jax.stage import STAGES, load

    if stage not in STAGES:
        load(stage)  # raises
    return "\n\n".join(
        [
            _docstring(STAGES[stage]),
            f"  {USAGE.replace('<stage>', stage)}",
            "Fields of the config, with the values they have unless a config file or the command line sets them:",
            "\n".join(_fields(STAGES[stage])),
        ]
    )


def _parse_module(module: str) -> tuple[str, ast.Module]:
    # Read, not imported: the module, or the package it is in, may import JAX.
    root, *parts = module.split(".")
    path = Path(importlib.util.find_spec(root).origin).parent.joinpath(*parts).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    return source, ast.parse(source)


def _docstring(module: str) -> str:
    return ast.get_docstring(_parse_module(module)[1]) or ""


def _fields(module: str, prefix: str = "config", left_out: Collection[str] = ()) -> list[str]:
    """The commented lines of a module's defaults(), but for the fields `left_out`.

    Where it calls another's defaults(), the lines of that; in `without(other.defaults(), "field", …)` but for these fields. A
    line that sets a field anew takes the place of the one before.
    """
    source, tree = _parse_module(module)
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "defaults")
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    lines, fields, at = source.splitlines(), [], statements[0].lineno - 1
    for statement in statements[:-1]:  # without the `return`
        block, at = lines[at : statement.end_lineno], statement.end_lineno
        match statement:
            case (
                ast.Assign([target], ast.Call(ast.Attribute(ast.Name(name), "defaults")) as call)
                | ast.Assign([target], ast.Call(_, [ast.Call(ast.Attribute(ast.Name(name), "defaults")), *_]) as call)
            ) if name in imported:
                below = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
                group, comments = prefix, _dedented(block)[: statement.lineno - statement.end_lineno - 1]
                if isinstance(target, ast.Attribute):
                    group = ".".join([prefix, *ast.unparse(target).split(".")[1:]])
                    start = f"{group.removeprefix(prefix + '.')}."
                    below += [field.removeprefix(start) for field in left_out if field.startswith(start)]
                else:
                    below += left_out
                fields += [*comments, *_fields(imported[name], group, below)]
            case ast.Assign([ast.Name()], _):  # config = ConfigDict()
                pass
            case ast.Assign([ast.Attribute() as target], _) if ast.unparse(target).partition(".")[2] in left_out:
                pass
            case _:
                new = [re.sub(r"^config\.", f"{prefix}.", line) for line in _dedented(block)]
                name = new[-1].partition(" = ")[0]
                before = [index for index, line in enumerate(fields) if line.startswith(f"{name} = ")]
                if before:
                    fields[before[0] : before[0] + 1] = new
                else:
                    fields += new
    return fields


def _dedented(lines: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


def summary(stage: str, workdir: Path, metrics: dict[str, Any]) -> str:
    """The last lines of a stage: its numbers and where its files are."""
    from e2h_jax.stage import read_json

    lines = []
    width = max([22, *map(len, metrics)]) + 2
    for name, value in metrics.items():
        if isinstance(value, str | int | float):
            lines.append(f"  {name:{width}}{f'{value:.6g}' if isinstance(value, float) else value}")
    done = read_json(workdir / "done.json")
    took = f" in {done['seconds']:.1f} s" if done else ""
    return "\n".join([*lines, f"e2h: {stage} finished{took}; its files are in {workdir}"])


def _quiet_libraries() -> None:
    """Keeps third-party chatter off the terminal; variables that the user has set stay as they are."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's C++ log: errors only
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns whenever a worker process is forked
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax and Grain report every save and restore
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # errors in Orbax's tasks, which Orbax raises as well
    # Grain and TFDS define absl flags and read them; theirs keep their defaults.
    flags.FLAGS(["e2h"])


if __name__ == "__main__":
    sys.exit(main())
