import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2h_jax.data.templates import get_template, paragraphs
from e2h_jax.errors import UserError

TEMPLATE = get_template("e2h")


def test_the_text_format_of_the_project():
    text = TEMPLATE.format_prompt("1+{x}?") + TEMPLATE.format_solution(["a", "b"], "6")
    assert text == "# Question\n\n1+{x}?\n\n# Solution\n\na\n\nb\n\n# Answer\n\n6"
    assert TEMPLATE.format_solution(["a"], None) == "a"
    assert TEMPLATE.format_solution([], "6") == "# Answer\n\n6"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a\n\n# Answer\n\n6", "6"),
        ("a\n\n# Answer\n\n 6 \n\nmore", "6"),
        ("# Answer\n \n\n\n6\nb\n", "6\nb"),
        ("a\r\n\r\n# Answer\r\n\r\n6\r\n", "6"),
        ("# Answer\n\n1\n\n# Answer\n\n2", "1"),
        ("a\n\n# Answer", None),
        ("a\n\n# Answer\n\n \n", None),
        ("a # Answer\n\n6", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert TEMPLATE.extract_answer(text) == answer


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(["a", " ", "\n", "\t", "\r"]), max_size=20).map("".join)))
def test_paragraphs_cover_the_text(text):
    found = paragraphs(text)
    assert "".join(text[p.begin : p.end] for p in found) == text
    for p in found:
        assert p.begin <= p.start <= p.stop <= p.gap <= p.end
        assert text[p.start : p.stop] == text[p.begin : p.gap].strip()
        assert text[p.gap : p.end].strip(" \t\r\n") == "" and text[p.gap : p.end].count("\n") != 1
        assert paragraphs(text[p.begin : p.end])[0] == (0, *(x - p.begin for x in p[1:]))


def test_an_unknown_template_is_refused():
    with pytest.raises(UserError, match='no template "e2"'):
        get_template("e2")
