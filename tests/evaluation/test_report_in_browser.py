"""The page in a real browser: it draws itself, filters, searches, obeys keys, and runs nothing that is in a solution."""

import pytest
from chromium import PROGRAM, Browser
from report_run import PROBLEMS, make_config, write_run

from e2h_jax import stage
from e2h_jax.evaluation.report import show

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium")

ROWS = "[...document.querySelectorAll('.list button')].map((row) => row.querySelector('small').textContent.split(' ')[0])"
OPEN = "document.querySelector('.open-problem h3')?.textContent.split(' ')[0]"


@pytest.fixture(scope="module")
def page(run_folder):
    path = show.write([run_folder])
    with Browser() as browser:
        browser.open(path)
        browser.wait("document.querySelector('.open-problem details.solution')")
        yield browser
        # Whatever the tests did: nothing was complained about, fetched, or run that a solution holds.
        assert browser.errors == []
        assert {url.split(":")[0] for url in browser.requests} <= {"file", "data", "blob"}
        assert browser.run("window.hacked") is None


MARKED = r"""## Step 1
Halve **both** of $x_1 * y_1 * 2$ and *see* `a_b`:
| n | $|n|$ |
|---|---|
| 1 | $\text{<img src=x onerror="window.hacked = 4">}$ |
- $\frac{10}{2}$
- <b>HACK</b> **<img src=x onerror="window.hacked = 3">** [link](javascript:hacked)
```
print("<script>window.hacked = 5</script>")
```
so $5$ and $\href{javascript:hacked}{x}$"""


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """The page of a run whose solutions are Markdown and whose problems have neither levels nor subjects."""
    folder = tmp_path_factory.mktemp("marked")
    write_run(folder, MARKED, [problem | {"level": None, "subject": None} for problem in PROBLEMS])
    stage.execute("recipe", make_config(), folder)
    with Browser() as browser:
        browser.open(folder / "report.html")
        browser.wait("document.querySelector('.open-problem details.solution .steps math')")
        yield browser
        assert browser.errors == [] and browser.run("window.hacked") is None
        assert {url.split(":")[0] for url in browser.requests} <= {"file", "data", "blob"}


def test_a_solution_s_markdown_is_drawn_and_its_markup_is_text(marked):
    def texts(selector):
        return marked.run(
            f"[...document.querySelectorAll('details.solution[open] .steps > li {selector}')].map((e) => e.textContent)"
        )

    assert texts("h5") == ["Step 1"]
    assert texts("strong") == ["both", '<img src=x onerror="window.hacked = 3">']
    assert texts("em") == ["see"]
    assert texts("code") == ["a_b", 'print("<script>window.hacked = 5</script>")', r"$\href{javascript:hacked}{x}$"]
    assert texts(".prose > p math") == ["x1∗y1∗2", "5"]  # `*` and `_` of a formula are TeX
    assert texts("td") == ["1", '<img src=x onerror="window.hacked = 4">'.replace(" ", "\u00a0")]
    assert texts("ul li")[1] == '<b>HACK</b> <img src=x onerror="window.hacked = 3"> [link](javascript:hacked)'
    assert texts("mfrac") == ["102"] and texts(":is(img, b, a, script)") == [] and texts("h4") == ["Answer"]
    # The steps are those that were scored, each with its score and its colour.
    assert texts("output") == ["0.90", "0.80"]
    colours = (
        "[...document.querySelectorAll('details.solution[open] .steps > li')].map((li) => getComputedStyle(li).backgroundColor)"
    )
    assert len(set(marked.run(colours))) == 2 and "rgba(0, 0, 0, 0)" not in marked.run(colours)


def test_without_levels_there_is_no_column_for_them(marked):
    heads = """[...document.querySelectorAll('#results thead')].map((row) =>
        [...row.querySelectorAll('th')].map((th) => th.textContent))"""
    first, compared = marked.run(heads)[:2]
    assert first == ["Decided by", "all (3)", "all, 0 to 100", "all, minus majority"]
    assert compared == ["", "all", "all"]
    assert "By level and subject" not in marked.run("[...document.querySelectorAll('h2')].map((h) => h.textContent)")
    assert "easy" not in marked.run("document.querySelector('main').textContent").replace("easy problems", "")


def choose(page, option):
    page.run(f"""(() => {{ const select = [...document.querySelectorAll('#problems select')]
        .find((s) => [...s.options].some((o) => o.value === {option!r}));
        select.value = {option!r}; select.dispatchEvent(new Event('change')); }})()""")


def search(page, text):
    page.run(f"""(() => {{ const box = document.querySelector('#problems input[type=search]');
        box.value = {text!r}; box.dispatchEvent(new Event('input')); }})()""")


def test_every_section_is_drawn(page):
    titles = page.run("[...document.querySelectorAll('section h2')].map((h) => h.textContent)")
    expected = ["Results", "Accuracy against N", "By level and subject", "Evaluators as judges", "Training", "Problems"]
    assert titles == expected
    assert page.run("[...document.querySelectorAll('#nav a')].map((a) => a.textContent)") == expected
    # No chart has a place that is no number.
    assert not page.run("[...document.querySelectorAll('svg')].some((svg) => /NaN|Infinity|undefined/.test(svg.outerHTML))")
    assert "paper: prm800k SFT-7b + PRM-7b" in page.run("document.querySelector('#samples').textContent")
    assert "KL to the reference" in page.run("document.querySelector('#training').textContent")
    assert page.run("document.querySelector('#results tbody tr.strong td').textContent").startswith("100.0")


