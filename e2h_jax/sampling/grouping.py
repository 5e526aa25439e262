"""How many rows decode together, and how many of them share a prompt: decided once for a run, by all that it will draw.

Rows x their steps are what decoding costs, so there should be no more rows than what is to be drawn keeps busy; and the more of
them share a prompt, the fewer prompts lie in the cache.
"""

ENOUGH = 0.9  # of the computed tokens kept, were all solutions of one length


def grouping(rows: int, shards: int, prompts: int, samples: int, rows_per_prompt: int = 0) -> tuple[int, int]:
    """Groups, a multiple of `shards`, and rows of each.

    Matrix products of other shapes round differently: the whole run's numbers must come in here, not what is left of it.

    Args:
      rows: at most, all groups together; at least `shards`.
      prompts: to be drawn from; 0 = too many to count, so that the rows never run out of them.
      samples: of each.
      rows_per_prompt: of a group; then nothing depends on `prompts`. 0 = a quarter of `samples`, from 1 to 16, where prompts
        follow each other: a prompt's last samples end before the next prompt's have all begun. Where each can have a group of
        its own from the beginning to the end, and where other numbers leave fewer rows idle, as many as do so.
    """
    most = rows // shards
    usual = min(rows_per_prompt or min(16, -(-samples // 4)), most)
    groups, total = rows // usual // shards * shards, prompts * samples
    if rows_per_prompt or not prompts or (groups <= prompts and _useful(total, groups * usual) >= ENOUGH):
        return groups, usual
    shapes = [
        (groups, own)
        for own in range(1, max(usual, min(samples, rows // prompts, most)) + 1)
        for groups in range(shards, rows // own + 1, shards)
        if own <= usual or groups >= prompts
    ]
    waves = min(-(-total // (groups * own)) for groups, own in shapes)
    shapes = [(groups, own) for groups, own in shapes if -(-total // (groups * own)) == waves]
    return max(shapes, key=lambda shape: (min(ENOUGH, _useful(total, shape[0] * shape[1])), -shape[0], -shape[1]))


def _useful(total: int, rows: int) -> float:
    """The share of rows x steps in which so many solutions of one length are drawn."""
    return total / (-(-total // rows) * rows)
