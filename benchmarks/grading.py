"""Graders side by side: how often right, how fast, and where they differ on real answers. docs/grading.md has the results.

    python benchmarks/grading.py                      the tables
    python benchmarks/grading.py --out=folder         also disagreements.jsonl of the real pool

Compares the `default` and `strict` rules, and math-verify where it is installed (pip install "math-verify[antlr4_13_2]"; it is
no dependency of this project). Pairs: tests/grading/cases.jsonl and spellings.jsonl, variants of the answers of MATH, hostile
input, and the answers of the re-ranking pool; real data is read from $E2H_DATA or shared/data beside the clone.
"""

import argparse
import gzip
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "grading")]

from grading_variants import variants  # noqa: E402
from hostile import HOSTILE  # noqa: E402

from e2h_jax.grading import extract_answer, is_equal  # noqa: E402

DATA = Path(os.environ.get("E2H_DATA") or ROOT.parent / "shared" / "data")


def math_verify() -> Callable[[str, str], bool] | None:
    """Returns math-verify as a grader; None where it is not installed.

    As its manual asks, each side is in `$…$` unless it has an environment of its own. One second for each of its two steps.
    """
    try:
        import logging

        from math_verify import parse, verify
    except ImportError:
        print('math-verify is not installed (pip install "math-verify[antlr4_13_2]"): its column is left out.\n')
        return None
    logging.disable(logging.ERROR)

    def framed(text: str) -> str:
        return text if any(mark in text.replace(r"\$", "") for mark in ("$", r"\[", r"\boxed")) else f"${text}$"

    def equal(prediction: str, reference: str) -> bool:
        try:
            gold, answer = (parse(framed(text), parsing_timeout=1) for text in (reference, prediction))
            return bool(verify(gold, answer, timeout_seconds=1))
        except Exception:
            return False

    return equal


def measure(equal: Callable[[str, str], bool], pairs: list[dict]) -> dict:
    """Returns shares of right answers, and seconds per pair."""
    right = {True: [0, 0], False: [0, 0]}
    seconds = []
    for pair in pairs:
        start = time.perf_counter()
        found = equal(pair["prediction"], pair["reference"])
        seconds.append((time.perf_counter() - start, pair["prediction"][:60], pair["reference"][:40]))
        right[pair["equal"]][0] += found == pair["equal"]
        right[pair["equal"]][1] += 1
    total = sum(second for second, *_ in seconds)
    return {
        "pairs": len(pairs),
        "equal": 100 * right[True][0] / max(right[True][1], 1),
        "different": 100 * right[False][0] / max(right[False][1], 1),
        "called_equal": 100 - 100 * right[False][0] / max(right[False][1], 1),
        "all": 100 * (right[True][0] + right[False][0]) / len(pairs),
        "rate": len(pairs) / total,
        "median_ms": 1000 * statistics.median(second for second, *_ in seconds),
        "over_1s": sum(second > 1 for second, *_ in seconds),
        "worst": sorted(seconds, reverse=True)[:8],
    }


def real_pairs() -> list[tuple[str, str]]:
    """Returns the distinct (answer, reference) pairs of the re-ranking pool."""
    with gzip.open(DATA / "rerank" / "math500_bon32.jsonl.gz", "rt") as file:
        problems = [json.loads(line) for line in file]
    boxed = [(extract_answer(c["text"], "boxed"), p["answer"]) for p in problems for c in p["candidates"]]
    pairs = dict.fromkeys(boxed)
    return [(given, truth) for given, truth in pairs if given is not None]


def main() -> None:
    """Prints the tables; writes the disagreements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="", help="folder for disagreements.jsonl")
    parser.add_argument("--sample", type=int, default=3000, help="variants of MATH answers to grade (0: all, minutes)")
    parser.add_argument("--hostile", action="store_true", help="hostile input also to math-verify (stalls for minutes)")
    options = parser.parse_args()
    graders = {
        "default": is_equal,
        "strict": lambda given, truth: is_equal(given, truth, "strict"),
        "math-verify": math_verify(),
    }
    graders = {name: grader for name, grader in graders.items() if grader}

    cases = [json.loads(line) for line in (ROOT / "tests/grading/cases.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [json.loads(line) for line in (ROOT / "tests/grading/spellings.jsonl").read_text(encoding="utf-8").splitlines()]
    sets = {"case file": cases}
    sets["spellings"] = [
        {"prediction": text, "reference": row["reference"], "equal": equal == "same"}
        for row in rows
        for equal in ("same", "different")
        for text in row[equal]
    ]
    sets["hostile"] = [
        {"prediction": text, "reference": reference, "equal": False}
        for text in HOSTILE
        for reference in ("7", r"\sqrt{2}", "x+1")
    ]
    if DATA.is_dir():
        with gzip.open(DATA / "math_12500.jsonl.gz", "rt") as file:
            answers = sorted({json.loads(line)["answer"] for line in file} - {""})
        made = [case for answer in answers for case in variants(answer)]
        sets["variants of MATH"] = random.Random(0).sample(made, options.sample) if options.sample else made
        sets["MATH against itself"] = [{"prediction": a, "reference": a, "equal": True} for a in answers]
    else:
        print(f"no real data at {DATA} (set E2H_DATA): variants of MATH and the pool are left out.\n")

    print("| pairs | grader | number | equal, right % | different called equal % | all, right % | grades/s | over 1 s |")
    print("|---|---|---|---|---|---|---|---|")
    worst = {}
    for title, pairs in sets.items():
        for name, grader in graders.items():
            if title == "hostile" and name == "math-verify" and not options.hostile:
                continue
            row = measure(grader, pairs)
            worst[title, name] = row["worst"]
            print(
                f"| {title} | {name} | {row['pairs']:,} | {row['equal']:.2f} | {row['called_equal']:.2f} | {row['all']:.2f} "
                f"| {row['rate']:,.0f} | {row['over_1s']} |",
                flush=True,
            )
    print("\nSlowest pairs of the default rules:\n")
    for seconds, given, truth in sorted(
        sum((rows for (_, name), rows in worst.items() if name == "default"), []), reverse=True
    )[:8]:
        print(f"    {1000 * seconds:7.1f} ms  {given!r} against {truth!r}")
    if not DATA.is_dir():
        return
    pairs = real_pairs()
    verdicts = {name: [grader(*pair) for pair in pairs] for name, grader in graders.items()}
    disagreed = [
        {"given": given, "reference": truth, **{name: found[index] for name, found in verdicts.items()}}
        for index, (given, truth) in enumerate(pairs)
        if len({found[index] for found in verdicts.values()}) > 1
    ]
    print(f"\nReal pool: {len(pairs):,} distinct pairs, {len(disagreed)} on which the graders disagree")
    for name, found in verdicts.items():
        print(f"    {name}: {sum(found):,} equal")
    if options.out:
        path = Path(options.out) / "disagreements.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in disagreed), encoding="utf-8")
        print(f"    written to {path}")


if __name__ == "__main__":
    main()
