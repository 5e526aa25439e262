"""A worker of `pool.py`: reads [prediction, reference, rules] as lines of JSON, answers with [verdict, reason]."""

import json
import os
import signal
import sys


def main() -> None:
    """Serves until its input ends, or it is killed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they go to the whole process group; the parent decides when to stop
        signal.signal(number, signal.SIG_IGN)
    memory = int(sys.argv[1]) << 20
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # macOS does not enforce address space; the time limit still holds
    from e2h_jax.grading.equality import grade
    from e2h_jax.grading.precision import precise

    precise(50)  # imports mpmath now rather than within the time of the first pair
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    output.write(b"ready\n")
    for line in sys.stdin.buffer:
        prediction, reference, rules = json.loads(line)
        try:
            verdict = grade(prediction, reference, rules)
            answer = [str(verdict), verdict.reason]
        except MemoryError:
            answer = ["undecided", "memory"]
        output.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