def test_a_click_opens_a_problem_with_its_formulas_rendered(page):
    assert page.run(ROWS) == ["p/0", "p/1", "p/2"]
    page.run("document.querySelector('.list button').click()")
    page.wait(f"{OPEN} === 'p/0'")
    numerator, denominator = page.run(
        "[...document.querySelectorAll('.question math mfrac > *')].map((e) => e.getBoundingClientRect().y)"
    )
    assert numerator < denominator
    steps = page.run("[...document.querySelectorAll('details.solution[open] .steps output')].map((o) => o.textContent)")
    assert steps == ["0.90", "0.90"]
    sentence = page.run("document.querySelector('.open-problem .sentence').textContent")
    assert sentence.startswith("majority voting chose 5, right, with 2 of 4 votes; weighted voting, prm chose 5, right, with 8")


def test_the_list_has_its_formulas(page):
    page.wait("document.querySelector('.list .ask math')")
    assert page.run("document.querySelector('.list .ask').textContent") == "What is 102?"
    assert page.run("[...document.querySelectorAll('.list .ask')].map((e) => e.textContent)")[2] == "Costs $5 and $6: how many?"


def test_solutions_without_an_answer_are_told_by_level_and_subject(page):
    rows = "[...document.querySelectorAll('#levels [aria-label=\"Without an answer\"] tr')].map((r) => r.textContent)"
    assert page.run(rows)[:3] == ["sft", "By level", "level 120.01 of 5"]
    assert page.run(rows)[4:] == ["By subject", "Algebra10.01 of 10", "Geometry0.00 of 5"]


def test_filters_and_search(page):
    choose(page, "weighted prm")
    choose(page, "repaired")
    assert page.run(ROWS) == ["p/1"]
    choose(page, "any")
    reset(page)
    choose(page, "5")
    assert page.run(ROWS) == ["p/1", "p/2"]
    search(page, "add 3")
    assert page.run(ROWS) == ["p/1"]
    search(page, "no such words")
    assert page.run("document.querySelector('.list').textContent") == "No problem passes these filters."
    reset(page)
    choose(page, "wrong")
    assert page.run(ROWS) == ["p/2"]
    assert "1 of 3 problems" in page.run("document.querySelector('#problems [role=status]').textContent")
    reset(page)


def reset(page):
    search(page, "")
    page.run("""document.querySelectorAll('#problems .controls')[0].querySelectorAll('select').forEach((select) => {
        const all = [...select.options].find((o) => o.value === 'any' || o.value === '');
        if (all) { select.value = all.value; select.dispatchEvent(new Event('change')); } })""")
    assert page.run(ROWS) == ["p/0", "p/1", "p/2"]


def test_markup_in_a_solution_is_text(page):
    page.run("document.querySelectorAll('.list button')[1].click()")
    page.wait(f"{OPEN} === 'p/1'")
    assert "</script><script>window.hacked = 1" in page.run("document.querySelector('.question').textContent")
    assert "<img src=x" in page.run("document.querySelector('details.solution .steps').textContent")
    assert page.run("document.querySelector('.open-problem img, .open-problem script, .open-problem b')") is None


def test_keys(page):
    page.run("document.querySelectorAll('.list button')[0].click()")
    page.wait(f"{OPEN} === 'p/0'")
    page.press("j")
    page.wait(f"{OPEN} === 'p/1'")
    page.press("k")
    page.wait(f"{OPEN} === 'p/0'")
    page.run("document.querySelector('#problems').scrollIntoView({behavior: 'instant'})")
    opened = "[...document.querySelectorAll('details.solution')].findIndex((d) => d.open)"
    before = page.run(opened)
    page.press("ArrowRight")
    assert page.run(opened) == before + 1
    page.press("e")
    page.wait("document.querySelector('.open-problem > h3:last-of-type').textContent.includes('orm')")
    page.press("/")
    assert page.run("document.activeElement.type") == "search"
    page.press("j")  # typed, not obeyed
    assert page.run("document.activeElement.value") == "j"
    page.press("Escape")
    assert page.run("document.activeElement.type") != "search"
    search(page, "")
    page.press("?")
    assert page.run("document.getElementById('help').open")
    page.run("document.getElementById('help').close()")
    page.press("t")
    page.press("t")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    page.press("t")


def test_a_phone_does_not_scroll_sideways(page):
    page.resize(390, 844, mobile=True)
    assert page.run("document.documentElement.scrollWidth") <= 390
    page.run("document.querySelectorAll('.list button')[2].click()")
    page.wait(f"{OPEN} === 'p/2'")
    assert page.run("getComputedStyle(document.querySelector('.list')).display") == "none"
    page.run("document.querySelector('.back').click()")
    assert page.run("getComputedStyle(document.querySelector('.list')).display") != "none"
    page.resize(1280, 900)


def test_controls_have_names_and_text_has_contrast(page):
    unnamed = """[...document.querySelectorAll('button, select, input, svg[role=img], a')].filter((e) =>
        !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label')?.textContent.trim())).length"""
    assert page.run(unnamed) == 0
    ratio = """(() => {
        const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
        const light = (colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
          const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        return ['--ink', '--quiet', '--link', '--low', '--high'].map((name) => {
          const probe = document.body.appendChild(document.createElement('i')); probe.style.color = `var(${name})`;
          const ink = light(getComputedStyle(probe).color); probe.remove();
          return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); }); })()"""
    for scheme in ("light", "dark"):
        page.run(f"document.documentElement.style.colorScheme = '{scheme}'")
        assert min(page.run(ratio)) >= 4.5
    page.run("document.documentElement.style.colorScheme = ''")
