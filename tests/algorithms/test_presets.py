"""The settings of PPO, GRPO, Dr. GRPO and RLOO: what each is, that config files hold them, and every combination of fields."""

import itertools
from pathlib import Path

import pytest

from e2h_jax.algorithms import ppo, presets
from e2h_jax.config import load_file
from e2h_jax.errors import UserError
from e2h_jax.rewards import shaping

ROOT = Path(__file__).parents[2]
ALL = {preset.__name__: preset for preset in (presets.ppo, presets.grpo, presets.dr_grpo, presets.rloo, presets.paper)}
every_preset = pytest.mark.parametrize("preset", ALL.values(), ids=ALL)


def config_of(*settings):
    config = ppo.defaults().unlock()
    for fields in settings:
        config.update(fields)
    return config


def refusal(config):
    try:
        presets.check(config, ppo.defaults())
    except UserError as error:
        return str(error)
    return ""


def test_ppo_is_the_default():
    assert config_of(presets.ppo()).to_dict() == ppo.defaults().to_dict()


@every_preset
def test_a_preset_is_whole(preset):
    """It sets every field that another one sets, so that nothing of the one before stays; and its fields go together."""
    def paths(fields, prefix=""):
        for name, value in fields.items():
            yield from paths(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]

    assert set(paths(preset())) == set(paths(presets.ppo()))
    for before in ALL.values():
        assert config_of(before(), preset()) == config_of(preset())
    assert not refusal(config_of(preset()))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_its_config_file_is_the_defaults_with_the_preset(name):
    assert load_file(str(ROOT / f"configs/rl/{name}.py")).to_dict() == config_of(ALL[name]()).to_dict()


def test_what_tells_the_methods_apart():
    """Shao et al. 2024 section 4.1; Liu et al. 2025, equation 3 of Dr. GRPO; Ahmadian et al. 2024, equation 8."""
    fields = ("advantage", "grpo_std", "loss_mean", "whiten_rewards", "whiten_advantages", "mask_padding")
    found = {
        name: (*(config[field] for field in fields), config.kl.place, config.kl.estimator if config.kl.coef else "-")
        for name, config in ((name, config_of(preset())) for name, preset in ALL.items())
    }
    assert found == {
        "ppo": ("gae", True, "tokens", "none", "batch", True, "reward", "k1"),
        "grpo": ("grpo", True, "sequences", "none", "none", True, "loss", "k3"),
        "dr_grpo": ("grpo", False, "slots", "none", "none", True, "reward", "-"),
        "rloo": ("rloo", True, "slots", "none", "none", True, "reward", "k1"),
        "paper": ("gae", True, "slots", "original", "batch", False, "reward", "k1_clamped"),
    }


@pytest.mark.parametrize("size", ["prm800k", "metamath"])
def test_the_paper_s_recipes_have_its_arithmetic(size):
    config = load_file(str(ROOT / f"configs/paper/ppo_{size}_7b.py"))
    for name in config.stages:
        if config[name].stage == "ppo":
            fields, paper = config[name], presets.paper()
            assert {field: fields[field] for field in paper if field not in ("kl", "sample")} == {
                field: value for field, value in paper.items() if field not in ("kl", "sample")
            }
            assert (fields.kl.estimator, fields.kl.place, fields.sample.samples) == ("k1_clamped", "reward", 1)
            assert fields.reward.rules == shaping.paper()["rules"] == "original"


# docs/ppo.md#combinations
WHITENINGS = [*itertools.product(("none", "scale", "original"), ("none", "batch", "row"))]
SOUND = {("gae", True, rewards, advantages, samples) for rewards, advantages in WHITENINGS for samples in (1, 2, 4)}
GROUPS = (("rloo", True), ("grpo", True), ("grpo", False))
SOUND |= {(*estimator, "none", "none", samples) for estimator in GROUPS for samples in (2, 4)}
SOUND_KL = {("reward", "k1"), ("reward", "k1_clamped"), ("reward", "logp"), ("loss", "k2"), ("loss", "k3")}


def test_every_combination_of_estimator_and_whitening():
    config, defaults = ppo.defaults().unlock(), ppo.defaults()
    for combination in itertools.product(
        ("gae", "rloo", "grpo"), (True, False), ("none", "scale", "original"), ("none", "batch", "row"), (1, 2, 4)
    ):
        config.advantage, config.grpo_std, config.whiten_rewards, config.whiten_advantages, config.sample.samples = combination
        if combination in SOUND:
            presets.check(config, defaults)
            continue
        with pytest.raises(UserError, match=r"^config\.\S+=\S+ [^\n]*(; |: )set (it|config\.sample\.samples) to [^\n]*$"):
            presets.check(config, defaults)


def test_every_combination_of_estimate_and_place_of_the_kl():
    for place, estimator in itertools.product(("reward", "loss"), ("k1", "k2", "k3", "k1_clamped", "logp")):
        for preset in (presets.ppo(), presets.grpo(), presets.rloo()):
            fields = {"coef": 0.1, "place": place, "estimator": estimator}
            said = refusal(config_of(preset, {"kl": fields}))
            assert bool(said) == ((place, estimator) not in SOUND_KL), (place, estimator)
            other = {"reward": "loss", "loss": "reward"}[place]
            assert not said or f"config.kl.estimator={estimator} " in said and f"or config.kl.place={other}" in said
            if said and place == "loss":  # docs/ppo.md#kl-estimators: the gradient of k1's mean vanishes, the clamp's does not
                effect = "has another gradient than the KL" if estimator == "k1_clamped" else "has an expected gradient of zero"
                assert f"{estimator} {effect} with config.kl.place=loss; set" in said
            assert not refusal(config_of(preset, {"kl": fields | {"coef": 0.0}}))  # nothing is estimated


