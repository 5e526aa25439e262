import json
import shutil

import pytest
from ml_collections import ConfigDict

from e2h_jax import recipe, stage
from e2h_jax.config import override
from e2h_jax.errors import UserError


def chain(**fields):
    """first -> second -> third, and `apart`, which reads nothing."""
    config = recipe.defaults().unlock()
    config.stages = ("first", "second", "apart", "third")
    config.publish = (("third/runs.txt", "result.txt"),)
    for name, source in {"first": "", "second": "{run}/first/runs.txt", "apart": "", "third": "{run}/second"}.items():
        config[name] = ConfigDict(stage.load("toy").defaults().to_dict() | {"stage": "toy", "source": source})
    for name, value in fields.items():
        config[name] = value
    return config.lock()


def execute(config, workdir):
    stage.check_config("recipe", config)
    return stage.execute("recipe", config, workdir)


def ran(workdir):
    """How often each stage has run."""
    return {path.parent.name: len(path.read_text().split()) for path in sorted(workdir.glob("*/runs.txt"))}


def test_runs_all_stages_in_order_and_publishes(toy, capsys):
    out = toy / "out"
    summary = execute(chain(), out)
    assert summary["metrics"]["third"] == {"steps": 3, "rate": 0.5}
    assert list(summary["seconds"]) == ["first", "second", "apart", "third"]
    assert (out / "result.txt").read_text() == "3\n"
    assert json.loads((out / "done.json").read_text())["metrics"] == summary
    shown = capsys.readouterr().out
    order = [shown.index(f"[{i}/4] {n} (toy)") for i, n in enumerate(["first", "second", "apart", "third"], start=1)]
    assert order == sorted(order) and "so far" in shown and "Seconds per stage" in shown


def test_run_again_it_skips_what_is_done(toy, capsys):
    out = toy / "out"
    execute(chain(), out)
    execute(chain(), out)
    assert ran(out) == {"first": 1, "second": 1, "apart": 1, "third": 1}
    assert "done before" in capsys.readouterr().out


def test_resumes_where_it_stopped(toy):
    out = toy / "out"
    config = chain()
    override(config, ["apart.steps=130"])
    with pytest.raises(KeyboardInterrupt):
        execute(config, out)
    assert ran(out) == {"first": 1, "second": 1}
    shutil.rmtree(out / "apart")
    execute(chain(), out)
    assert ran(out) == {"first": 1, "second": 1, "apart": 1, "third": 1}


def test_a_moved_folder_stays_valid(toy):
    execute(chain(), toy / "out")
    (toy / "out").rename(toy / "elsewhere")
    execute(chain(), toy / "elsewhere")
    assert ran(toy / "elsewhere") == {"first": 1, "second": 1, "apart": 1, "third": 1}
    asked = json.loads((toy / "elsewhere" / "second" / "config.json").read_text())
    assert asked["config"]["source"] == "{run}/first/runs.txt" and list(asked["inputs"]) == ["first"]


def test_a_changed_stage_is_refused_before_anything_runs(toy):
    out = toy / "out"
    execute(chain(), out)
    shutil.rmtree(out / "apart")
    changed = chain()
    override(changed, ["third.steps=5"])
    with pytest.raises(UserError, match=r"out/third holds a run with another config \(steps: 3 -> 5\)"):
        execute(changed, out)
    assert not (out / "apart").exists()


def test_what_was_made_from_an_earlier_run_is_refused(toy):
    """A stage that ran again makes stale what was read from its first run, and nothing else."""
    out = toy / "out"
    execute(chain(), out)
    shutil.rmtree(out / "first")
    with pytest.raises(UserError) as error:
        execute(chain(), out)
    assert '"second" was made from an earlier run of "first"' in str(error.value)
    assert f"(rm -r {out}/second {out}/third)" in str(error.value)
    assert not (out / "first").exists()
    shutil.rmtree(out / "second")
    shutil.rmtree(out / "third")
    execute(chain(), out)
    assert ran(out) == {"first": 1, "second": 1, "apart": 1, "third": 1}
    # `apart` reads nothing, so nothing of it is stale, and it makes nothing stale.
    shutil.rmtree(out / "apart")
    execute(chain(), out)


def test_a_rerun_in_an_earlier_invocation_is_noticed_too(toy):
    out = toy / "out"
    execute(chain(), out)
    shutil.rmtree(out / "second")
    shutil.move(out / "third", toy / "kept")
    execute(chain(stages=("first", "second")), out)
    shutil.move(toy / "kept", out / "third")
    with pytest.raises(UserError, match='"third" was made from an earlier run of "second"'):
        execute(chain(), out)


def test_a_failing_stage_is_named(toy):
    out = toy / "out"
    config = chain()
    override(config, ["second.source={run}/first/lost.txt"])
    with pytest.raises(UserError) as error:
        execute(config, out)
    assert str(error.value) == f"stage second (2 of 4): there is no {out}/first/lost.txt."
    override(config, ["second.source=", "second.steps=-1"])
    shutil.rmtree(out / "second")
    with pytest.raises(ZeroDivisionError) as bug:
        execute(config, out)
    assert bug.value.__notes__ == [f"in stage second (2 of 4) of the recipe in {out}"]


def test_a_file_to_publish_that_nobody_wrote_is_named(toy):
    with pytest.raises(UserError, match=r'"config\.publish" names third/table\.md, which no stage wrote'):
        execute(chain(publish=(("third/table.md", "table.md"),)), toy / "out")


def group(**fields):
    return ConfigDict(stage.load("toy").defaults().to_dict() | {"stage": "toy"} | fields)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (lambda: {"stages": ("first", "secnod")}, 'the stage "secnod" has no config (did you mean "config.second"?).'),
        (
            lambda: {"stages": ("first", "first")},
            '"config.stages" holds "first" twice; give the second one another name.',
        ),
        (
            lambda: {"stages": ("../first",)},
            "\"config.stages\" holds '../first', which cannot be the name of a folder.",
        ),
        (
            lambda: {"stages": ()},
            "a recipe needs a config that lists its stages, such as --config=configs/quickstart.py.",
        ),
        (lambda: {"publish": (("a",),)}, "\"config.publish\" holds ('a',), which is not a pair (file, name)."),
        (lambda: {"first": group(stage="tyo")}, "\"config.first.stage\" is 'tyo'; it is one of toy."),
        (lambda: {"first": group(stage="recipe")}, "\"config.first.stage\" is 'recipe'; it is one of toy."),
        (
            lambda: {"first": group(stpes=1)},
            'there is no field "config.first.stpes" (did you mean "config.first.steps"?).',
        ),
        (
            lambda: {"third": group(levels=("a",))},
            "the field \"config.third.levels\" is ('a',), which is not a tuple of whole numbers.",
        ),
        (
            lambda: {"sed": 3},
            'there is no field "config.sed"; a recipe has stages, publish, report, seed and a group per stage.',
        ),
        (
            lambda: {"first": group(source="{run}/third/x")},
            'the stage "first" reads {run}/third, which is not there before it; change "config.stages".',
        ),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_runs(toy, fields, sentence):
    with pytest.raises(UserError) as error:
        execute(chain(**fields()), toy / "out")
    assert str(error.value) == sentence
    assert not (toy / "out").exists()
