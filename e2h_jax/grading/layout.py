"""The arrangement of an answer's tokens: equations set on several lines, and intervals whose open ends turn their brackets.

Both are spellings of what `parse.py` reads: `x &= 5` is `x = 5`, and `[0, 1[` is `[0, 1)`.
"""

from e2h_jax.grading.latex import Token

_EQUATIONS = frozenset("align aligned alignat alignedat gather gathered equation eqnarray split multline".split())
_SYSTEMS = frozenset("cases dcases rcases array".split())  # matrices and piecewise functions, unless they hold equations
RELATIONS = frozenset(["=", "<", ">", "le", "ge", "ne", "in", "approx", "equiv", "cong"])
_SET_OPERATIONS = frozenset(["cup", "cap", "setminus"])
_OPEN, _CLOSE = ("(", "set(", "{", "langle"), (")", "set)", "}", "rangle")


def arranged(tokens: list[Token]) -> list[Token]:
    """Returns the tokens in one line: alignment marks left out, a comma between equations, open ends in round brackets."""
    if any(token.kind in ("&", "\\\\", "begin") for token in tokens):
        tokens = _in_one_line(tokens)
    if any(token.kind in ("[", "]") for token in tokens):
        tokens = _with_round_brackets(tokens)
    return tokens


def _named(tokens: list[Token], position: int) -> str:
    """Returns what the token there is: a command's or a relation's name, or its kind; "" outside."""
    if not 0 <= position < len(tokens):
        return ""
    return tokens[position].text if tokens[position].kind == "command" else tokens[position].kind


def _in_one_line(tokens: list[Token]) -> list[Token]:
    line: list[Token] = []
    environments: list[bool] = []  # those that are open: whether they are taken off
    for position, token in enumerate(tokens):
        before, after = _named(tokens, position - 1), _named(tokens, position + 1)
        inside = bool(environments) and not environments[-1]  # of a matrix, say
        if token.kind == "begin":
            environments.append(_holds_equations(tokens, position))
            if environments[-1]:
                if line and line[-1].kind == "set(":  # \left\{ \begin{array} … \end{array} \right.
                    line.pop()
                continue
        elif token.kind == "end" and environments:
            if environments.pop():
                continue
        elif token.kind == "&" and not inside:
            if before in RELATIONS or after in RELATIONS or before in ("\\\\", "begin") or not before:
                continue
        elif token.kind == "\\\\" and not inside:
            following = _named(tokens, position + 1 + (after == "&"))
            if following in RELATIONS or (after == "&" and following in ("+", "-")) or following in ("", "end"):
                continue
            token = Token(",", ",", token.spaced)
        line.append(token)
    return line


def _holds_equations(tokens: list[Token], start: int) -> bool:
    """Returns whether an environment is a list of equations: no matrix, and no piecewise function with its cases."""
    name = tokens[start].text.split("{")[0].rstrip("*")
    if name in _EQUATIONS:
        return True
    if name not in _SYSTEMS:
        return False
    related = False
    for position in range(start + 1, len(tokens)):
        kind = _named(tokens, position)
        if kind in ("end", "begin"):
            return related and kind == "end"
        if kind == "&" and not {_named(tokens, position - 1), _named(tokens, position + 1)} & RELATIONS:
            return False
        related = related or kind in RELATIONS
    return False


def _with_round_brackets(tokens: list[Token]) -> list[Token]:
    r"""Spells `[0, 1[`, `]0, 1]` and `]0, 1[` as `[0, 1)`, `(0, 1]` and `(0, 1)`; leaves every other bracket alone."""
    found, position = list(tokens), 0
    while position < len(found):
        opening = found[position]
        end = _interval_end(found, position) if opening.kind in ("[", "]", "(") else None
        if end is not None:
            if opening.kind == "]":
                found[position] = Token("(", "(", opening.spaced)
            if found[end].kind == "[":
                found[end] = Token(")", ")", found[end].spaced)
            position = end
        position += 1
    return found


def _interval_end(tokens: list[Token], start: int) -> int | None:
    """Returns where the interval that opens at `start` ends: the next bracket, after two things and one separator."""
    if tokens[start].kind == "]" and not _borders(_named(tokens, start - 1), tokens[start - 1] if start else None):
        return None
    depth, separators, last = 0, 0, start
    for position in range(start + 1, len(tokens)):
        kind = _named(tokens, position)
        if depth == 0 and (kind in ("[", "]") or kind == ")"):
            if separators != 1 or last == position - 1:
                return None
            after = tokens[position + 1] if position + 1 < len(tokens) else None
            return position if kind != "[" or _borders(_named(tokens, position + 1), after) else None
        if depth == 0 and kind in (",", ";"):
            if last == position - 1:
                return None
            separators, last = separators + 1, position
        depth += (kind in _OPEN) - (kind in _CLOSE)
        if depth < 0 or kind in RELATIONS or kind in _SET_OPERATIONS:
            return None
    return None


def _borders(name: str, token: Token | None) -> bool:
    """Returns whether an interval may begin after this token, or end before it."""
    if name in ("word", "text", "", ",", ";", "(", ")", "set(", "set)", "{", "}", "$", "|", ":") or name in RELATIONS:
        return True
    return name in _SET_OPERATIONS or (name == "letter" and token is not None and token.text in "uU")
