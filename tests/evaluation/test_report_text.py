"""Formulas and Markdown of the report's page, read by its own scripts in Node.js."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from e2h_jax.evaluation.report import page

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")

ROOT = Path(__file__).parents[2]
# Trees as one line: tags without what is in them twice, attributes left out, classes kept.
SHOW = r"""
const show = (node) => {
  if (typeof node === "string") return node;
  if (node.tex !== undefined) return `${node.display ? "D" : "I"}{${node.tex}}`;
  if (node.code !== undefined) return `asy{${node.code}}`;
  const [tag, attributes, ...children] = node;
  const more = attributes.class ?? attributes.value;
  return `${tag}${more === undefined ? "" : `.${more}`}(${children.map(show).join(" ")})`;
};
const refused = (read) => { try { return read(); } catch (error) {
  if (error.constructor !== Error) throw error; // a TypeError is a mistake of the reader's
  return `refused: ${error.message}`; } };
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
"""


def in_node(given, script):
    """What a script, which has the page's functions and `given`, prints as JSON."""
    scripts = [page._read(name) for name in ("text.js", *page._FORMULAS, "markdown.js")]
    program = "\n".join([*scripts, SHOW, f"console.log(JSON.stringify({script}))"])
    run = subprocess.run(["node", "-e", program], input=json.dumps(given), capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def formula(*texts):
    """Each as what stands in its <math>."""
    found = in_node(texts, "given.map((tex) => refused(() => show(formulaTree(tex, false))))")
    return [text.removeprefix("math(").removesuffix(")") if text.startswith("math(") else text for text in found]


FORMULAS = {
    r"\frac12 + x^{10}": "mfrac(mn(1) mn(2)) mo(+) msup(mi(x) mn(10))",
    r"x^10": "msup(mi(x) mn(1)) mn(0)",
    r"3.14\times10^{-2}": "mn(3.14) mo(×) msup(mn(10) mrow(mo(−) mn(2)))",
    r"f'(x)_1^2": "msup(mi(f) mo(′)) mo(() mi(x) msubsup(mo()) mn(1) mn(2))",
    r"f''^2": "msup(mi(f) mrow(mo(′′) mn(2)))",
    r"\sqrt[3]{x}\sqrt2": "mroot(mi(x) mrow(mn(3))) msqrt(mn(2))",
    r"\left(\frac ab\right]": "mrow(mo(() mfrac(mi(a) mi(b)) mo(]))",
    r"\left.x\right|_0": "msub(mrow(mi(x) mo(|)) mn(0))",
    r"\sum_{i=1}^n i": "munderover(mo(∑) mrow(mi(i) mo(=) mn(1)) mi(n)) mi(i)",
    r"\int_0^1x": "msubsup(mo(∫) mn(0) mn(1)) mi(x)",
    r"\lim_{x\to0}\sin x": "munder(mo(lim) mrow(mi(x) mo(→) mn(0))) mspace() mi(sin) mspace() mi(x)",
    r"{n \choose k} = \binom nk": "mrow(mo(() mfrac(mi(n) mi(k)) mo())) mo(=) mrow(mo(() mfrac(mi(n) mi(k)) mo()))",
    r"a \over b": "mfrac(mi(a) mi(b))",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}": (
        "mrow(mo(() mtable(mtr(mtd(mn(1)) mtd(mn(2))) mtr(mtd(mn(3)) mtd(mn(4)))) mo()))"
    ),
    r"\begin{align*}a&=b\\[2pt]&=-c\\\end{align*}": (
        "mrow(mtable(mtr(mtd.right(mi(a)) mtd.left tight(mo(=) mi(b))) mtr(mtd.right() mtd.left tight(mo(=) mo(−) mi(c)))))"
    ),
    r"\begin{cases}1&x<0\\2\end{cases}": (
        "mrow(mo({) mtable(mtr(mtd.left(mn(1)) mtd.left(mi(x) mo(<) mn(0))) mtr(mtd.left(mn(2)))))"
    ),
    r"\begin{array}{|c|r}\hline a&b\\\hline c&d\\\hline\end{array}": (
        "mrow(mtable(mtr(mtd.edge ruled above(mi(a)) mtd.right above(mi(b))) "
        "mtr(mtd.edge ruled above below(mi(c)) mtd.right above below(mi(d)))))"
    ),
    r"a=b\\c=d": "mtable(mtr(mtd.left(mi(a) mo(=) mi(b))) mtr(mtd.left(mi(c) mo(=) mi(d))))",
    r"\text{if $x^2$ is < 50\%}": "mrow(mtext(if\u00a0) msup(mi(x) mn(2)) mtext(\u00a0is\u00a0<\u00a050%))",
    r"\boxed{\overline{AB}}": "mrow.boxed(mrow.overline(mrow(mi(A) mi(B))))",
    r"\mathbb{R}\mathbf{x}\mathrm{cm}": "mi(ℝ) mi(𝐱) mi(cm)",
    r"{\bf x}y": "mi(𝐱) mi(y)",
    r"\not=\not\in": "mo(≠) mo(∉)",
    r"\operatorname{lcm}(a)": "mo(lcm) mo(() mi(a) mo())",
    r"\xrightarrow[a]{b}": "munderover(mo(→) mrow(mi(a)) mi(b))",
    r"\color{red}x\textcolor{red}{y}\label{z}\hspace{1cm}": "mi(x) mi(y) mspace()",
    # What TeX refuses or reads otherwise, and a reader understands.
    r"50% of x_1_2": "mn(50) mi(%) mi(o) mi(f) msub(msub(mi(x) mn(1)) mn(2))",
    "": "",
}


