"""The page as one file: markup, style and scripts of `page/`, and the data in compressed parts that the browser inflates when
they are looked at. It asks nothing of the network; a content security policy forbids it, and every script but its own.
"""

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from e2h_jax.evaluation.report.curves import METRICS
from e2h_jax.evaluation.report.gather import Evaluation

LIMIT = 9_500_000  # bytes of a page
PER_PART = 20  # problems inflated at once
INDEX_SHARE = 0.4  # of a page, at most: the list of problems with what was decided; the rest is for their solutions

_PARTS = files("e2h_jax.evaluation.report").joinpath("page")
_SCRIPTS = ("data.js", "text.js", "charts.js", "figures.js", "tables.js", "curves.js", "problems.js", "start.js")
_TEX = re.compile(r"\$|\\\(|\\\[|\\boxed|\\frac")


def build(title: str, evaluations: Sequence[Evaluation], training: Sequence[dict], limit: int = LIMIT) -> str:
    """Returns the page. Where it would exceed `limit` bytes, samples are left out, and where one per problem is still too much,
    problems; the page says so.
    """
    shares = max(1, sum(bool(evaluation.problems) for evaluation in evaluations))
    summaries = [evaluation.summary for evaluation in evaluations]
    core = {"title": title, "metrics": METRICS, "evaluations": summaries, "training": training}
    indices = [_index(number, evaluation, limit * INDEX_SHARE / shares) for number, evaluation in enumerate(evaluations)]
    tex = _tex() if any(_has_tex(evaluation) for evaluation in evaluations) else []
    room = limit - 200_000 - sum(map(len, [*tex, *indices])) - len(_pack(core))  # 200,000: the page itself, and to spare
    details = []
    for number, evaluation in enumerate(evaluations):
        drawn, listed = evaluation.kept_samples, evaluation.kept_problems
        details += _details(number, evaluation, room // shares)
        kept = {"samples": evaluation.kept_samples, "problems": evaluation.kept_problems, "listed": listed}
        evaluation.summary["shown"] = kept
        evaluation.summary["drawn"] = {"samples": drawn, "problems": len(evaluation.problems)}
    script = "\n".join(_PARTS.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    filled = {
        "title": html.escape(title),
        "policy": _policy([script, *([_katex()] if tex else [])]),
        "style": _PARTS.joinpath("page.css").read_text(encoding="utf-8"),
        "data": "\n".join([_script("core", _pack(core)), *indices, *details, *tex]),
        "script": script,
    }
    template = _PARTS.joinpath("page.html").read_text(encoding="utf-8")
    # One pass: what is filled in may itself hold something that looks like a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], template)


def _index(number: int, evaluation: Evaluation, room: float) -> str:
    """The index, of as many problems as there is room for."""
    while True:
        script = _script(f"index-{number}", _pack(evaluation.first(evaluation.kept_problems)))
        if len(script) <= room or evaluation.kept_problems < 2:
            return script
        evaluation.kept_problems = max(1, int(0.95 * evaluation.kept_problems * room / len(script)))


def _details(number: int, evaluation: Evaluation, room: int) -> list[str]:
    """The solutions in parts of `PER_PART` problems: as many samples of each, and as many problems, as there is room for."""
    count = evaluation.kept_problems
    if some := range(0, count, -(-count // PER_PART) or 1):  # first from a few of them: all may be half a million solutions
        size = count / len(some) * len(_pack([evaluation.detail(problem) for problem in some]))
        evaluation.kept_samples = max(1, int(evaluation.kept_samples * min(1.0, room / size)))
    while True:
        rows = [evaluation.detail(problem) for problem in range(evaluation.kept_problems)]
        starts = range(0, len(rows), PER_PART)
        parts = [_script(f"part-{number}-{i // PER_PART}", _pack(rows[i : i + PER_PART])) for i in starts]
        size = sum(map(len, parts))
        if size <= room or not rows:
            return parts
        share = 0.95 * room / size
        if evaluation.kept_samples > 1:
            evaluation.kept_samples = max(1, int(evaluation.kept_samples * share))
        else:
            evaluation.kept_problems = int(evaluation.kept_problems * share)


def _has_tex(evaluation: Evaluation) -> bool:
    return any(_TEX.search(problem["question"] + (problem["answer"] or "")) for problem in evaluation.problems)


def _tex() -> list[str]:
    """KaTeX (MIT licence, page/katex/LICENSE) with its fonts in its style."""
    folder = _PARTS.joinpath("katex")

    def font(match: re.Match) -> str:
        content = base64.b64encode(folder.joinpath("fonts", match[1]).read_bytes()).decode()
        return f"url(data:font/woff2;base64,{content})"

    style = folder.joinpath("katex.min.css").read_text(encoding="utf-8")
    # woff2 is read by every browser that can inflate this page; the other formats of each font are left out.
    style = re.sub(r'url\(fonts/([\w-]+\.woff2)\) format\("woff2"\)[^;}]*', font, style)
    return [_script("katex-style", _squeeze(style)), _script("katex-script", _squeeze(_katex()))]


def _katex() -> str:
    return _PARTS.joinpath("katex", "katex.min.js").read_text(encoding="utf-8")


def _policy(scripts: Iterable[str]) -> str:
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; font-src data:; img-src data:; base-uri 'none'"


def _pack(value: Any) -> str:
    return _squeeze(json.dumps(value, ensure_ascii=True, separators=(",", ":")))


def _squeeze(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _script(identity: str, content: str) -> str:
    return f'<script type="text/plain" id="{identity}">{content}</script>'
