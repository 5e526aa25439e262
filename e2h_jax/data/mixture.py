"""A mixture of labelled data sets in a stated ratio: an OPRM learns from PRM and ORM records (paper section 3.3).

A reward model's loss is a mean over labelled tokens, so a part weighs by what it has of these, not by its records: a record of
PRM800K is mostly one step behind a long prefix, an outcome record a whole solution. So shares are of labelled tokens or steps.
"""

import math
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from e2h_jax.data.cards import Card
from e2h_jax.data.lengths import BATCH, labelled_sizes
from e2h_jax.data.records import read_records
from e2h_jax.data.sources.math import MathIndex
from e2h_jax.data.templates import Template
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError, nearest

SOURCE = "A mixture of prepared data sets."
UNITS = ("records", "steps", "tokens")  # steps and tokens: those with a label


def read(config: Any, template: Template, index: MathIndex | None, card: Card) -> Iterator[tuple[str, dict]]:
    """Yields ("train", labelled record with `part`).

    Config: mixture {name: {path, share}}, mixture_by, levels, seed, tokenizer, and max_tokens: longer records are left out
    before the shares are taken. The mixture is the largest that has these shares and repeats nothing: of one part, the scarcest
    for its share, all records; of each other part whole records, drawn by the seed, until it has its share. Card and summary
    tell what that leaves out.
    """
    shares = _shares(config)
    by = config.mixture_by or ("tokens" if config.tokenizer else "steps")
    unit = UNITS.index(by)
    sizes = {name: _measure(config, name, template, card) for name in shares}
    totals = {name: int(found[:, unit].sum()) for name, found in sizes.items()}
    if empty := [name for name, total in totals.items() if not total]:
        path = config.mixture[empty[0]]["path"]
        raise UserError(f"config.mixture.{empty[0]}.path={path}: it has no label of these levels and lengths.")
    scarcest = min(shares, key=lambda name: totals[name] / shares[name])
    targets = {name: totals[scarcest] / shares[scarcest] * share for name, share in shares.items()} | {scarcest: math.inf}
    chosen = {name: _draw(found, unit, targets[name], f"mixture-{config.seed}-{name}") for name, found in sizes.items()}
    _state(card, by, sizes, chosen)
    for name, drawn in chosen.items():
        yield from (("train", record | {"part": name}) for n, record in enumerate(_records(config, name)) if drawn[n])


def check(config: Any) -> None:
    """Raises UserError for a mixture without two parts, of a path and a share each, and for a unit that is unknown."""
    _shares(config)
    by = config.mixture_by
    if by and by not in UNITS:
        raise UserError(f'config.mixture_by="{by}" is unknown{nearest(by, UNITS)}; it is {", ".join(UNITS)} or "".')
    if by == "tokens" and not config.tokenizer:
        raise UserError("config.mixture_by=tokens: set config.tokenizer to the reward model's, or count by steps.")


def _shares(config: Any) -> dict[str, float]:
    shares = {}
    for name, part in config.mixture.items():
        part = part.to_dict() if isinstance(part, ConfigDict) else part
        fits = isinstance(part, dict) and part.keys() == {"path", "share"} and isinstance(part["path"], str)
        shares[name] = _number(part["share"]) if fits else 0.0
        if not 0 < shares[name] < math.inf:
            raise UserError(f"config.mixture.{name} must be a path and a positive share, not {part}.")
    if len(shares) < 2:
        raise UserError('config.mixture needs two parts or more, such as {"prm": {"path": …, "share": 1}, "orm": {…}}.')
    return shares


def _number(share: Any) -> float:
    """A share, which is a text from the command line; 0.0 for what is no number."""
    try:
        return float(share) if type(share) in (int, float, str) else 0.0
    except ValueError:
        return 0.0


def _records(config: Any, name: str) -> Iterator[dict]:
    """A part's records of the levels, in their order."""
    records = read_records(config.mixture[name]["path"], "labelled")
    return (record for record in records if not config.levels or record["level"] in config.levels)


def _measure(config: Any, name: str, template: Template, card: Card) -> np.ndarray:
    """int64 [records, units]: what each record has; all 0 for one that is too long, tokens 0 without a tokenizer."""
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    records, rows = _records(config, name), []
    while batch := list(islice(records, BATCH)):
        steps = [sum(label is not None for label in record["labels"]) for record in batch]
        tokens = labelled_sizes(batch, tokenizer, template) if tokenizer else [(0, 0)] * len(batch)
        for number, (length, labelled) in zip(steps, tokens, strict=True):
            too_long = 0 < config.max_tokens < length
            if too_long:
                card.counts[f"{name}: records of more than {config.max_tokens} tokens, left out"] += 1
            rows.append((0, 0, 0) if too_long else (1, number, labelled))
    return np.array(rows, np.int64).reshape(-1, len(UNITS))


def _draw(sizes: np.ndarray, unit: int, target: float, seed: str) -> np.ndarray:
    """bool [records]: records drawn at random, one at least, whose units together come as near to `target` as they can."""
    order = np.flatnonzero(sizes[:, 0]).tolist()
    random.Random(seed).shuffle(order)
    reached = np.cumsum(sizes[order, unit])
    count = int(np.searchsorted(reached, target))
    if count < len(order) and (count == 0 or reached[count] - target < target - reached[count - 1]):
        count += 1
    drawn = np.zeros(len(sizes), bool)
    drawn[order[:count]] = True
    return drawn


def _state(card: Card, by: str, sizes: dict[str, np.ndarray], chosen: dict[str, np.ndarray]) -> None:
    """Says on the card what of each part is in the mixture."""
    kept = {name: found[chosen[name]].sum(0).tolist() for name, found in sizes.items()}
    whole = sum(numbers[UNITS.index(by)] for numbers in kept.values())
    card.rules.append(
        f"Shares are of {'' if by == 'records' else 'labelled '}{by}. The largest mixture that has them and repeats nothing: "
        "of the scarcest part all records, of each other part whole records drawn by the seed, in the order of the parts."
    )
    for name, found in sizes.items():
        share = f"{kept[name][UNITS.index(by)] / whole:.1%}"
        counts = []
        for unit, word in enumerate(("records", "labelled steps", "labelled tokens")):
            total = int(found[:, unit].sum())
            if unit < 2 or total:
                counts.append(f"{kept[name][unit]:,} of {total:,} {word} ({kept[name][unit] / max(1, total):.0%})")
                card.counts[f"{name}: {word}"] = kept[name][unit]
                card.counts[f"{name}: {word} left out"] = total - kept[name][unit]
        card.rules.append(f"Part {name}, {share} of the {by}: {', '.join(counts)}.")