def test_formulas():
    assert dict(zip(FORMULAS, formula(*FORMULAS), strict=True)) == FORMULAS


REFUSED = [
    r"\foo",
    r"\constructor",
    r"\href{javascript:alert(1)}{x}",
    r"\includegraphics{x}",
    r"\def\a{\a\a}\a",
    "{",
    "}",
    r"\left(x",
    r"x\right)",
    r"a\\&}",
]
REFUSED += [
    r"\begin{align}x",
    r"\begin{html}x\end{html}",
    r"\begin{cases}x\end{align}",
    "x^",
    r"\frac1",
    r"\text{a",
    r"\left\alpha x\right)",
    "a\\",
]


def test_what_cannot_be_read_is_refused():
    assert [text for text, found in zip(REFUSED, formula(*REFUSED), strict=True) if not found.startswith("refused: ")] == []
    assert formula(r"\foo") == [r"refused: \foo is not known"]


def test_signs_are_infix_between_and_prefix_before():
    forms = in_node(
        ["-a-b", "(-a)-b", "a=-b", r"\frac{-a}{b}", "x^{-1}"],
        'given.map((tex) => [...JSON.stringify(formulaTree(tex, false)).matchAll(/"form":"(\\w+)"/g)].map((m) => m[1]))',
    )
    assert forms == [["prefix", "infix"], ["prefix", "infix"], ["prefix"], ["prefix"], ["prefix"]]


def test_no_formula_is_nested_or_long_enough_to_stop_the_page():
    deep = [
        "{" * 1900,
        r"\sqrt" * 700,
        "x^" * 1900,
        r"\text{" * 600,
        r"\left(" * 600,
        r"\begin{matrix}" * 250,
        r"\text{$" * 300,
        "x" * 4001,
        "a_" * 1900,
    ]
    assert {found[:8] for found in formula(*deep)} == {"refused:"}
    wide = ["&" * 3900, r"\\" * 1900, "x_1" * 1300, r"\sqrt[" * 600, "1" * 4000]
    assert len(formula(*wide)) == len(wide)


