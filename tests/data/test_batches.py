"""Examples by hand; packing that shows every example once an epoch, whatever the processes, wherever it is resumed."""

from collections import Counter

import numpy as np
import pytest

from e2h_jax.data.batches import language_model_example, packed_batches, plan_rows, step_label_example
from e2h_jax.data.steps import EncodedSolution, encode_steps
from e2h_jax.data.templates import get_template
from e2h_jax.errors import UserError

#                   0  1  2 | 3   4   5  6   7   8  9   10
# tokens            b  q  q | s1  s1  _  s2  _   #  a   eos
ENCODED = EncodedSolution(
    tokens=np.array([1, 20, 21, 30, 31, 9, 32, 9, 40, 41, 2], np.int32),
    prompt_length=3,
    steps=np.array([[3, 5], [6, 7], [8, 10]], np.int32),
    separators=np.array([[5, 6], [7, 8], [10, 10]], np.int32),
    has_answer=True,
)


def test_next_token_prediction_by_hand():
    example = language_model_example(ENCODED, train_on_prompt=False)
    assert example["tokens"].tolist() == [1, 20, 21, 30, 31, 9, 32, 9, 40, 41]
    assert example["targets"].tolist() == [20, 21, 30, 31, 9, 32, 9, 40, 41, 2]
    assert example["positions"].tolist() == list(range(10))
    assert example["loss_weights"].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]  # from the solution's first token to EOS
    whole = language_model_example(ENCODED, train_on_prompt=True)
    assert whole["loss_weights"].tolist() == [1] * 10
    assert {name: array.dtype.name for name, array in example.items()} == {
        "tokens": "int32", "targets": "int32", "positions": "int32", "loss_weights": "float32"
    }  # fmt: skip


def test_labels_on_every_token_of_a_step():
    example = step_label_example(ENCODED, 0, [1.0, 0.25, 0.0], "all")
    assert example["labels"].tolist() == [0, 0, 0, 1, 1, 1, 0.25, 0.25, 0, 0]
    assert example["label_weights"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert example["labels"].dtype == example["label_weights"].dtype == np.float32


def test_labels_where_a_step_ends():
    example = step_label_example(ENCODED, 0, [1.0, 0.25, 0.75], "end")
    assert example["labels"].tolist() == [0, 0, 0, 0, 1, 1, 0.25, 0.25, 0, 0.75]
    assert example["label_weights"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]


def test_null_labels_and_prefix_steps_are_not_trained_on():
    example = step_label_example(ENCODED, 0, [None, 1.0, None], "all")
    assert example["label_weights"].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0, 0]
    example = step_label_example(ENCODED, 1, [0.0, 1.0], "all")
    assert example["label_weights"].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert example["labels"].tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("label_tokens", ["all", "end"])
def test_the_language_model_loss_of_steps_labelled_wrong(label_tokens):
    """Targets are b → q q s1 s1 _ s2 _ # a eos: a wrong step takes its blank line along, the last one EOS."""

    def weights(first, labels, **fields):
        return step_label_example(ENCODED, first, labels, label_tokens, **fields)["loss_weights"].tolist()

    assert weights(0, [1.0, 0.5, 1.0], lm_wrong=0.0) == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert weights(0, [0.49, 1.0, 1.0], lm_wrong=0.0) == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert weights(0, [1.0, 0.0, 1.0], lm_wrong=0.25) == [0, 0, 1, 1, 1, 0.25, 0.25, 1, 1, 1]
    assert weights(0, [1.0, 1.0, 0.0], lm_wrong=0.5) == [0, 0, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5]
    assert weights(0, [None, None, 0.0], lm_wrong=0.0) == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert weights(0, [0.0, 0.0, 0.0]) == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert weights(1, [0.0, 1.0], lm_wrong=0.0) == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]  # nor are the prefix's tokens targets
    assert weights(2, [1.0], lm_wrong=0.0) == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert weights(0, [1.0, 1.0, 1.0], ends=False) == [0, 0, 1, 1, 1, 1, 1, 1, 1, 0]
    assert weights(0, [1.0, 1.0, 0.0], lm_wrong=0.5, ends=False) == [0, 0, 1, 1, 1, 1, 1, 0.5, 0.5, 0]


def test_a_gap_moves_the_solution_only():
    example = step_label_example(ENCODED, 0, [1, 1, 1], "all", gap=np.int64(100))
    assert example["positions"].tolist() == [0, 1, 2, *range(103, 110)]
    assert example["positions"].dtype == np.int32
    plain = step_label_example(ENCODED, 0, [1, 1, 1], "all")
    assert plain["positions"].tolist() == list(range(10))
    assert all((example[name] == plain[name]).all() for name in plain if name != "positions")


def test_a_real_record_has_its_labels_where_its_scores_are_read(tokenizers):
    encoded, first = encode_steps(
        tokenizers.words, "a=1", "b=2", ["c=3", "d=4", "# Answer\n\n4"], get_template("e2h"), add_eos=True
    )
    example = step_label_example(encoded, first, [1.0, None, 0.5], "all")
    text = [tokenizers.words.decode([token]) for token in example["tokens"]]
    trained = [(t, y) for t, y, w in zip(text, example["labels"], example["label_weights"], strict=True) if w]
    assert trained == [*[(t, 1.0) for t in ("c", "=", "3", "\n\n")], ("# Answer\n\n", 0.5), ("4", 0.5)]


