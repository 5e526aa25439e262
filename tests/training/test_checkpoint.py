"""A checkpoint that cannot be read gives way to the one before, whatever of it is damaged."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2h_jax.errors import UserError
from e2h_jax.training.checkpoint import Checkpoints

# Every kind of file of a checkpoint, and whether the checkpoint can be read without it.
KINDS = {
    "_CHECKPOINT_METADATA": True,
    "commit_success.txt": True,
    "data/iterator.json": False,
    "state/_METADATA": False,
    "state/manifest.ocdbt": False,
    "state/d/*": False,
    "state/ocdbt.process_0/d/*": False,
}


class Position:
    """Stands for a Grain iterator."""

    def __init__(self, at=0):
        self.at = at

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def state(seed, width=50):
    return {"weights": jax.random.normal(jax.random.key(seed), (width, 40)), "step": jnp.int32(seed)}


@pytest.fixture(autouse=True)
def every_coroutine_is_awaited(recwarn):
    yield
    gc.collect()
    assert [str(warning.message) for warning in recwarn if "never awaited" in str(warning.message)] == []


@pytest.fixture
def folder(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), Position(step))
    return tmp_path / "checkpoints"


def restored(folder, like=None):
    """The step that was restored, after a look at all that came with it."""
    with Checkpoints(folder) as checkpoints:
        position = Position()
        step, found = checkpoints.restore(like or state(0), position)
    assert position.at == step
    jax.tree.map(np.testing.assert_array_equal, found, state(step))
    return step


def damage(folder, step, kind, how):
    (path,) = (folder / str(step)).glob(kind)
    if how == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["gone", "half"])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(folder, capsys, kind, how):
    damage(folder, 2, kind, how)
    kept = KINDS[kind]
    assert restored(folder) == (2 if kept else 1)
    said, aside = capsys.readouterr().err, folder.with_name("checkpoints-damaged") / "2"
    assert aside.is_dir() != kept and (folder / "2").is_dir() == kept
    assert ("e2h: the checkpoint of step 2 cannot be read" in said and str(aside) in said) != kept
    # The run goes on, and saves the same step again.
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3 if kept else 2, state(3 if kept else 2), Position(3 if kept else 2))
    assert restored(folder) == (3 if kept else 2)


def test_the_steps_from_which_a_run_may_be_resumed(folder):
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == {1, 2}
        checkpoints.save(3, state(3), Position(3))
        assert {2, 3} <= checkpoints.steps() <= {1, 2, 3}  # on disk, and being written
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == {2, 3}


def test_the_beginning_where_there_is_none(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        step, found = checkpoints.restore(like := state(0), Position())
    assert step == 0 and found is like


def test_nothing_is_moved_where_none_can_be_read(folder):
    for step in (1, 2):
        damage(folder, step, "state/manifest.ocdbt", "gone")
    with pytest.raises(UserError, match=r"no checkpoint in .*checkpoints can be read .*: restore the folder from"):
        restored(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_another_model_is_no_damage(folder):
    with pytest.raises(UserError, match="checkpoints/2 is a checkpoint of another model"):
        restored(folder, like=state(0, width=51))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    """As on a full disk: Orbax gives up the state, and with it the iterator's position."""

    async def fails(*_, **__):
        raise OSError(28, "No space left on device")

    from orbax.checkpoint.experimental.v1._src.handlers import pytree_handler

    monkeypatch.setattr(pytree_handler.PyTreeHandler, "save", fails)
    with pytest.raises(Exception, match="No space left"), Checkpoints(tmp_path / "checkpoints") as checkpoints:  # noqa: PT011, PT012
        checkpoints.save(1, state(1), Position(1))