def test_tags_and_attributes_are_the_reader_s_own():
    """A formula's text becomes text nodes; nothing of it a tag, an attribute or its value."""
    hostile = "onclickHACK"
    wraps = [
        r"\text{%s}",
        r"\textbf{%s}",
        r"\color{%s}x",
        r"\textcolor{%s}{x}",
        r"\hspace{%s}",
        r"\begin{array}{%s}x\end{array}",
        r"\tag{%s}",
        r"\label{%s}",
    ]
    wraps += [
        r"\operatorname{%s}",
        r"\mathrm{%s}",
        r"\begin{%s}x\end{%s}",
        r"\xrightarrow[%s]{x}",
        r"\sqrt[%s]{x}",
        r"x_{%s}",
        r"\left%s x\right)",
        r"\kern%s",
        "%s",
    ]
    texts = [
        wrap.replace("%s", text) for wrap in wraps for text in (hostile, f'"><img src=x {hostile}=1>', f"1cm;{hostile}:url(x)")
    ]
    found = in_node(
        texts,
        """given.flatMap((tex) => { const all = [];
          const walk = (node) => { if (typeof node === "string") return;
            all.push([node[0], ...Object.entries(node[1]).flat()]); node.slice(2).forEach(walk); };
          try { walk(formulaTree(tex, true)); } catch (error) { if (error.constructor !== Error) throw error; }
          return all; })""",
    )
    words = {word for node in found for word in node}
    assert {"math", "mtext", "mspace"} <= words
    tags = "math|mrow|mi|mn|mo|mtext|mspace|mfrac|msqrt|mroot|msub|msup|msubsup|munder|mover|munderover"
    tags += "|mtable|mtr|mtd|mstyle|mphantom"
    values = r"[a-z]+( [a-z]+)*|-?[\d.]+(em)?|minsize|maxsize"
    assert [word for word in words if not re.fullmatch(f"{tags}|{values}", word) or "hack" in word.lower()] == []
    assert {node[0] for node in found} <= set(tags.split("|"))


