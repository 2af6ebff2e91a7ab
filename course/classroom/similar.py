"""Pairs of submissions that are alike: code without names, comments and layout, compared by Python's own difflib.

difflib is in the standard library, deterministic, and its ratio can be explained to a student in one sentence: twice the
matching tokens by all tokens. Two answers that are both close to the course's own are not held against each other: that
distance is given beside the pair. A pair is a reason to talk, no proof.
"""

import ast
import difflib
import io
import itertools
import keyword
import tokenize

from course.classroom import curriculum

LEAST, SHORTEST = 0.9, 40                  # ratio from which on a pair is listed; tokens an answer must have to count


def tokens(source: str) -> tuple[str, ...]:
    """The code's tokens; names become the order of their first appearance, strings and comments vanish."""
    names: dict[str, str] = {}
    found = []
    try:
        stripped = ast.unparse(_without_docstrings(ast.parse(source)))
        for token in tokenize.generate_tokens(io.StringIO(stripped).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                found.append(names.setdefault(token.string, f"n{len(names)}"))
            elif token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER):
                found.append(token.string)
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return tuple(source.split())[:2000]
    return tuple(found[:2000])


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:] or [ast.Pass()]
    return tree


def ratio(a: tuple[str, ...], b: tuple[str, ...]) -> float:
    if a == b:
        return 1.0
    match = difflib.SequenceMatcher(None, a, b, autojunk=False)
    return match.ratio() if match.real_quick_ratio() >= LEAST and match.quick_ratio() >= LEAST else 0.0


def pairs(made) -> list[dict]:
    """Pairs of students, the most alike first, with the exercises and how near each is to the course's own answer."""
    found: dict[tuple[str, str], list] = {}
    for id in made.exercises:
        own = tokens(curriculum.tasks()[id].source)
        written = {name: tokens(s.sources[id]) for name, s in made.students.items()
                   if id in s.sources and made.marks[name][id].status != "missing"}
        groups: dict[tuple, list[str]] = {}
        for name, code in written.items():
            if len(code) >= SHORTEST:
                groups.setdefault(code, []).append(name)
        nearness = {code: difflib.SequenceMatcher(None, code, own, autojunk=False).ratio() for code in groups}
        for (a, mine), (b, theirs) in itertools.combinations_with_replacement(groups.items(), 2):
            value = ratio(a, b)
            if value < LEAST or min(nearness[a], nearness[b]) >= LEAST:
                continue
            couples = itertools.combinations(mine, 2) if a == b else itertools.product(mine, theirs)
            for one, other in couples:
                found.setdefault(tuple(sorted((one, other))), []).append(
                    {"exercise": id, "ratio": round(value, 3), "to_course": round(max(nearness[a], nearness[b]), 3)})
    rows = [{"students": list(key), "exercises": sorted(rows, key=lambda r: r["exercise"])} for key, rows in found.items()]
    return sorted(rows, key=lambda r: (-len(r["exercises"]), r["students"]))[:200]
