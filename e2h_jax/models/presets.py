"""Shapes of known models, as data. Field by field: original-system.md section 4.1 and the Hub's config.json files."""

from e2h_jax.errors import UserError, nearest
from e2h_jax.models.rotary import RopeScaling

_LLAMA_7B = dict(
    width=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp_width=11008, norm_eps=1e-5, dtype="bfloat16", remat="dots",
)  # fmt: skip
_LLAMA_34B = dict(
    vocab_size=32000, width=8192, layers=48, heads=64, kv_heads=8, head_dim=128, mlp_width=22016, rope_base=1e6, norm_eps=1e-5,
    dtype="bfloat16", remat="full",
)  # fmt: skip
_LLAMA_3 = dict(
    vocab_size=128256, rope_base=5e5, norm_eps=1e-5, max_length=131072, dtype="bfloat16", remat="dots",
)  # fmt: skip
_QWEN2_MATH = dict(
    family="qwen2", qkv_bias=True, rope_base=1e4, norm_eps=1e-6, max_length=4096, dtype="bfloat16", remat="dots",
)  # fmt: skip

PRESETS: dict[str, dict] = {
    # 0.2 M parameters: the built-in curriculum on a laptop
    "micro": dict(width=64, layers=4, heads=4, kv_heads=4, head_dim=16, mlp_width=176, max_length=512, unroll=4),
    # 1.3 M parameters with a vocabulary of 2,048: smoke runs on real text
    "mini": dict(width=128, layers=4, heads=4, kv_heads=2, head_dim=32, mlp_width=352, max_length=2048, unroll=4),
    "llemma_7b": _LLAMA_7B | dict(vocab_size=32016, rope_base=1e4, max_length=4096),  # its tokenizer has 32000 ids
    "llemma_34b": _LLAMA_34B | dict(max_length=4096),
    "codellama_7b": _LLAMA_7B | dict(vocab_size=32016, rope_base=1e6, max_length=16384),
    "codellama_34b": _LLAMA_34B | dict(max_length=16384),
    "deepseek_math_7b": _LLAMA_7B | dict(layers=30, vocab_size=102400, rope_base=1e4, norm_eps=1e-6, max_length=4096),
    "qwen2.5_math_1.5b": _QWEN2_MATH | dict(
        vocab_size=151936, width=1536, layers=28, heads=12, kv_heads=2, head_dim=128, mlp_width=8960, tie_embeddings=True,
    ),
    "qwen2.5_math_7b": _QWEN2_MATH | dict(
        vocab_size=152064, width=3584, layers=28, heads=28, kv_heads=4, head_dim=128, mlp_width=18944,
    ),
    "llama_3.2_1b": _LLAMA_3 | dict(
        width=2048, layers=16, heads=32, kv_heads=8, head_dim=64, mlp_width=8192, tie_embeddings=True,
        rope_scaling=RopeScaling("llama3", factor=32.0, original_length=8192),
    ),
    "llama_3.1_8b": _LLAMA_3 | dict(
        width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp_width=14336,
        rope_scaling=RopeScaling("llama3", factor=8.0, original_length=8192),
    ),
}  # fmt: skip


# Names on the Hub of models that have one of these shapes.
HUB = {
    "EleutherAI/llemma_7b": "llemma_7b",
    "EleutherAI/llemma_34b": "llemma_34b",
    "codellama/CodeLlama-7b-hf": "codellama_7b",
    "codellama/CodeLlama-34b-hf": "codellama_34b",
    "deepseek-ai/deepseek-math-7b-base": "deepseek_math_7b",
    "deepseek-ai/deepseek-math-7b-instruct": "deepseek_math_7b",
    "deepseek-ai/deepseek-math-7b-rl": "deepseek_math_7b",
    "Qwen/Qwen2.5-Math-1.5B": "qwen2.5_math_1.5b",
    "Qwen/Qwen2.5-Math-1.5B-Instruct": "qwen2.5_math_1.5b",
    "Qwen/Qwen2.5-Math-7B": "qwen2.5_math_7b",
    "Qwen/Qwen2.5-Math-7B-Instruct": "qwen2.5_math_7b",
    "meta-llama/Llama-3.2-1B": "llama_3.2_1b",
    "meta-llama/Llama-3.2-1B-Instruct": "llama_3.2_1b",
    "meta-llama/Llama-3.1-8B": "llama_3.1_8b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama_3.1_8b",
}


def get_preset(name: str) -> dict:
    """LlamaConfig fields of a preset (a copy); UserError names the nearest one when there is none of that name."""
    if name not in PRESETS:
        raise UserError(f"config.preset={name!r} is unknown{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return dict(PRESETS[name])
