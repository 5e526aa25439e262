"""Which models of the Hugging Face Hub are this network: one table, and the reading and writing of their config.json.

Field by field after the configuration classes of `transformers`; their defaults matter, as a config.json may leave fields out.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from e2h_jax.errors import UserError, nearest
from e2h_jax.models.hub import field
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.models.rotary import KINDS, RopeScaling


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells one `model_type` from the others."""

    classes: str  # how its class names begin: "Llama" for LlamaForCausalLM
    defaults: Mapping[str, Any]  # what it means when config.json leaves a field out
    always: Mapping[str, bool] = dataclasses.field(default_factory=dict)  # LlamaConfig fields that all its models have
    switches: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # config.json: LlamaConfig fields it sets
    window: str = "none"  # sliding window: none | all (layers) | last (layers, from max_window_layers on, if used at all)


FAMILIES = {
    "llama": Family(
        "Llama",
        switches={"attention_bias": ("qkv_bias", "o_bias"), "mlp_bias": ("mlp_bias",)},
        defaults={"max_position_embeddings": 2048},
    ),
    "mistral": Family(
        "Mistral",
        window="all",
        defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": Family(
        "Qwen2",
        always={"qkv_bias": True},
        window="last",
        defaults={"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
    ),
    "qwen3": Family(
        "Qwen3",
        always={"qk_norm": True},
        switches={"attention_bias": ("qkv_bias", "o_bias")},
        window="last",
        defaults={"head_dim": 128, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
    ),
}

FIELDS = {  # config.json: LlamaConfig
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_width",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "max_length",
    "tie_word_embeddings": "tie_embeddings",
}

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
)

TYPES = {  # of every field that is read, see hub.KINDS; null stands for an absent one
    **dict.fromkeys((*SIZES, "head_dim", "sliding_window", "max_window_layers"), "a whole number"),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "partial_rotary_factor"), "a number above 0"),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), "true or false"),
    **dict.fromkeys(("model_type", "hidden_act", "dtype", "torch_dtype"), "a text"),
    **dict.fromkeys(("architectures", "layer_types"), "a list of texts"),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "id2label"), "an object"),
    "original_max_position_embeddings": "a whole number above 0",
}
ROPE_TYPES = {
    **dict.fromkeys(("rope_type", "type"), "a text"),
    **dict.fromkeys(("factor", "rope_theta", "partial_rotary_factor"), "a number above 0"),
    "original_max_position_embeddings": "a whole number above 0",
    **dict.fromkeys(("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"), "a number above 0"),
    **dict.fromkeys(("mscale", "mscale_all_dim"), "a number"),
    "truncate": "true or false",
}

ROPE_FIELDS = {  # rope_scaling of config.json: RopeScaling
    "factor": "factor",
    "original_max_position_embeddings": "original_length",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
}
ROPE_USES = {  # the fields of rope_scaling that count, by kind
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"),
}


