"""`e2h plan`: exit codes, JSON, models along a recipe, and one sentence for every mistake."""

import json
import re
import sys
from pathlib import Path

import jax
import pytest

from e2h_jax import config as configs
from e2h_jax.main import main
from e2h_jax.models import presets
from e2h_jax.planning import estimate as estimates
from e2h_jax.planning import topologies
from e2h_jax.planning.changes import nearest_fit
from e2h_jax.planning.compiling import refusal
from e2h_jax.planning.models import Models
from e2h_jax.planning.stages import planned, stages_of
from e2h_jax.planning.topologies import parse

ROOT = Path(__file__).parents[2]
RECIPE = '''"""A recipe.

Slice: cpu:8
"""

from ml_collections import ConfigDict

from e2h_jax import recipe


def get_config():
    config = ConfigDict(recipe.defaults()).unlock()
    config.stages = ("prepare", "base", "sft", "prm", "score")
    config.prepare = recipe.configure("prepare", {})
    config.base = recipe.configure("convert", {"source": "EleutherAI/llemma_7b", "vocab_size": 32000})
    config.sft = recipe.configure("sft", {"init": "{run}/base/model", "data": "d"})
    config.prm = recipe.configure("reward", {"init": "{run}/sft/model", "data": "d", "remat": "dots"})
    config.score = recipe.configure("score", {"model": "{run}/prm/model"})
    return config.lock()
'''
STAGE = '''"""A tiny training stage."""

from e2h_jax.algorithms import sft


def get_config():
    config = sft.defaults().unlock()
    config.update(preset="tiny", length=32, batch_size=16)
    return config.lock()
'''


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", dict(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64))
    (tmp_path / "tiny.py").write_text(STAGE)
    return f"--config={tmp_path}/tiny.py"


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    return f"--config={tmp_path}/recipe.py"


def test_models_are_followed_along_a_recipe_to_what_they_start_from(recipe, tmp_path):
    config = configs.load_file(f"{tmp_path}/recipe.py")
    models = Models(stages_of(config), {}, 100)
    judge = models("{run}/prm/model")
    assert (judge.kind, judge.config.vocab_size, judge.config.width, judge.config.remat) == ("reward", 32000, 4096, "dots")
    assert models("{run}/sft/model").kind == "policy"
    assert models("EleutherAI/llemma_34b").config.layers == 48
    assert Models({}, {"a/model": "micro"}, 100)("a/model").config.vocab_size == 100
    assert Models({}, {"": "micro"}, 100)("nowhere").config.width == 64
    assert [plan.name for plan in planned(config)] == ["sft", "prm", "score"]


