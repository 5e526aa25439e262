"""What a run chooses for the machine that it begins on: kept in its folder, so that it is resumed with it on any other."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from e2h_jax.parallel import hosts

NAME = "chosen.json"
T = TypeVar("T")


def begun_with(folder: Path, name: str, choose: Callable[[], T], default: T | None = None) -> T:
    """The value of `name` that the run in `folder` has begun with; chosen by the first process where it has none yet.

    What is `default`, and so would be chosen by a resumed run, too, is not written down. To be called by all processes alike;
    a UserError of `choose` is raised by all.
    """
    path = Path(folder) / NAME
    with hosts.together(f"{path}: {name}"):
        kept = json.loads(path.read_text()) if path.exists() else {}
        if name not in kept and hosts.process_index() == 0 and (value := choose()) != default:
            temporary = path.with_name(f".{NAME}.tmp")
            temporary.write_text(json.dumps(kept | {name: value}, indent=2) + "\n")
            os.replace(temporary, path)
    kept = json.loads(path.read_text()) if path.exists() else {}
    return kept.get(name, default)