def check_types(text: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a family that is not in FAMILIES, or a field of config.json of another type than its own."""
    family = field(text, "model_type", TYPES["model_type"], where)
    if family not in FAMILIES:
        hint = nearest(str(family), FAMILIES)
        raise UserError(f"{where}: model_type {family!r} is not supported{hint}; there are {', '.join(FAMILIES)}.")
    for name, kind in TYPES.items():
        field(text, name, kind, where)
    for group in ("rope_parameters", "rope_scaling"):
        for name, kind in ROPE_TYPES.items():
            field(text.get(group) or {}, name, kind, f"{where}: {group}")


def read_config(text: Mapping[str, Any], where: str, classes: str = "ForCausalLM", own_code: bool = False) -> LlamaConfig:
    """The network that a config.json describes.

    Args:
      where: names the file in errors.
      classes: how the name of its architecture must end.
      own_code: it may come with code of its own, which is not run.

    Raises:
      UserError: a kind of model, of activation, of rotary scaling or of window that this network does not have, or a field
        that is missing or of another type than it must be.
    """
    check_types(text, where)
    family = _family(text, where, classes, own_code)
    given = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False} | dict(FAMILIES[family].defaults)
    nullable = ("sliding_window", "head_dim", "num_key_value_heads")  # null is not the default there
    given |= {name: value for name, value in text.items() if value is not None or name in nullable}
    if given.get("num_key_value_heads") is None:
        given["num_key_value_heads"] = given.get("num_attention_heads")
    for name in SIZES:
        if given.get(name) is None or given[name] < 1:
            raise UserError(f"{where}: {name} is {given.get(name)!r}, which is not a whole number above 0.")
    if given.get("head_dim") is None:
        given["head_dim"] = given["hidden_size"] // given["num_attention_heads"]
    if given["head_dim"] < 2 or given["head_dim"] % 2:
        raise UserError(f"{where}: heads of size {given['head_dim']} cannot be rotated; head_dim must be even.")
    for name in ("sliding_window", "max_window_layers"):
        if (given.get(name) or 0) < 0:
            raise UserError(f"{where}: {name} is {given[name]}, which is below 0.")
    if given["num_attention_heads"] % given["num_key_value_heads"]:
        raise UserError(
            f"{where}: num_attention_heads={given['num_attention_heads']} does not divide by "
            f"num_key_value_heads={given['num_key_value_heads']}."
        )
    fields = {ours: given[theirs] for theirs, ours in FIELDS.items()} | dict(FAMILIES[family].always)
    for theirs, ours in FAMILIES[family].switches.items():
        fields |= dict.fromkeys(ours, bool(given.get(theirs, False)))
    fields |= _read_window(given, FAMILIES[family].window, where) | _read_rope(given, where)
    stored = given.get("dtype") or given.get("torch_dtype") or "float32"
    return LlamaConfig(**fields, family=family, dtype="float32" if stored == "float32" else "bfloat16")


def _family(text: Mapping[str, Any], where: str, suffix: str, own_code: bool) -> str:
    family, classes = text["model_type"], text.get("architectures") or ()
    expected = f"{FAMILIES[family].classes}{suffix}"
    if list(classes) not in ([], [expected]):
        raise UserError(f"{where}: the architecture {', '.join(classes)} is not supported; of {family} it is {expected}.")
    if text.get("auto_map") and not own_code:
        raise UserError(f"{where}: the model comes with code of its own (auto_map), which is never run; it is not supported.")
    if text.get("quantization_config"):
        raise UserError(f"{where}: the weights are quantised (quantization_config); give the unquantised model.")
    if (text.get("hidden_act") or "silu") not in ("silu", "swish"):
        raise UserError(f"{where}: hidden_act {text['hidden_act']!r} is not supported, only silu is.")
    return family


def _read_window(given: Mapping[str, Any], rule: str, where: str) -> dict[str, int]:
    layers, size = given["num_hidden_layers"], given.get("sliding_window")
    if rule == "none" or not size or rule == "last" and not given.get("use_sliding_window"):
        return {}
    first = 0 if rule == "all" else min(given["max_window_layers"], layers)
    types = given.get("layer_types")
    if types is not None:
        first = list(types).count("full_attention")
        if list(types) != ["full_attention"] * first + ["sliding_attention"] * (layers - first):
            raise UserError(f"{where}: layer_types is not supported unless all layers with full attention come first.")
    return {"window": size, "window_from": first} if first < layers else {}


def _read_rope(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """rope_base, rope_scaling, and max_length where that is stretched; of old style (`rope_scaling`) and new."""
    rope = dict(given.get("rope_parameters") or {}) | dict(given.get("rope_scaling") or {})
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    base = rope.pop("rope_theta", None) or given.get("rope_theta") or 10_000.0
    rope = {name: value for name, value in rope.items() if value is not None and name != "type"}
    if (rope.pop("partial_rotary_factor", None) or given.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor is not supported; heads must be rotated whole.")
    if kind == "default":
        return {"rope_base": float(base)}
    if kind not in KINDS:
        raise UserError(
            f"{where}: rope_type {kind!r} is not supported{nearest(str(kind), KINDS)}; there are {', '.join(KINDS)}."
        )
    length = given["max_position_embeddings"]
    original = given.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or length
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = original
    if kind == "yarn":
        factor = rope.setdefault("factor", length / original)
        scales = rope.pop("mscale", 0), rope.pop("mscale_all_dim", 0)
        numerator, denominator = map(lambda m: 0.1 * m * math.log(factor) + 1, scales if all(scales) else (1, 0))
        rope.setdefault("attention_factor", numerator / denominator if factor > 1 else 1.0)
    if "factor" not in rope:
        raise UserError(f"{where}: rope_scaling of type {kind} has no factor.")
    unknown = [name for name in rope if name not in ROPE_FIELDS]
    if unknown:
        raise UserError(f"{where}: {unknown[0]!r} in rope_scaling of type {kind} is not supported.")
    scaling = RopeScaling(kind, **{ROPE_FIELDS[name]: value for name, value in rope.items() if name in ROPE_USES[kind]})
    if kind != "dynamic":
        return {"rope_base": float(base), "rope_scaling": scaling}
    # Its max_position_embeddings is the length before stretching; transformers sets no limit after it.
    stretched = int(length * scaling.factor)
    return {
        "rope_base": float(base),
        "rope_scaling": dataclasses.replace(scaling, original_length=length),
        "max_length": stretched,
    }


def write_config(config: LlamaConfig) -> dict[str, Any]:
    """The config.json fields that describe the network to `transformers` and vLLM (architectures and dtype are the caller's).

    Raises:
      UserError: the network has what its family has no field for.
    """
    family, text = FAMILIES[config.family], {"model_type": config.family}
    text |= {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
    for theirs, ours in family.switches.items():
        text[theirs] = all(getattr(config, name) for name in ours)
    if family.window == "all":
        text["sliding_window"] = config.window or None
    if family.window == "last":
        first = config.window_from if config.window else config.layers
        text |= {"use_sliding_window": bool(config.window), "sliding_window": config.window or None, "max_window_layers": first}
    # The old style of naming, which both old and new versions read.
    text |= {"rope_theta": config.rope_base, "rope_scaling": None, "hidden_act": "silu"}
    if config.rope_scaling is not None:
        scaling, uses = config.rope_scaling, ROPE_USES[config.rope_scaling.kind]
        text["rope_scaling"] = {"rope_type": scaling.kind} | {name: getattr(scaling, ROPE_FIELDS[name]) for name in uses}
        if scaling.kind == "dynamic":
            text["max_position_embeddings"] = scaling.original_length
    runtime = {name: getattr(config, name) for name in ("dtype", "unroll", "remat")}
    if dataclasses.replace(read_config(text, "config.json"), **runtime) != config:
        raise UserError(f"the model is no {config.family}: a config.json of that family cannot describe {config}.")
    return text
