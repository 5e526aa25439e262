"""How long prompts are taken to be: by the stages that prepare the problems and the template, or by the template itself."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from e2h_jax import recipe
from e2h_jax.data.templates import few_shot, get_template, write_template
from e2h_jax.errors import UserError
from e2h_jax.planning import prompts
from e2h_jax.planning.stages import planned


@pytest.fixture
def plans():
    """Stages of a recipe that sample: from problems of at most 200 tokens; from any, with three solved problems in front."""
    config = ConfigDict(recipe.defaults()).unlock()
    config.stages = ("short", "any", "shots", "sft", "few", "many")
    config.short = recipe.configure("prepare", {"source": "math", "max_tokens": 200})
    config.any = recipe.configure("prepare", {"source": "math"})
    config.shots = recipe.configure("prepare", {"source": "few_shot", "path": "{run}/any/train", "shots": 3})
    config.sft = recipe.configure("sft", {"init": "", "preset": "micro", "data": "{run}/any/train"})
    policy = {"model": "{run}/sft/model", "max_new_tokens": 64}
    config.few = recipe.configure("sample", policy | {"problems": "{run}/short/math/train"})
    with_shots = {"problems": "{run}/any/math/test", "template": "{run}/shots/template.json"}
    config.many = recipe.configure("sample", policy | with_shots)
    return {plan.name: plan for plan in planned(config.lock())}


def test_prompts_are_as_long_as_the_recipe_lets_them_be(plans, assumed):
    assumed = dataclasses.replace(assumed, prompt_tokens=0)
    assert plans["sft"].prompt(assumed) is None
    assert plans["few"].prompt(assumed) == (200, 0)
    assert plans["many"].prompt(assumed) == (prompts.PROBLEM, 3 * prompts.SHOT)
    assert plans["many"].prompt(dataclasses.replace(assumed, prompt_tokens=7)) is None  # the user has said it


def test_the_planned_sampler_has_room_for_that_prompt_as_far_as_there_are_positions(plans, assumed, topology):
    assumed = dataclasses.replace(assumed, prompt_tokens=0)

    def prefilled(plan, positions):
        shape = dataclasses.replace(assumed.model("policy").config, max_length=positions)
        of_length = dataclasses.replace(assumed, model=lambda _: assumed.model("policy")._replace(config=shape))
        programs = {program.name: program for program in plan.programs(topology, of_length)}
        return programs["prefill"].arguments[4].shape[1]

    assert prefilled(plans["few"], 4096) == 256  # 64 x 4
    assert prefilled(plans["many"], 8192) == 4096
    assert prefilled(plans["many"], 64 + 512) == 512


def test_a_template_of_a_file_is_counted_and_one_that_is_not_there_is_asked_for(plans, tmp_path):
    def shots(template):
        config = plans["few"].config.copy_and_resolve_references().unlock()
        config.template = str(template)
        return prompts.longest(config, plans["few"].stages).shots

    solved = {"question": "1 + 1?", "solution": "x" * 240 + "\n\n# Answer\n\n2"}
    write_template(tmp_path / "two.json", few_shot(get_template("e2h"), [solved] * 2, "two"))
    assert 2 * 240 / prompts.CHARACTERS < shots(tmp_path / "two.json") < 2 * 300 / prompts.CHARACTERS
    (tmp_path / "chat.json").write_text('{"chat": {"instruction": "gsm8k"}}')
    assert shots("qwen_boxed") == shots("chat") == shots(tmp_path / "chat.json") == 0
    with pytest.raises(UserError, match="--prompt_tokens=N"):
        shots(tmp_path / "none.json")
    with pytest.raises(UserError, match='did you mean "e2h"'):
        shots("e2hh")
