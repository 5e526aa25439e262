"""From token arrays to packed batches: a Grain pipeline whose position is part of every checkpoint.

An example is a dict of equally long 1-D arrays (`language_model_example` and `step_label_example` below make them). Several
examples share a row; `segment_ids` keeps them apart (1, 2, … per row; 0 is padding) and `positions` is each one's own.
"""

from collections.abc import Mapping, Sequence

import grain
import numpy as np

from e2h_jax.data.steps import EncodedSolution
from e2h_jax.errors import UserError

Example = Mapping[str, np.ndarray]
OPEN_ROWS = 16  # rows that first fit chooses among
_NONE = np.zeros((0, 2), np.int32)
BLANK = EncodedSolution(np.zeros(2, np.int32), 1, _NONE, _NONE, False)  # an example of it has the fields that every one has


def language_model_example(encoded: EncodedSolution, train_on_prompt: bool, ends: bool = True) -> Example:
    """Next-token prediction on a solution (and on its prompt too, for pre-training).

    `ends` tells whether the solution is complete: if not, EOS is not trained on.

    Returns tokens, targets, positions int32 [T - 1] and loss_weights float32 [T - 1]: weight 1 where the target is trained on.
    """
    tokens = encoded.tokens
    weights = np.ones(len(tokens) - 1, np.float32)
    if not train_on_prompt:
        weights[: encoded.prompt_length - 1] = 0.0
    if not ends:
        weights[-1] = 0.0
    positions = np.arange(len(tokens) - 1, dtype=np.int32)
    return {"tokens": tokens[:-1], "targets": tokens[1:], "positions": positions, "loss_weights": weights}


def step_label_example(
    encoded: EncodedSolution,
    first_step: int,
    labels: Sequence[float | None],
    label_tokens: str,
    gap: int = 0,
    *,
    ends: bool = True,
    lm_wrong: float = 1.0,
) -> Example:
    """Step classification: token t carries its step's label with no shift, as the score at t judges the token at t.

    Args:
      encoded: the solution, EOS included; EOS itself is only a target of the auxiliary language-model loss.
      first_step: index of the first labelled step; earlier ones are context, like the prompt.
      labels: one per labelled step, in [0, 1], None = not trained on.
      label_tokens: "all" = every token of the step and of the blank lines after it; "end" = its last token and the blank
        lines, wherever a score may be read (original-system.md section 3.4 has both).
      gap: added to the positions of the solution's tokens, as if the prompt were so much longer.
      ends: whether the solution ends after its last step; if not, EOS is not trained on.
      lm_wrong: weight in the auxiliary language-model loss of the steps labelled wrong (below one half), with the blank lines
        after them; of the last step, with EOS. All else of the solution has weight 1.

    Returns tokens, targets, positions int32 [T - 1], and loss_weights (of the auxiliary language-model loss), labels and
    label_weights float32 [T - 1].
    """
    length = len(encoded.tokens) - 1
    label_row, weight_row = np.zeros(length, np.float32), np.zeros(length, np.float32)
    example = dict(language_model_example(encoded, train_on_prompt=False, ends=ends))
    if first_step:
        example["loss_weights"][: encoded.separators[first_step - 1, 1] - 1] = 0.0
    for (start, end), (_, gap_end), label in zip(
        encoded.steps[first_step:], encoded.separators[first_step:], labels, strict=False
    ):
        if label is None or start == end:
            continue
        where = slice(start if label_tokens == "all" else end - 1, gap_end)
        label_row[where], weight_row[where] = label, 1.0
        if label < 0.5:  # the target of position t is token t + 1
            example["loss_weights"][max(0, start - 1) : length if gap_end == length else gap_end - 1] *= lm_wrong
    example["positions"][encoded.prompt_length :] += gap
    return example | {"labels": label_row, "label_weights": weight_row}


def plan_rows(lengths: Sequence[int], *, length: int, seed: int, epochs: int) -> list[np.ndarray]:
    """Which examples share a row: int32 indices per row, shuffled anew each epoch, first fit over a window of open rows.

    Every example appears exactly once an epoch. The plan depends on (lengths, length, seed, epochs) alone, and fixes the number
    of rows before anything runs.
    """
    rows: list[np.ndarray] = []
    for epoch in range(epochs):
        rng = np.random.default_rng((seed, epoch))
        opened: list[list[int]] = []
        room: list[int] = []
        finished: list[list[int]] = []
        for index in rng.permutation(len(lengths)).tolist():
            need = lengths[index]
            for slot, free in enumerate(room):
                if need <= free:
                    opened[slot].append(index)
                    room[slot] = free - need
                    break
            else:
                if len(opened) == OPEN_ROWS:
                    fullest = room.index(min(room))
                    finished.append(opened.pop(fullest))
                    room.pop(fullest)
                opened.append([index])
                room.append(length - need)
        finished += opened
        # Rows close fullest first, which groups examples of like lengths: shuffle them apart again.
        rows += [np.array(finished[i], np.int32) for i in rng.permutation(len(finished))]
    return rows


def packed_batches(
    examples: Sequence[Example],
    *,
    length: int,
    batch_size: int,
    seed: int,
    epochs: int,
    own: Sequence[int] | None = None,
) -> tuple[grain.IterDataset, int]:
    """Packs examples into rows of `length` tokens, and rows into batches, of which it makes the rows `own` (None = all).

    The last batch is filled up with padding rows, so every example is seen exactly `epochs` times. The batches depend on `seed`
    and the data alone, whichever process makes which of their rows.

    Returns:
      a dataset of dicts of [len(own), length] arrays, and the number of batches in it.

    Raises:
      UserError: an example is longer than a row, or there is none.
    """
    if not examples:
        raise UserError("no training example is left; check config.data, config.levels and config.length")
    lengths = [len(example["tokens"]) for example in examples]
    if max(lengths) > length:
        raise UserError(f"an example has {max(lengths)} tokens but rows hold {length}; raise config.length")
    rows = plan_rows(lengths, length=length, seed=seed, epochs=epochs)
    rows += [np.zeros(0, np.int32)] * (-len(rows) % batch_size)
    dtypes = {name: array.dtype for name, array in examples[0].items()}

    def fill(members: np.ndarray) -> dict[str, np.ndarray]:
        row = {name: np.zeros(length, dtype) for name, dtype in dtypes.items()}
        row["segment_ids"] = np.zeros(length, np.int32)
        start = 0
        for segment, index in enumerate(members.tolist(), start=1):
            stop = start + lengths[index]
            for name, array in examples[index].items():
                row[name][start:stop] = array
            row["segment_ids"][start:stop] = segment
            start = stop
        return row

    own = range(batch_size) if own is None else own
    mine = [rows[start + row] for start in range(0, len(rows), batch_size) for row in own]
    dataset = grain.MapDataset.source(mine).map(fill)
    dataset = dataset.batch(len(own)).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
    )
    return dataset, len(rows) // batch_size
