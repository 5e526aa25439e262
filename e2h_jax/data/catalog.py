"""The sources of `prepare` that become data sets: how each is read, and what can be made of it.

To add one: write a generator `read(config, template, index, card)` that yields (split, record), counts in card.counts what it
leaves out, and states its rules in card.rules; then give it an entry in CATALOG.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from e2h_jax.data import mixture, prefixes
from e2h_jax.data.cards import Card
from e2h_jax.data.sources import benchmarks, gsm8k, math_sets, math_shepherd, metamath, own, prm800k
from e2h_jax.data.sources.math import MathIndex
from e2h_jax.data.templates import Template

Read = Callable[[Any, Template, MathIndex | None, Card], Iterator[tuple[str, dict]]]


@dataclass(frozen=True)
class Entry:
    """One source.

    Attributes:
      kinds: what config.records may be, and the kind of record that makes it; the first is the default.
      source: a sentence for the card.
      fields: what it reads of the config besides COMMON; `prepare` refuses other fields that are set.
      needs_index: whether it looks problems up in MATH (config.math).
      measures: whether it leaves out what is longer than config.max_tokens itself.
      check: raises UserError for values that make no sense, before any file is read.
    """

    read: Read
    kinds: dict[str, str]
    source: str
    fields: tuple[str, ...] = ()
    needs_index: bool = False
    measures: bool = False
    check: Callable[[ConfigDict], None] = lambda config: None


COMMON = ("source", "records", "format", "name", "path", "seed", "template", "max_tokens", "tokenizer", "vocab_size")
_INDEX = ("math", "math500", "levels")  # of a source that looks its problems up in MATH
_OWN_SPLITS = ("test_path", "levels", "valid", "test")
_SFT, _PRM = {"sft": "problem"}, {"prm": "labelled"}

CATALOG: dict[str, Entry] = {
    "math": Entry(math_sets.read, _SFT | {"rl": "problem"}, math_sets.SOURCE, (*_OWN_SPLITS, "split")),
    "gsm8k": Entry(gsm8k.records, _SFT, gsm8k.SOURCE, ("levels",)),
    "prm800k": Entry(
        prm800k.records,
        _PRM | _SFT,
        prm800k.SOURCE,
        (*_INDEX, "keep_unknown", "neutral"),
        needs_index=True,
        check=prm800k.check,
    ),
    "metamath": Entry(metamath.records, _SFT, metamath.SOURCE, (*_INDEX, "keep_unknown", "per_question"), needs_index=True),
    "math_shepherd": Entry(math_shepherd.records, _PRM, math_shepherd.SOURCE, (*_INDEX, "tasks"), needs_index=True),
    "prmbench": Entry(benchmarks.prmbench, _PRM, benchmarks.PRMBENCH_SOURCE, (*_INDEX, "keep_unknown"), needs_index=True),
    "processbench": Entry(benchmarks.processbench, _PRM, benchmarks.PROCESSBENCH_SOURCE),
    "jsonl": Entry(
        own.read, _SFT | _PRM, own.SOURCE, (*_OWN_SPLITS, "level_field", "level_map"), check=own.check
    ),
    "mixture": Entry(
        mixture.read, _PRM, mixture.SOURCE, ("mixture", "mixture_by", "levels"), measures=True, check=mixture.check
    ),
    "prefixes": Entry(prefixes.read, _SFT, prefixes.SOURCE, ("samples", "per_problem", "levels")),
}
