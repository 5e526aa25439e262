import json
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from e2h_jax import main, recipe, stage
from e2h_jax.config import load_file, override
from e2h_jax.errors import UserError

ROOT = Path(__file__).parents[1]


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


def test_values_are_checked_before_the_first_stage_starts(toy, monkeypatch):
    def check_values(config):
        if config.steps > 100:
            raise UserError(f"config.steps={config.steps} is more than config.rate allows.")

    out, config = toy / "out", chain()
    monkeypatch.setattr(stage.load("toy"), "check_values", check_values, raising=False)
    override(config, ["third.steps=101"])
    with pytest.raises(UserError) as error:
        execute(config, out)
    assert str(error.value) == "config.third.steps=101 is more than config.third.rate allows."
    assert [path.name for path in out.iterdir()] == [".lock"]
    # What has finished is not asked again, as by a version that refuses what an earlier one took.
    execute(chain(), out)
    check = stage.load("toy").check_values
    monkeypatch.setattr(stage.load("toy"), "check_values", lambda config: check(ConfigDict({"steps": 101})))
    execute(chain(), out)


def test_a_refused_recipe_leaves_the_folder_as_it_was(toy, monkeypatch):
    out = toy / "out"
    execute(chain(), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"\(steps: 3 -> 5\)"):
        execute(chain(stages=("first",), first=group(steps=5)), out)
    monkeypatch.setattr(stage.load("toy"), "check_values", refuse, raising=False)
    with pytest.raises(UserError, match="no value will do"):
        execute(chain(stages=("new",), new=group(steps=500)), out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def refuse(config):
    raise UserError("no value will do.")


def test_files_are_not_renamed_in_a_stage_s_message(toy, monkeypatch):
    def check_values(config):
        raise UserError("m/config.json, m/generation_config.json and a_config.py: not as config.mesh says.")

    monkeypatch.setattr(stage.load("toy"), "check_values", check_values, raising=False)
    with pytest.raises(UserError) as error:
        execute(chain(), toy / "out")
    assert str(error.value) == "m/config.json, m/generation_config.json and a_config.py: not as config.first.mesh says."


def test_open_groups_of_a_stage_take_names_on_the_command_line(toy):
    config = chain()
    open_in = recipe.all_defaults(config)
    override(config, ["second.generators.my-sft.samples=F", "third.steps=4"], open_in)
    assert config.second.generators["my-sft"].samples == "F" and config.third.steps == 4
    for assignment in ("second.optimizer.mine=1", "second.mine=1", "mine=1"):
        with pytest.raises(UserError, match="there is no field"):
            override(config, [assignment], open_in)


def test_done_json_does_not_tell_of_an_earlier_run(toy):
    out = toy / "out"
    execute(chain(), out)
    execute(chain(), out)
    assert (out / "done.json").exists()
    config = chain(third=group(source="{run}/lost"))
    shutil.rmtree(out / "third")
    with pytest.raises(UserError, match="there is no .*lost"):
        execute(config, out)
    assert not (out / "done.json").exists()


QUICKSTART = {
    "data.source=arithmatic": 'config.data.source="arithmatic" is unknown (did you mean "arithmetic"?)',
    "base.preset=micor": "config.base.preset='micor' is unknown (did you mean \"micro\"?)",
    "sft.epochs=0": "config.sft.epochs=0 must be at least 1",
    "sft.too_long=drp": "config.sft.too_long='drp' must be drop or error",
    "prm.label_tokens=some": "config.prm.label_tokens='some' must be all or end",
    "orm.batch_size=7": "config.orm.batch_size=7 does not divide",
    "sft.mesh=(1,2)": "config.sft.mesh=(1, 2) must be three sizes",
    "samples.top_p=2": "config.samples.top_p in (0, 1]",
    "samples.limit=-1": "config.samples.limit must be at least 0",
    "greedy.dtype=int4": "config.greedy.dtype='int4' must be",
    "score_prm.read_at=somewhere": "config.score_prm.read_at='somewhere' is unknown",
    "rest_em.choose=some": "config.rest_em.choose='some' must be seed or score",
    "rest_em.train.microbatches=-1": "config.rest_em.train.microbatches=-1 must be at least 0",
    "dpo.beta=0": "config.dpo.beta=0.0 must be above 0",
    "dpo.validation.every=0": "config.dpo.validation.every must be at least 1",
    "ppo.gamma=2": "config.ppo.gamma=2.0 and config.ppo.lam=",
    "ppo_outcome.sample.rows=0": "config.ppo_outcome.sample.rows",
    "ppo.reward.outcome=some": 'config.ppo.reward.outcome="some" is unknown',
    "ppo.value_optimizer.b2=1.0": "config.ppo.value_optimizer.b2=1.0",
    "evaluate.generators.sft.sampels=x": 'config.evaluate.generators.sft.sampels: no such field (did you mean "samples"?)',
    "evaluate.generators.sft.template=math_shepard": 'config.evaluate.generators.sft.template: there is no template "math_she',
    "evaluate.generators.new.scored.prm=x": "config.evaluate.generators.new: neither samples nor greedy is given",
    "evaluate.rules=mine": 'config.evaluate.rules: there are no rules "mine"',
}


@pytest.mark.parametrize("assignment", QUICKSTART)
def test_a_bad_value_of_any_stage_is_told_before_the_first_one_starts(assignment, tmp_path, capsys):
    arguments = [f"--config={ROOT}/configs/quickstart.py", f"--config.{assignment}", f"--workdir={tmp_path}/run"]
    assert main.main(["recipe", *arguments]) == 2
    assert QUICKSTART[assignment] in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] in ([], [".compiled"])


