"""Our GAE and DPO loss beside tunix's, on the same random numbers.

    python benchmarks/rl_parity.py --tunix=/path/to/venv/bin/python    (google-tunix==0.1.7 jax==0.10.2 flax==0.12.8)

tunix returns advantages whitened over the batch with the sample's standard deviation; ours are whitened the same way here.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from e2h_jax.algorithms import dpo
from e2h_jax.algorithms.advantages import gae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tunix", required=True, help="python of an environment with google-tunix")
    rng = np.random.default_rng(0)
    rows, slots, pairs = 64, 200, 256
    x = {
        "rewards": rng.normal(size=(rows, slots)).astype(np.float32),
        "values": rng.normal(size=(rows, slots)).astype(np.float32),
        "mask": (np.arange(slots) < rng.integers(1, slots + 1, (rows, 1))).astype(np.float32),
        "gamma": 0.99,
        "lam": 0.95,
        "policy": -rng.gamma(20.0, size=(pairs, 2)).astype(np.float32),
        "reference": -rng.gamma(20.0, size=(pairs, 2)).astype(np.float32),
        "beta": 0.1,
        "smoothings": np.array([0.0, 0.1]),
    }
    x["rewards"], x["values"] = x["rewards"] * x["mask"], x["values"] * x["mask"]
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given.npz", Path(folder) / "out.npz"
        np.savez(given, **x)
        script = Path(__file__).parent / "rl_peers" / "tunix_losses.py"
        subprocess.run([parser.parse_args().tunix, script, given, out], check=True, env={"JAX_PLATFORMS": "cpu"})
        theirs = dict(np.load(out))

    mask = x["mask"].astype(bool)
    advantages, returns = gae(x["rewards"], x["values"], mask, x["gamma"], x["lam"])
    known = advantages[mask].astype(np.float64)
    whitened = (known - known.mean()) / np.sqrt(known.var(ddof=1) + 1e-8)
    print("largest difference to tunix 0.1.7")
    print(f"  advantages (whitened)  {np.abs(whitened - theirs['advantages'][mask]).max():.1e}")
    print(f"  returns                {np.abs(returns - theirs['returns'])[mask].max():.1e}")
    for smoothing, found in zip(x["smoothings"], theirs["dpo"], strict=True):
        config = dpo.defaults().unlock()
        config.update({"beta": x["beta"], "label_smoothing": float(smoothing)})
        ratios = jnp.asarray(x["policy"] - x["reference"])
        loss = dpo.preference_loss(config, ratios, jnp.zeros_like(ratios)).mean()
        rewards = x["beta"] * ratios
        ours = [loss, (rewards[:, 0] - rewards[:, 1]).mean(), (rewards[:, 0] > rewards[:, 1]).mean()]
        worst = np.abs(np.array(ours, np.float64) - found).max()
        print(f"  DPO, smoothing {smoothing:g}: loss {float(loss):.6f}, margin and accuracy too: {worst:.1e}")


if __name__ == "__main__":
    main()