def example(index, length):
    return {
        "tokens": np.full(length, index + 1, np.int32),
        "targets": np.arange(length, dtype=np.int32) + 100 * index,
        "positions": np.arange(length, dtype=np.int32),
        "loss_weights": np.full(length, 0.5, np.float32),
    }


LENGTHS = np.random.default_rng(0).integers(1, 17, 75).tolist()
EXAMPLES = [example(index, length) for index, length in enumerate(LENGTHS)]


def batches_of(**changes):
    settings = {"length": 16, "batch_size": 4, "seed": 3, "epochs": 1} | changes
    dataset, count = packed_batches(EXAMPLES, **settings)
    found = list(dataset)
    assert len(found) == count
    return found


def members(batch):
    """The (index, length) of every segment of a batch, after checking that it is an example, unbroken."""
    found = []
    for row in range(len(batch["tokens"])):
        segments = batch["segment_ids"][row]
        assert (np.diff(segments)[segments[1:] > 0] >= 0).all(), "segments are numbered from the left, padding is last"
        assert set(segments.tolist()) - {0} == set(range(1, segments.max() + 1))
        for segment in range(1, segments.max() + 1):
            where = segments == segment
            index = int(batch["tokens"][row][where][0]) - 1
            for name, array in EXAMPLES[index].items():
                np.testing.assert_array_equal(batch[name][row][where], array)
            found.append(index)
        for name in EXAMPLES[0]:
            assert (batch[name][row][segments == 0] == 0).all()
    return found


def test_every_example_exactly_once_an_epoch():
    batches = batches_of(epochs=3)
    seen = [index for batch in batches for index in members(batch)]
    assert Counter(seen) == Counter({index: 3 for index in range(75)})
    epochs = [seen[i * 75 : (i + 1) * 75] for i in range(3)]
    assert all(sorted(epoch) == list(range(75)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3  # each in another order
    assert epochs[0] != sorted(epochs[0])
    assert all(batch["tokens"].shape == (4, 16) for batch in batches)
    assert set(batches[0]) == {"tokens", "targets", "positions", "loss_weights", "segment_ids"}
    assert batches[0]["segment_ids"].dtype == np.int32 and batches[0]["loss_weights"].dtype == np.float32


def test_packing_wastes_little():
    batches = batches_of()
    assert sum(int((batch["segment_ids"] > 0).sum()) for batch in batches) == sum(LENGTHS)
    assert len(batches) <= -(-sum(LENGTHS) // (0.9 * 16 * 4))


def test_rows_that_were_closed_full_are_not_seen_first():
    """Long and short examples stay mixed: no part of the epoch has rows of one kind only."""
    lengths = [16] * 100 + [1, 2] * 50
    rows = plan_rows(lengths, length=16, seed=0, epochs=1)
    singles = np.array([len(row) == 1 for row in rows])
    places = np.flatnonzero(~singles) / len(rows)
    assert 0.2 < places.mean() < 0.8


def test_the_seed_decides():
    first, again, other = batches_of(), batches_of(), batches_of(seed=4)
    assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(first, again, strict=True))
    assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(first, other, strict=False))


@pytest.mark.parametrize("shares", [([0, 1], [2, 3]), ([0, 3], [1, 2]), ([0], [1], [2], [3])])
def test_processes_make_their_rows_of_the_same_batches(shares):
    whole = batches_of(epochs=2)
    for own in shares:
        part = batches_of(epochs=2, own=own)
        assert len(part) == len(whole)
        for mine, batch in zip(part, whole, strict=True):
            for name in batch:
                np.testing.assert_array_equal(mine[name], batch[name][own])


def test_the_last_batch_is_filled_with_padding_rows():
    dataset, count = packed_batches([example(0, 16)] * 5, length=16, batch_size=4, seed=0, epochs=1)
    batches = list(dataset)
    assert count == len(batches) == 2
    last = batches[1]
    assert (last["segment_ids"].max(axis=1) > 0).sum() == 1
    assert last["loss_weights"].sum() == 8
    assert all((last[name][1:] == 0).all() for name in last)


@pytest.mark.parametrize("at", [0, 1, 5])
def test_an_iterator_goes_on_from_its_state(at):
    dataset, count = packed_batches(EXAMPLES, length=16, batch_size=4, seed=3, epochs=2)
    assert count > 6
    iterator = iter(dataset)
    for _ in range(at):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    assert len(rest) == count - at
    fresh = iter(packed_batches(EXAMPLES, length=16, batch_size=4, seed=3, epochs=2)[0])
    fresh.set_state(state)
    for a, b in zip(rest, fresh, strict=True):
        assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize(
    ("examples", "changes", "sentence"),
    [
        ([], {}, "no training example is left"),
        ([example(0, 17)], {}, r"an example has 17 tokens but rows hold 16; raise config\.length"),
    ],
)
def test_what_cannot_be_batched(examples, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        packed_batches(examples, **({"length": 16, "batch_size": 4, "seed": 0, "epochs": 1} | changes))
