"""How `benchmarks/sampling.py` talks to its workers: one JSON object per line, a case in, its figures out."""

import json
import sys
import time


def serve(prepare) -> None:
    """`prepare(folder)` returns `sample(prompts, n, new, ends, seed, choice) -> token lists, facts`.

    A list ends with its end token.
    `choice`: temperature (0 = greedy) and top_k (0 = off).
    """
    out, sys.stdout = sys.stdout, sys.stderr
    sample = prepare(sys.argv[1])
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        began = time.perf_counter()
        tokens, extra = sample(case["prompts"], case["n"], case["new"], case["ends"], case["seed"], case["choice"])
        seconds = time.perf_counter() - began
        with open("/proc/self/status") as status:
            peak = next(int(row.split()[1]) * 1024 for row in status if row.startswith("VmHWM"))
        facts = {"seconds": seconds, "tokens": sum(map(len, tokens)), "peak_bytes": peak, "last": tokens[-1]}
        print(json.dumps(facts | extra), file=out, flush=True)


def cut(tokens: list[int], ends: set[int]) -> list[int]:
    """Up to the first end token, which counts."""
    at = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: at + 1]
