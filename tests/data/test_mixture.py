"""Mixtures by what a reward model's loss averages: labelled tokens or steps, not records."""

import json
from collections import Counter

import numpy as np
import pytest

from e2h_jax.data import mixture, prepare
from e2h_jax.data.batches import step_label_example
from e2h_jax.data.lengths import labelled_sizes
from e2h_jax.data.records import read_many
from e2h_jax.data.steps import encode_labelled
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.errors import UserError

E2H = get_template("e2h")


def record(steps, labels, prefix="", **fields):
    return {"problem_id": None, "question": "1+1?", "prefix": prefix, "steps": steps, "labels": labels, "level": 1} | fields


@pytest.fixture
def parts(tmp_path):
    """Shaped like PRM800K (one alternative step behind a prefix, some whole solutions) and like outcomes (whole solutions)."""
    rng = np.random.default_rng(0)
    prm = [record(["a=1"], [0.0], "b=2; b=2\n\nc=3", number=n) for n in range(300)]
    prm += [record(["a", "bb", "c"], [1.0, None, 0.0], number=300 + n) for n in range(100)]
    orm = [
        record(["ab"] * int(k) + ["# Answer\n\n2"], [float(n % 2)] * (int(k) + 1), number=n)
        for n, k in enumerate(rng.integers(2, 9, 400))
    ]
    for name, records in (("prm", prm), ("orm", orm)):
        write_records(tmp_path / f"{name}.jsonl", records)
    return {"prm": prm, "orm": orm}


@pytest.fixture
def mixed(tmp_path, tokenizers):
    tokenizers.words.save_pretrained(tmp_path / "words")
    count = 0

    def run(shares=(1, 1), tokenizer=True, **fields):
        nonlocal count
        count += 1
        config = prepare.defaults().unlock()
        paths = {n: {"path": str(tmp_path / f"{n}.jsonl"), "share": s} for n, s in zip(("prm", "orm"), shares, strict=True)}
        tokenizer = str(tmp_path / "words") if tokenizer else ""
        config.update({"source": "mixture", "name": "m", "mixture": paths, "tokenizer": tokenizer, "format": "jsonl"} | fields)
        summary = prepare.run(config, tmp_path / f"out{count}")
        card = json.loads((tmp_path / f"out{count}" / "m" / "card.json").read_text())
        return read_many(tmp_path / f"out{count}" / "m" / "train.jsonl", "labelled"), summary, card

    return run


def labels(record):
    return sum(label is not None for label in record["labels"])


def tokens_of(tokenizer, record):
    """What the loss averages: the weights of the very example that is trained on."""
    ((encoded, first),) = encode_labelled(tokenizer, [record], E2H, add_eos=True)
    return int(step_label_example(encoded, first, record["labels"], "all")["label_weights"].sum())


@pytest.mark.parametrize("kind", ["words", "bpe", "bytes", "greedy"])
def test_labelled_tokens_are_those_that_the_loss_weighs(parts, tokenizers, kind):
    tokenizer = getattr(tokenizers, kind)
    some = parts["prm"][298:303] + parts["orm"][:5] + [record(["a\n\nb", "# Answer"], [1.0, None]), record(["a"], [0.5])]
    assert [size for _, size in labelled_sizes(some, tokenizer, E2H)] == [tokens_of(tokenizer, r) for r in some]
    assert [size for size, _ in labelled_sizes(some, tokenizer, E2H)] == [
        len(encoded.tokens) for encoded, _ in encode_labelled(tokenizer, some, E2H, add_eos=True)
    ]


