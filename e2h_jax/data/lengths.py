"""Leaving out records that are too long, by the tokens that a training stage will see: template, BOS and EOS included."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from e2h_jax.data.cards import Card
from e2h_jax.data.steps import encode_continuations, encode_labelled
from e2h_jax.data.templates import Template

BATCH = 512


def token_counts(records: list[dict], kind: str, tokenizer: Any, template: Template) -> list[int]:
    """Tokens of each record: prompt, prefix, solution or steps, and EOS."""
    if kind == "labelled":
        return [len(encoded.tokens) for encoded, _ in encode_labelled(tokenizer, records, template, add_eos=True)]
    return [len(encoded.tokens) for encoded in encode_continuations(tokenizer, records, template)]


def labelled_sizes(records: list[dict], tokenizer: Any, template: Template) -> list[tuple[int, int]]:
    """Of each labelled record its tokens, as `token_counts`, and how many of them have a label (on all tokens of a step)."""
    sizes = []
    for record, (encoded, first) in zip(records, encode_labelled(tokenizer, records, template, add_eos=True), strict=True):
        ends = encoded.separators[first:, 1] - encoded.steps[first:, 0]
        labelled = [size for size, label in zip(ends.tolist(), record["labels"], strict=True) if label is not None]
        sizes.append((len(encoded.tokens), sum(labelled)))
    return sizes


def within(
    stream: Iterable[tuple[str, dict]], kind: str, limit: int, tokenizer: Any, template: Template, card: Card
) -> Iterator[tuple[str, dict]]:
    """The (split, record) of at most `limit` tokens; counts the others. Only train and valid are filtered: tests stay whole."""
    stream = iter(stream)
    while batch := list(islice(stream, BATCH)):
        counts = token_counts([record for _, record in batch], kind, tokenizer, template)
        for (split, record), count in zip(batch, counts, strict=True):
            if count <= limit or split not in ("train", "valid"):
                yield split, record
            else:
                card.counts[f"records of more than {limit} tokens, left out"] += 1