MIXTURE = {"source": "mixture", "mixture": {name: {"path": name, "share": 1} for name in ("prm", "orm")}}


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("labels", {"method": "outcomes"}, 'config.method="outcomes" is unknown'),
        ("convert", {"source": "x", "shard_gb": -1.0}, "config.shard_gb must be above 0"),
        ("prepare", {"source": "gsm8k", "format": "csv"}, 'config.format="csv" is unknown'),
        ("prepare", {"source": "math", "levels": (6,)}, "a level is 1, 2, 3, 4 or 5, not 6"),
        ("prepare", {"source": "prm800k", "neutral": "postive"}, 'config.neutral="postive" must be positive or drop'),
        ("prepare", MIXTURE | {"mixture_by": "token"}, 'config.mixture_by="token" is unknown (did you mean "tokens"?)'),
        ("prepare", MIXTURE | {"mixture_by": "tokens"}, "config.mixture_by=tokens: set config.tokenizer"),
        ("prepare", {"source": "mixture"}, "config.mixture needs two parts or more"),
        ("prepare", {"source": "mixture", "mixture": {"a": {"path": "x", "share": 0}}}, "config.mixture.a must be a path"),
        ("evaluate", {"generators": {"a": {"scored": {"prm": "x"}, "greedy": "y"}}}, "a.scored: scores without their samples"),
        ("evaluate", {"generators": {"a": "x"}, "compare": (("a", "b"),)}, "config.generators.a must be a group"),
    ],
)
def test_stages_that_the_quickstart_has_not(name, fields, sentence):
    config = stage.load(name).defaults().unlock()
    config.update(fields)
    with pytest.raises(UserError) as error:
        stage.load(name).check_values(config)
    assert sentence in str(error.value)


def test_a_file_that_an_earlier_stage_writes_is_no_mistake():
    """Of all stages that the quickstart has, and of scoring with a template that an earlier stage makes."""
    config = load_file(f"{ROOT}/configs/quickstart.py").unlock()
    config.score_prm.template = "{run}/few_shot/template.json"
    for name in config.stages:
        recipe._check_values(config, name)


def test_every_stage_can_be_asked():
    assert all(hasattr(stage.load(name), "check_values") for name in stage.STAGES if name != "recipe")