@pytest.mark.parametrize(
    ("by", "shares"), [("", (1, 1)), ("tokens", (3, 1)), ("steps", (1, 1)), ("steps", (0.2, 0.8)), ("steps", (1, 10))]
)
def test_shares_are_of_what_is_labelled(parts, mixed, tokenizers, by, shares):
    records, summary, card = mixed(shares, mixture_by=by)
    size = labels if by == "steps" else lambda r: tokens_of(tokenizers.words, r)
    held = {name: sum(size(r) for r in records if r["part"] == name) for name in parts}
    whole = {name: sum(map(size, made)) for name, made in parts.items()}
    assert held["prm"] / sum(held.values()) == pytest.approx(shares[0] / sum(shares), abs=0.01)
    # The largest one without repetition: the scarcest part is there as a whole.
    scarcest = min(parts, key=lambda name: whole[name] / shares[list(parts).index(name)])
    assert held[scarcest] == whole[scarcest] and sum(r["part"] == scarcest for r in records) == 400
    assert max(Counter((r["part"], r["number"]) for r in records).values()) == 1
    for name, made in parts.items():
        mine = [r for r in records if r["part"] == name]
        assert summary[f"{name}: records"] == len(mine) and summary[f"{name}: records left out"] == 400 - len(mine)
        assert summary[f"{name}: labelled steps"] == sum(map(labels, mine))
        assert summary[f"{name}: labelled steps left out"] == sum(map(labels, made)) - sum(map(labels, mine))
        assert summary[f"{name}: labelled tokens"] == sum(tokens_of(tokenizers.words, r) for r in mine)
    (rule,) = (rule for rule in card["rules"] if rule.startswith("Part prm, "))
    assert f"{held['prm'] / sum(held.values()):.1%} of the {by or 'tokens'}" in rule
    steps = summary["prm: labelled steps"]
    assert f"{steps:,} of 500 labelled steps ({steps / 500:.0%})" in rule and "labelled tokens" in rule


def test_without_a_tokenizer_steps_are_counted(parts, mixed):
    records, summary, _ = mixed(tokenizer=False)
    steps = Counter()
    for r in records:
        steps[r["part"]] += labels(r)
    assert steps["prm"] == 500 and steps["orm"] == pytest.approx(500, abs=5) and "prm: labelled tokens" not in summary
    assert mixed(tokenizer=False)[0] == records
    assert mixed(tokenizer=False, seed=1)[0] != records


def test_records_too_long_are_left_out_before_the_shares_are_taken(parts, mixed, tokenizers):
    limit = 26
    records, summary, _ = mixed(max_tokens=limit)
    fits = {name: [size for size, _ in labelled_sizes(made, tokenizers.words, E2H)] for name, made in parts.items()}
    long = sum(size > limit for size in fits["orm"])
    assert 0 < long < 400 and summary[f"orm: records of more than {limit} tokens, left out"] == long
    held = {name: sum(tokens_of(tokenizers.words, r) for r in records if r["part"] == name) for name in parts}
    assert held["prm"] == pytest.approx(held["orm"], abs=10)
    for name, made in parts.items():  # of what fits, all is either in the mixture or left out
        fitting = [r for r, size in zip(made, fits[name], strict=True) if size <= limit]
        for word, size in (("records", lambda r: 1), ("labelled steps", labels)):
            assert summary[f"{name}: {word}"] + summary[f"{name}: {word} left out"] == sum(map(size, fitting))
        tokens = sum(tokens_of(tokenizers.words, r) for r in fitting)
        assert summary[f"{name}: labelled tokens"] + summary[f"{name}: labelled tokens left out"] == tokens
    assert all(size <= limit for size, _ in labelled_sizes(records, tokenizers.words, E2H))


def test_mixtures_that_cannot_be_made(parts, mixed, tmp_path):
    with pytest.raises(UserError, match="config.mixture_by=tokens: set config.tokenizer"):
        mixed(tokenizer=False, mixture_by="tokens")
    with pytest.raises(UserError, match='config.mixture_by="step" is unknown .did you mean "steps"'):
        mixed(mixture_by="step")
    with pytest.raises(UserError, match=r"config.mixture.orm.path=.*orm.jsonl: it has no label of these levels and lengths"):
        mixed(levels=(2,))
    write_records(tmp_path / "orm.jsonl", [record(["a"], [None])])
    with pytest.raises(UserError, match=r"config.mixture.orm.path=.*orm.jsonl: it has no label"):
        mixed()


