"""Peak memory and speed of `e2h convert`, both ways, and of loading onto a mesh of eight devices.

    python benchmarks/convert_memory.py [--gb 1.3] [--shard_gb 0.3] [--folder DIR]

Makes a model of that size with random bfloat16 weights in shards, imports it, loads it, and exports it again, each in a process
of its own. Printed: how far the process's memory (VmHWM) rose above what it had after its imports, beside the bar
1.3 x largest shard + one layer. Loading is in bfloat16; on a CPU the "devices" lie in the same memory, so the model counts too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

LAYER = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16}


def memory(field: str) -> int:
    """A line of /proc/self/status, in bytes. Not ru_maxrss: that one starts at the parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def make_model(folder: Path, gb: float, shard_gb: float) -> int:
    """Writes a Llama of about `gb`; returns a layer's bytes."""
    from e2h_jax.models import hub, store
    from e2h_jax.models.families import read_config
    from e2h_jax.models.tensors import checkpoint_tensors, parameter_shapes

    bfloat16, vocab = hub.DTYPES["BF16"], 32000
    layer = 2 * (4 * 2048 * 2048 + 3 * 2048 * 5632 + 2 * 2048)
    layers = max(1, round((gb * 1e9 - 2 * 2 * vocab * 2048) / layer))
    text = LAYER | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers}
    text |= {"vocab_size": vocab, "torch_dtype": "bfloat16"}
    config = read_config(text, "config.json")
    parameters = parameter_shapes(store.abstract("policy", config)[1])
    outputs = [hub.Output(tensor.name, tensor.shape, bfloat16) for tensor in checkpoint_tensors(config, parameters)]
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for output, write in hub.write(folder, outputs, shard_gb * 1e9):
        write(rng.random(output.shape, np.float32).astype(bfloat16))
    (folder / "config.json").write_text(json.dumps(text))
    (folder / "tokenizer.json").write_text(Tokenizer(WordLevel({"</s>": 0}, "</s>")).to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return layer


def measure(what: str, source: str, workdir: str, shard_gb: str) -> None:
    """In a process of its own: runs one thing and prints its seconds and the rise of its memory as JSON."""
    import jax

    from e2h_jax.models import convert, store
    from e2h_jax.parallel.mesh import make_mesh

    config = convert.defaults().unlock()
    config.source, config.shard_gb = source, float(shard_gb)
    if what == "load":
        mesh = make_mesh((1, 4, 2))
    before, began = memory("VmRSS"), time.perf_counter()
    if what == "load":
        jax.block_until_ready(store.load(Path(source), mesh, "policy", param_dtype="bfloat16")[2])
    else:
        config.to = "huggingface" if what == "export" else "model"
        convert.run(config, Path(workdir))
    print(json.dumps({"seconds": time.perf_counter() - began, "rise": memory("VmHWM") - before, "before": before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.3)
    parser.add_argument("--shard_gb", type=float, default=0.3)
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        layer = make_model(folder / "hub", arguments.gb, arguments.shard_gb)
        shards = sorted(path.stat().st_size for path in (folder / "hub").glob("*.safetensors"))
        bar = 1.3 * shards[-1] + layer
        print(f"model {sum(shards) / 1e9:.2f} GB in {len(shards)} files of at most {shards[-1] / 1e6:.0f} MB; ", end="")
        print(f"a layer has {layer / 1e6:.0f} MB")
        runs = (("import", "hub", "a"), ("load", "a/model", ""), ("export", "a/model", "b"))
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
        for what, source, workdir in runs:
            command = [sys.executable, __file__, "--measure", what, str(folder / source), str(folder / workdir)]
            child = subprocess.run(
                [*command, str(arguments.shard_gb)], env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            result = json.loads(child.stdout)
            limit = f"bar {bar / 1e6:.0f} MB" if what != "load" else f"the model itself {sum(shards) / 1e6:.0f} MB"
            rate = sum(shards) / result["seconds"] / 1e6
            print(
                f"{what:8} memory +{result['rise'] / 1e6:5.0f} MB over {result['before'] / 1e6:.0f} MB after imports "
                f"({limit}), {result['seconds']:.1f} s, {rate:.0f} MB/s"
            )
        same = all(
            (folder / "hub" / path.name).read_bytes() == path.read_bytes()
            for path in (folder / "b" / "huggingface").glob("*.safetensors")
        )
        print(f"exported files equal the imported ones bit for bit: {same}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main()