@pytest.mark.parametrize("preset", [presets.grpo, presets.dr_grpo, presets.rloo])
@pytest.mark.parametrize(
    "fields",
    [
        {"gamma": 0.99}, {"lam": 0.95}, {"clip_value": 0.1}, {"value_coef": 1.0}, {"value_init": "model"}, {"value_warmup": 1},
        {"value_optimizer": {"learning_rate": 1e-3}}, {"value_optimizer": {"freeze": ("norm",)}}, {"mask_padding": False},
        {"entropy": {"reward_mean": "merged", "reward_coef": 0.1}}, {"sample": {"samples": 1}},
        {"whiten_advantages": "batch"}, {"whiten_rewards": "scale"}, {"whiten_rewards": "original"},
    ],
    ids=str,
)  # fmt: skip
def test_what_undoes_a_group_estimator_or_does_nothing_beside_it(preset, fields):
    said = refusal(config_of(preset(), fields))
    name, value = next(iter(fields.items()))
    if isinstance(value, dict):
        field, value = next(iter(value.items()))
        name = f"{name}.{field}"
    assert f"config.{name}" in said and "set " in said
    assert not refusal(config_of(presets.ppo(), fields))  # with a value model it is a choice


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((presets.rloo(), {"grpo_std": False}), r"config.grpo_std=False is of config.advantage=grpo.*set it to True"),
        (({"grpo_std": False},), r"config.grpo_std=False is of config.advantage=grpo.*set it to True"),
        ((presets.grpo(), {"reward_scale": 50.0}), r"config.reward_scale=50.0 does nothing.*config.grpo_std to False"),
        (({"whiten_rewards": "scale", "reward_scale": 2.0},), r"config.reward_scale=2.0 is used with .* not with scale; set"),
        ((presets.paper(), {"reward_scale": 50.0}), r"config.reward_scale=50.0 is used .* not with original; set it to 1.0"),
        (({"advantage": "grpo"},), r"configs/rl/grpo.py"),
        (({"advantage": "grpo", "grpo_std": False},), r"configs/rl/dr_grpo.py"),
        (({"advantage": "rloo"},), r"configs/rl/rloo.py"),
        (({"advantage": "rloo", "grpo_std": False},), r"configs/rl/rloo.py"),
        (({"mask_padding": False, "whiten_advantages": "none"},), r"config.mask_padding=False does nothing.*set it to True"),
        (({"target_kl": 0.1, "minibatches": 1},), r"config.target_kl=0.1 ends .*set it to 0, or config.minibatches"),
        (({"kl": {"quantize": "int8", "coef": 0.0}},), r"config.kl.quantize=int8 does nothing.*config.kl.coef=0; set it"),
        (({"kl": {"quantize": "int8"}, "lora": {"rank": 4}},), r"config.kl.quantize=int8 does nothing.*config.lora.quantize"),
        (({"entropy": {"reward_mean": "none"}},), r"config.entropy.reward_mean=none does nothing.*set it to full"),
    ],
)
def test_what_does_nothing_is_refused_with_its_remedy(settings, message):
    with pytest.raises(UserError, match=message):
        presets.check(config_of(*settings), ppo.defaults())


@pytest.mark.parametrize(
    "fields",
    [
        {"mask_padding": False},
        {"mask_padding": False, "whiten_advantages": "none", "whiten_rewards": "scale"},
        {"target_kl": 0.1, "minibatches": 1, "epochs": 2},
        {"target_kl": 0.1},
        {"minibatches": 1},
        {"kl": {"quantize": "int8"}},
        {"lora": {"rank": 4, "quantize": "int8"}},
        {"entropy": {"reward_mean": "merged", "reward_coef": 0.1}},
    ],
    ids=str,
)
def test_what_has_an_effect_is_a_choice(fields):
    assert not refusal(config_of(fields))


@pytest.mark.parametrize("preset", [presets.dr_grpo, presets.rloo])
def test_a_factor_of_the_rewards_is_a_choice_where_nothing_divides_it_out(preset):
    assert not refusal(config_of(preset(), {"reward_scale": 50.0}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kl__quantize": "int4"}, "config.kl.quantize='int4'"),
        ({"forward_rows": 30}, "config.forward_rows=30 does not divide by 8"),
        ({"update_rows": 12}, "config.update_rows=12 does not divide by 8"),
        ({"sample__rows": 12}, "config.sample.rows=12 does not divide by 8"),
        ({"reward__row_length": -1}, "config.reward.row_length=-1 must be at least 0"),
        ({"reward__tokens_per_batch": 0}, "config.reward.tokens_per_batch=0 at least 1"),
        ({"template": "qwen_boxed", "reward__rules": "original", "reward__format": "none"}, "template e2h only, not qwen"),
        ({"seed": -1}, "config.seed=-1"),
    ],
)
def test_what_a_recipe_refuses_before_its_first_stage(fields, message):
    config = ppo.defaults().unlock()
    config.update({"init": "not/there/yet", "questions": "neither"})
    config.reward.process = "none"
    ppo.check_values(config)
    for name, value in fields.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    with pytest.raises(UserError, match=message):
        ppo.check_values(config)
