"""The paper's own curves of accuracy against N (its figures 4, 5 and 8 to 10), to be drawn beside a run that reproduces one."""

import json
from collections.abc import Mapping
from importlib.resources import files

from e2h_jax.errors import UserError, nearest


def _table() -> dict:
    return json.loads(files("e2h_jax.evaluation").joinpath("paper.json").read_text(encoding="utf-8"))


def check(wanted: Mapping[str, str]) -> None:
    """Raises UserError unless every value of {evaluator: curve} names a curve of the table."""
    for evaluator, name in wanted.items():
        if name not in (known := _table()["curves"]):
            close = nearest(str(name), known)
            raise UserError(f'config.paper.{evaluator}: there is no curve "{name}"{close}; there are {", ".join(known)}.')


def curves(wanted: Mapping[str, str]) -> list[dict]:
    """Returns the named curves: {"evaluator", "name", "figure", "source", "n": [N], "easy", "hard", "all": {decoding: [%]}}."""
    table = _table()
    return [
        {"evaluator": evaluator, "name": name, "source": table["source"], "n": table["n"], **table["curves"][name]}
        for evaluator, name in wanted.items()
    ]