def test_shares_from_the_command_line_are_texts(parts, mixed):
    assert mixed(("0.5", 1))[0] == mixed((0.5, 1))[0] != mixed()[0]


def test_one_record_at_least_of_each_part(parts, mixed, tmp_path):
    write_records(tmp_path / "prm.jsonl", parts["prm"][:1])
    records, _, card = mixed((1000, 1), mixture_by="steps")
    assert any("1 of 1 labelled steps (100%)" in rule for rule in card["rules"])
    assert Counter(r["part"] for r in records) == {"prm": 1, "orm": 1}


def test_of_the_scarcest_part_records_without_labels_stay_too(parts, mixed, tmp_path):
    write_records(tmp_path / "prm.jsonl", [record(["a"], [1.0]), *[record(["a"], [None], number=n) for n in range(9)]])
    assert sum(r["part"] == "prm" for r in mixed((1, 1))[0]) == 10


@pytest.mark.parametrize(("target", "count"), [(1, 1), (12, 2), (12.5, 2), (13, 3), (15, 3), (19, 4), (40, 4), (np.inf, 4)])
def test_records_are_drawn_until_the_nearest_to_the_target(target, count):
    sizes = np.array([[1, 5, 90], [0, 0, 0], [1, 5, 80], [1, 5, 70], [1, 5, 60]])  # the second is too long
    drawn = mixture._draw(sizes, 1, target, "seed")
    assert drawn.dtype == bool and drawn.sum() == count and not drawn[1]
    assert {tuple(mixture._draw(sizes, 1, 12, str(seed))) for seed in range(9)} > {tuple(mixture._draw(sizes, 1, 12, "0"))}
    assert mixture._draw(np.array([[1, 0, 9], [1, 2, 9]]), 2, np.inf, "seed").all()  # one without labelled steps too
    assert mixture._draw(sizes, 2, 300, "seed").sum() == 4 and mixture._draw(sizes, 0, 3, "seed").sum() == 3


def test_a_record_of_just_the_limit_stays_and_levels_choose(parts, mixed, tokenizers, tmp_path):
    (size, _), *_ = labelled_sizes(parts["prm"][:1], tokenizers.words, E2H)
    _, summary, _ = mixed(max_tokens=size)
    assert summary["prm: records"] == 400 and f"prm: records of more than {size} tokens, left out" not in summary
    _, summary, _ = mixed(max_tokens=size - 1)
    assert summary[f"prm: records of more than {size - 1} tokens, left out"] == 300
    write_records(tmp_path / "orm.jsonl", [r | {"level": 1 + n % 2} for n, r in enumerate(parts["orm"])])
    assert {r["number"] % 2 for r in mixed(levels=(1,))[0] if r["part"] == "orm"} == {0}
    write_records(tmp_path / "orm.jsonl", [r | {"level": 1 if n % 2 else None} for n, r in enumerate(parts["orm"])])
    assert {r["number"] % 2 for r in mixed(levels=(1,))[0] if r["part"] == "orm"} == {1}  # no level is none of them


def test_a_record_s_part_is_the_mixture_s_own(parts, mixed, tmp_path):
    write_records(tmp_path / "orm.jsonl", [r | {"part": "of another mixture"} for r in parts["orm"]])
    assert {r["part"] for r in mixed(mixture_by="records")[0]} == {"prm", "orm"}


@pytest.mark.parametrize(
    "part",
    [
        *("x", {"path": "x"}, {"path": 1, "share": 1}, {"more": 1, "path": "x", "share": 1}),
        *({"path": "x", "share": share} for share in (0, np.inf, True, "half", "", "nan", "-1", None)),
    ],
)
def test_a_part_is_a_path_and_a_share(tmp_path, part):
    config = prepare.defaults().unlock()
    config.update({"source": "mixture", "name": "m", "mixture": {"prm": part, "orm": {"path": "y", "share": 1}}})
    with pytest.raises(UserError) as error:
        prepare.check_values(config)
    assert str(error.value) == f"config.mixture.prm must be a path and a positive share, not {part}."
