"""The programs of every stage, planned for eight simulated devices."""

import jax
import pytest

from e2h_jax.planning.changes import changes
from e2h_jax.planning.estimate import estimates, held

DRAWING = ["prefill", "decode"]
FORWARD = ["policy forward", "reference forward", "value forward"]
UPDATES = [f"{model} {what}" for model in ("policy", "value") for what in ("gradient", "update")]
EXPECTED = {
    "sft": ["train step"],
    "reward": ["train step"],
    "sample": ["load", *DRAWING],
    "score": ["score"],
    "rest_em": [*[f"sample: {name}" for name in ("load", *DRAWING)], "score: score", "train: train step"],
    "dpo": [
        *[f"sample: {name}" for name in ("load", *DRAWING)],
        *["score: score", "reference: forward", "train: train step"],
    ],
    "ppo": ["load", *DRAWING, *[f"validation: {name}" for name in DRAWING], "judge", *FORWARD, *UPDATES],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_program_of_a_stage_compiles_and_is_counted(name, plan_of, assumed, topology, compiler):
    found = estimates(plan_of(name), topology, assumed, compiler)
    assert [one.program for one in found] == EXPECTED[name]
    assert all(one.fits and one.memory["parameters"] > 0 for one in found)
    assert all(one.flops > 0 for one in found if one.program.split(": ")[-1] != "load" and "update" not in one.program)


def test_what_a_program_takes_is_counted_once(plan_of, assumed, topology):
    """All of a sampler's chunks, those of equal size too, and none of them both as cache and as another argument."""
    plan = plan_of("sample", max_new_tokens=200)
    (decode,) = (program for program in plan.programs(topology, assumed) if program.name == "decode")
    kinds, arguments = held(decode)
    with jax.set_mesh(decode.mesh):
        compiled = decode.trace().lower().compile()
    assert sum(kinds.values()) + arguments == pytest.approx(compiled.memory_analysis().argument_size_in_bytes, rel=0.02)
    assert kinds["cache"] > 16 / 8 * 200 * 2 * 2 * 8 * 4  # keys and values of two heads, float32, of two rows a device


def test_ppo_with_lora_or_without_a_value_model_holds_less(plan_of, assumed, topology):
    def programs(**fields):
        found = list(plan_of("ppo", validation={"problems": ""}, **fields).programs(topology, assumed))
        return [program.name for program in found], held(found[-1])[0]

    _, whole = programs()
    _, lora = programs(lora={"rank": 2})
    assert lora["optimiser"] < 0.4 * whole["optimiser"]
    _, alone = programs(lora={"rank": 2}, kl={"coef": 0.0})
    assert lora["parameters"] == alone["parameters"]  # the reference policy is the base that the adapter lies on
    names, rloo = programs(advantage="rloo", whiten_advantages="none", sample={"samples": 2})
    assert not any("value" in name for name in names) and rloo["optimiser"] < 0.6 * whole["optimiser"]


def test_int8_is_proposed_for_the_reference_policy_where_there_is_one(plan_of, topology):
    for fields, there in (({}, True), ({"lora": {"rank": 2}}, False), ({"kl": {"coef": 0.0}}, False)):
        proposed = {name for change in changes(plan_of("ppo", **fields), topology) for name in change.fields}
        assert "reward.quantize" in proposed and ("kl.quantize" in proposed) == there
