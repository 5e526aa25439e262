"""Configs: loading a file, overriding fields from the command line, checking against defaults(), comparing two.

How a config is checked: it has exactly the fields of its stage's `defaults()`, with values of their types. A field that
is None in `defaults()` is optional (make it `ml_collections.config_dict.placeholder(int)`, so that its type is known).
An empty ConfigDict in `defaults()` is open: a config file may put anything into it, the command line texts.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from e2h_jax.errors import UserError, nearest


def load_file(path: str) -> ConfigDict:
    """Returns what `get_config()` of a python file returns, locked. The file may import modules that lie beside it.

    Raises:
      UserError: no such file, no such function, or an error inside the file, with its line.
    """
    file = Path(path)
    if file.suffix != ".py":
        raise UserError(f"a config is a python file, and {path} is not (its name does not end in .py).")
    if not file.is_file():
        if not file.parent.is_dir():
            raise UserError(f"there is no config file {path}: the folder {file.parent} does not exist.")
        others = [str(other) for other in sorted(file.parent.glob("*.py"))]
        raise UserError(f"there is no config file {path}{nearest(str(file), others)}.")
    spec = importlib.util.spec_from_file_location("e2h_config", file.absolute())
    module = importlib.util.module_from_spec(spec)
    try:
        with _imports_from(file.absolute().parent):
            spec.loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise UserError(f"{path} has no function get_config().")
            config = module.get_config()
    except SyntaxError as error:
        where = path if error.filename == spec.origin else error.filename
        raise UserError(f"{where}:{error.lineno}: {error.msg}.") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        if isinstance(error, UserError) and not lines:
            raise
        raise UserError(f"{path}:{lines[-1]}: {_sentence(error)}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returns a {type(config).__name__}, not a ConfigDict.")
    return config.lock()


@contextlib.contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Looks for imported modules in `folder` first, as Python does for a script, and forgets those it found there."""
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        # Another folder's module may have the same name.
        for name in set(sys.modules) - known:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == folder:
                del sys.modules[name]


def _sentence(error: Exception) -> str:
    """An exception of a config file in one line; a misspelt field with the nearest one."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, AttributeError | KeyError):
        # Written: 'Key "x" does not exist and …'; read: "'x'" and perhaps a second line with a suggestion.
        name = re.match(r"""\W*(?:Key "(\w+)" does not|(\w+)\W*$)""", str(error).split("\\n")[0].split("\n")[0])
        groups = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        groups = [group for group in groups if isinstance(group, ConfigDict)]
        if name and groups:
            name = name[1] or name[2]
            return f'there is no field "{name}"{nearest(name, groups[-1])}.'
    return " ".join(f"{type(error).__name__}: {error}".split())


def assignments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into what is assigned to the config ("field=value") and the rest.

    Raises:
      UserError: a field without "=", as if its value were the next word.
    """
    assigned, rest = [], []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        if not (field := re.match(r"--?config\.", argument)):
            rest.append(argument)
            continue
        assigned.append(argument[field.end() :])
        if "=" not in argument:
            value = "…" if following.startswith("--") else following
            raise UserError(f'{argument} needs its value behind a "=", without a space: {argument}={value}')
    return assigned, rest


def override(config: ConfigDict, assignments: Iterable[str], defaults: ConfigDict | None = None) -> None:
    """Applies assignments such as "optimizer.learning_rate=1e-4" to `config`, in place, by the field's type.

    In a group that is open in `defaults`, a field that is not there becomes a text, in groups as its path names them.

    Raises:
      UserError: no such field, or a value of another type.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--config.{path} needs a value: --config.{path}=…")
        *groups, name = path.split(".")
        group, prefix, known = config, "config", defaults
        for part in [*groups, name]:
            if not isinstance(group, ConfigDict):
                raise UserError(f'"{prefix}" is a single field, so there is no "{prefix}.{part}".')
            is_open = known is not None and not len(known)
            if part not in group and is_open and part:
                with group.unlocked():
                    group[part] = "" if prefix.count(".") == len(groups) else ConfigDict()
            if part not in group:
                raise UserError(f'there is no field "{prefix}.{part}"{suggest_field(part, prefix, group)}.')
            holder, group, prefix = group, group[part], f"{prefix}.{part}"
            if not is_open:
                known = known[part] if known is not None and isinstance(known.get(part), ConfigDict) else None
        if isinstance(group, ConfigDict):
            raise UserError(
                f'"{prefix}" is a group of fields; set one of them, such as --{prefix}.{next(iter(group), "x")}=…'
            )
        kind = holder.get_type(name)
        if kind is str and is_open:  # a name of one's own may have characters that the flag's parser does not know
            holder[name] = text
            continue
        if kind is type(None) or (kind is not str and text.lower() == "none"):
            holder[name] = _literal(text)
            continue
        if kind is tuple and _entry_type(group) is str and "," in text and not re.search(r"""["'()]""", text):
            text = repr(tuple(text.split(",")))  # easier to type than "('a','b')"
        values, argument = flags.FlagValues(), f"--config.{path}={text}"
        try:
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["e2h", argument])
            values(["e2h", argument])
        except flags.IllegalFlagValueError:
            raise UserError(f'the field "{prefix}" is {text!r}, which is not {describe(kind, group)}.') from None
        if kind in (tuple, list) and not _fits(holder[name], kind, group):
            raise UserError(f'the field "{prefix}" is {text!r}, which is not {describe(kind, group)}.')