def test_the_site_s_equations_are_read():
    equations = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = re.sub(r"^```.*?^```|^    .*?$|`[^`\n]+`", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        equations += [
            a or b for a, b in re.findall(r"\$\$(.+?)\$\$|(?<![\w$])\$([^\s$][^$\n]*?)(?<!\s)\$(?!\d)", text, re.DOTALL)
        ]
    assert len(equations) > 50
    assert [found for found in formula(*equations) if found.startswith("refused")] == []


SEGMENTS = {
    "a $x$ b": "a |I{x}| b",
    "`$x$` ```\n$y$\n``` $z$": "`$x$` ```\n$y$\n``` |I{z}",
    "``quoted'' $x$ ``again''": "``quoted'' |I{x}| ``again''",
    r"so \boxed{\frac{1}{2}}.": r"so |I{\boxed{\frac{1}{2}}}|.",
    r"$\boxed{5}$": r"I{\boxed{5}}",
    "\\begin{align*}\na&=b\n\\end{align*}\nc": "D{\\begin{align*}\na&=b\n\\end{align*}}|\nc",
    r"costs \$5 or $6": "costs $5 or $6",
    r"$5 of \(x\) and $6": "$5 of |I{x}| and $6",
}


def test_where_formulas_stand():
    found = in_node(list(SEGMENTS), "given.map((text) => segments(text).map((piece) => piece.text ?? show(piece)).join('|'))")
    assert dict(zip(SEGMENTS, found, strict=True)) == SEGMENTS


def test_the_source_of_a_text_is_in_its_segments():
    texts = ["a $x$ \\[y\\] \\(z\\) $$w$$ [asy]d;[/asy] \\boxed{1} b", "\\begin{cases}x\\end{cases}`$`"]
    assert in_node(texts, "given.map((text) => segments(text).map((piece) => piece.text ?? piece.source).join(''))") == texts


def test_the_beginning_of_a_question_is_one_line_with_whole_formulas():
    (short, long) = in_node(
        ["Find\n\n$x$.\n\\[y\\]", "a " * 70 + "$" + "x+" * 60 + "y=0$ and more"],
        "given.map((text) => beginning(text).map((p) => p.text ?? show(p)))",
    )
    assert short == ["Find ", "I{x}", ". ", "I{y}"]
    assert long[1] == "I{" + "x+" * 60 + "y=0}" and len(long) == 2


MARKDOWN = {
    "**Step 1:** find $a_1*b_2*c$ and *x*": "p(strong(Step 1:)  find  I{a_1*b_2*c}  and  em(x))",
    "**so $x$ is `a*b`**": "p(strong(so  I{x}  is  code(a*b)))",
    "***both*** __b__ _i_": "p(strong(em(both))   strong(b)   em(i))",
    # Arithmetic, names and programs are no emphasis.
    "2*3*4 = 24, a * b * c, 2**3**4, (2)*(3)*(4)": "p(2*3*4 = 24, a * b * c, 2**3**4, (2)*(3)*(4))",
    "foo_bar_baz p=1;n=p*5;b=n*2 ____": "p(foo_bar_baz p=1;n=p*5;b=n*2 ____)",
    r"\$5 \*a\* \_": "p($5  * a *   _)",
    "# Title #\ntext\nmore": "h5(Title) p(text\nmore)",
    "#5 is no title": "p(#5 is no title)",
    "one\n\ntwo\n\n---": "p(one) p(two) hr()",
    "- a\n- b\n  - c\n    more\n- d\n\nafter": "ul(li(a) li(b ul(li(c\nmore))) li(d)) p(after)",
    "3. a\n\n   $x$\n4. b": "ol(li.3(a p(I{x})) li.4(b))",
    "2) a": "ol(li.2(a))",
    "1990. It was.": "p(1990. It was.)",
    "| a | b |\n|---|:-:|\n| 1 | $|x|$ |\n| `2` |": (
        "table(thead(tr(th(a) th(b))) tbody(tr(td(1) td(I{|x|})) tr(td(code(2)) td())))"
    ),
    "so:\n|a|\n|---|\n|1|\nend": "p(so:) table(thead(tr(th(a))) tbody(tr(td(1)))) p(end)",
    "```python\nx = '$y$' # *z*\n\n```\nout": "pre(code(x = '$y$' # *z*\n)) p(out)",
    "> a\n> > b": "blockquote(p(a) blockquote(p(b)))",
    # Markup, links and pictures are text.
    "<b>x</b> &amp; **<img src=x onerror=y>**": "p(<b>x</b> &amp;  strong(<img src=x onerror=y>))",
    "[a](javascript:x) ![b](http://x/y.png) <http://x>": "p([a](javascript:x) ![b](http://x/y.png) <http://x>)",
    "x\x7f0\x7fy $z$": "p(x\ufffd0\ufffdy  I{z})",
    "[asy]\n*d*\n[/asy]": "p(asy{*d*})",
    "": "",
}


def test_markdown():
    found = in_node(list(MARKDOWN), "given.map((text) => markdown(text)[0].map(show).join(' '))")
    assert dict(zip(MARKDOWN, found, strict=True)) == MARKDOWN


def test_code_may_reach_over_steps():
    steps = ["Run\n```\na = *1*", "b = 2", "```\n*done*"]
    script = """given.reduce(([all, open], text) => {
      const [nodes, next] = markdown(text, open);
      return [[...all, nodes.map(show).join(" ")], next];
    }, [[], ""])"""
    found = in_node(steps, script)
    assert found == [["p(Run) pre(code(a = *1*))", "pre(code(b = 2))", "pre(code()) p(em(done))"], ""]


def test_no_text_is_slow_to_read():
    evil = [
        "*" * 20000,
        "**a " * 5000,
        "_a " * 6000,
        "`" * 9000,
        "$ " * 10000,
        "- " * 10000,
        r"\boxed{" * 3000,
        "> " * 5000,
        r"\begin{align}" * 2000,
    ]
    evil += [
        "|" * 9000 + "\n" + "|-" * 4000,
        "* a\n" * 4000,
        r"\boxed{" + "{}" * 6000,
        r"\[" * 5000,
        "[asy]" * 4000,
        "# " + " #" * 9000 + "x",
        "~~~" * 4000,
    ]
    slowest = in_node(
        evil, "Math.max(...given.map((text) => { const began = Date.now(); markdown(text); return Date.now() - began; }))"
    )
    assert slowest < 3000