def test_json_of_a_stage_that_fits_and_the_cache(tiny, tmp_path, capsys):
    command = ["plan", tiny, "--topology=cpu:8,cpu:4", "--json", f"--cache={tmp_path}/cache", "--vocabulary=64"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    (program,) = first["plans"][0]["programs"]
    assert [(plan["topology"], plan["fits"], plan["stage"]) for plan in first["plans"]] == [
        ("cpu:8", True, "sft"),
        ("cpu:4", True, "sft"),
    ]
    assert program["memory"]["optimiser"] == pytest.approx(2 * program["memory"]["parameters"], rel=1e-3)
    assert program["flops"] > 0 and program["collectives"] and first["assumed"]["steps"] == 1000
    assert main(command) == 0  # from the cache: to the last digit, the seconds of compiling too
    assert json.loads(capsys.readouterr().out) == first


@pytest.fixture
def small_chip(monkeypatch):
    """Eight CPU devices of a chip on which the tiny stage does not fit."""

    def small(memory):
        monkeypatch.setitem(estimates.CHIPS, "cpu", estimates.CHIPS["TPU v5 lite"]._replace(memory=memory))
        monkeypatch.setitem(estimates.PUBLISHED, "cpu", estimates.PUBLISHED["TPU v5 lite"])

    return small


def test_what_does_not_fit_has_its_exit_code_and_a_change_that_does(tiny, small_chip, capsys):
    flags = ["plan", tiny, "--topology=cpu:8", "--vocabulary=64", "--config.batch_size=64"]
    small_chip(1e12)
    assert main([*flags, "--json"]) == 0
    (program,) = json.loads(capsys.readouterr().out)["plans"][0]["programs"]
    small_chip(program["memory"]["total"] - program["memory"]["temporary"] / 10)
    assert main([*flags, "--json"]) == 3
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert not plan["fits"] and plan["change"].startswith("--config.")
    assert main([*flags, *plan["change"].replace("'", "").split()]) == 0
    assert "Fits: train step needs" in capsys.readouterr().out
    assert main([*flags, "--nosuggest"]) == 3
    assert "Does not fit" in capsys.readouterr().out


def test_nothing_is_suggested_where_nothing_helps(plan_of, assumed, topology, compiler, small_chip):
    small_chip(1.0)
    plan = plan_of("sft")
    found = estimates.estimates(plan, topology, assumed, compiler)
    assert not found[0].fits
    assert nearest_fit(plan, topology, found, assumed, compiler) is None


def test_weights_that_do_not_fit_at_all_are_no_traceback(tiny, small_chip, monkeypatch, capsys):
    def programs(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: … the total memory required for HLO temporaries (40.00G) exceeds")

    small_chip(16 * 2**30)
    monkeypatch.setattr("e2h_jax.algorithms.sft.programs", programs)
    assert main(["plan", tiny, "--topology=cpu:8"]) == 3
    assert "Does not fit: weights and caches needs 40.00 GiB of the 16.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "wanted", "arguments"),
    [
        ("… the total memory required for HLO temporaries (29.90G) exceeds available HBM (15.75G). HLO", 29.9 * 2**30, False),
        ("Ran out of memory in memory space hbm. Used 21.62G of 15.75G hbm. Exceeded", 21.62 * 2**30, True),
    ],
)
def test_refusals_of_the_compiler(message, wanted, arguments):
    found = refusal(message)
    assert (found.wanted, found.wanted_arguments) == (pytest.approx(wanted), arguments)


def test_another_error_of_the_compiler_is_not_taken_for_one():
    with pytest.raises(RuntimeError, match="internal"):
        refusal("internal error")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--topology=… is missing: .* or write a line `Slice: v5e:4x4` into the docstring of .*tiny.py"),
        (["--topology=v9:2x2"], '"v9" is unknown.*v5e'),
        (["--topology=v5e:4"], "a slice of v5e is written like v5e:4x4"),
        (["--topology=v5p:4x4"], "v5p:2x4x4"),
        (["--topology=cpu:8", "--config.mesh=(3,-1,1)"], "config.mesh=.* does not fit 8 devices"),
        (["--topology=cpu:8", "--config.batch_size=12"], "config.batch_size=12 does not divide by 8"),
        (["--topology=cpu:8", "--config.init=nowhere/model"], "--preset=nowhere/model=llemma_7b"),
        (["--topology=cpu:8", "--preset=lemma_7b"], 'did you mean "llemma_7b"'),
        (["--topology=cpu:8", "--stage=dpo"], "has no such stage; there are sft"),
        (["--topology=cpu:8", "--toplogy=x"], 'no flag "--toplogy" .did you mean "topology"'),
        (["--topology=cpu:8", "--config.remat=some"], 'config.remat=.some. must be ""'),
        (["--topology=cpu:9"], "started with 8 devices"),
    ],
)
def test_mistakes_are_told_in_one_sentence_before_anything_is_compiled(flags, sentence, tiny, capsys, monkeypatch):
    monkeypatch.setattr("e2h_jax.planning.compiling._compile", lambda *_: pytest.fail("compiled"))
    assert main(["plan", tiny, *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(sentence, said), said


def test_a_missing_config_and_a_missing_compiler(tiny, capsys, monkeypatch):
    assert main(["plan", "--topology=cpu:8"]) == 2
    assert "--config=FILE.py is missing" in capsys.readouterr().err
    assert main(["plan", tiny.replace("tiny.py", "tony.py")]) == 2  # which names no slice, either
    assert re.search('no config file .*tony.py .did you mean ".*tiny.py"', capsys.readouterr().err)
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["plan", tiny, "--topology=v5e:2x2"]) == 2
    assert f"pip install '{topologies.named_by_jax()}'" in capsys.readouterr().err


def test_another_compiler_than_pods_have_is_named_in_one_line(tiny, capsys, monkeypatch):
    monkeypatch.setattr(topologies, "prepare", lambda _: None)
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.0.1" if package == "libtpu" else "1")
    monkeypatch.setattr("e2h_jax.planning.run.run", lambda asked, overrides, slices, warning: print(json.dumps(warning)) or 0)
    assert main(["plan", tiny, "--topology=v5e:2x2"]) == 0
    said = capsys.readouterr()
    assert said.err == f"e2h: {json.loads(said.out)}\n" and "libtpu 0.0.1" in said.err
    assert f"pip install '{topologies.named_by_jax()}'" in said.err
    assert main(["plan", tiny, "--topology=cpu:8"]) == 0
    assert capsys.readouterr().err == ""


def test_this_projects_versions_have_the_compiler_that_jax_names():
    """A pod installs the extra `tpu` with these: another one could not be installed at all."""
    pinned = re.search(r"^libtpu==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert topologies.named_by_jax().specifier.contains(pinned[1])


def test_the_next_larger_slices():
    assert [slice_.name for slice_ in parse("v5e:4x4").larger()[:2]] == ["v5e:4x8", "v5e:8x8"]
    assert parse("v5p:2x2x2").larger()[0].name == "v5p:2x2x4"