def _literal(text: str) -> Any:
    if text.lower() in ("none", "true", "false"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def check_fields(config: ConfigDict, defaults: ConfigDict, prefix: str = "config") -> None:
    """Raises UserError naming the first field that is unknown, missing, of another type than in `defaults`, or not finite."""
    if found := _not_finite(config, prefix):
        raise UserError(f"the field {found}; give a finite number.")
    if not len(defaults):
        return
    for name in config:
        if name not in defaults:
            raise UserError(f'there is no field "{prefix}.{name}"{suggest_field(name, prefix, defaults)}.')
    for name in defaults:
        path = f"{prefix}.{name}"
        if name not in config:
            raise UserError(f'the field "{path}" is missing; start the config from the defaults() of its stage.')
        value, default = config[name], defaults[name]
        if isinstance(default, ConfigDict) and isinstance(value, ConfigDict):
            check_fields(value, default, path)
        else:
            expected = defaults.get_type(name)
            if not (value is None and default is None) and not _fits(value, expected, default):
                raise UserError(f'the field "{path}" is {value!r}, which is not {describe(expected, default)}.')


def _not_finite(value: Any, path: str) -> str:
    """Names the first number that is NaN or infinite, in groups and tuples too; "" if there is none."""
    if isinstance(value, ConfigDict | Mapping):
        found = (_not_finite(entry, f"{path}.{name}") for name, entry in value.items())
    elif isinstance(value, tuple | list):
        found = (_not_finite(entry, f"{path}[{index}]") for index, entry in enumerate(value))
    else:
        return f'"{path}" is {value}' if isinstance(value, float) and not math.isfinite(value) else ""
    return next(filter(None, found), "")


def suggest_field(name: str, prefix: str, group: ConfigDict) -> str:
    """Returns ' (did you mean "config.x"?)' for the closest field of `group` or below it, else a list of its fields."""
    close = nearest(name, group) or nearest(name, below := {path.split(".")[-1]: path for path in _paths(group)})
    if not close:
        return f"; the fields of {prefix} are {', '.join(group)}" if len(group) else ""
    field = close.split('"')[1]
    return f' (did you mean "{prefix}.{field if field in group else below[field]}"?)'


def _paths(fields: ConfigDict) -> Iterator[str]:
    for name, value in fields.items():
        yield name
        if isinstance(value, ConfigDict):
            yield from (f"{name}.{below}" for below in _paths(value))


def _fits(value: Any, expected: type, default: Any) -> bool:
    if expected is type(None):
        return True
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected in (tuple, list):
        entry = _entry_type(default)
        return isinstance(value, tuple | list) and (entry is None or all(_fits(v, entry, None) for v in value))
    return isinstance(value, expected)


def _entry_type(default: Any) -> type | None:
    """The one type of a tuple's scalar entries; None if it is empty or mixed."""
    types = {type(entry) for entry in default or ()}
    return types.pop() if len(types) == 1 and types <= {int, float, str, bool} else None


def describe(expected: type, default: Any = None) -> str:
    """A type in the words of an error message."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    words[ConfigDict] = "a group of fields"
    if expected in (tuple, list):
        entry = {int: " of whole numbers", float: " of numbers", str: " of texts", bool: " of true and false"}
        return "a tuple" + entry.get(_entry_type(default), "")
    return words.get(expected, f"a {expected.__name__}")


def substitute(config: ConfigDict, run: str) -> ConfigDict:
    """Returns a locked copy of `config` with `{run}` replaced in every string, in tuples and groups too."""

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{run}", run)
        if isinstance(value, tuple | list):
            return type(value)(replaced(entry) for entry in value)
        if isinstance(value, dict):
            return {name: replaced(entry) for name, entry in value.items()}
        return value

    return ConfigDict(replaced(config.to_dict())).lock()


def plain(value: Any, path: str = "config") -> Any:
    """Returns `value` in JSON types: groups as dict, tuples as list, NumPy's and JAX's numbers as Python's, nan as str.

    Raises:
      UserError: something else, with its place in `path`.
    """
    if isinstance(value, ConfigDict | Mapping):
        return {str(name): plain(entry, f"{path}.{name}") for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry, f"{path}[{index}]") for index, entry in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise UserError(f"{path} holds a {type(value).__name__}, which cannot be written to a JSON file.")


def fingerprint(config: ConfigDict) -> str:
    """The SHA-256 of the config's canonical JSON: the same for the same values, whatever the order of the fields."""
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, defaults: Any = None, path: str = "") -> list[str]:
    """Lists the fields in which two plain configs differ, as 'optimizer.steps: 10 -> 20'.

    `old` may lack fields that a later version has added: with their `defaults`, plain as well, they are no difference.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        absent, changes = "(absent)", []
        defaults = defaults if isinstance(defaults, dict) else {}
        for name in (*new, *(name for name in old if name not in new)):
            if name not in old and name in defaults and not differences(defaults[name], new[name]):
                continue
            below = f"{path}.{name}" if path else name
            # Of a group that is new, the fields that differ.
            before = old.get(name, {} if isinstance(new.get(name), dict) else absent)
            changes += differences(before, new.get(name, absent), defaults.get(name), below)
        return changes
    return [] if old == new and type(old) is type(new) else [f"{path}: {old} -> {new}"]
