"""Exercises 5 and 6: learn which symbols belong together, and put a word together from them."""

from collections import Counter

from course.classroom.checks import Exercise
from course.classroom.checks.ch09.answers import encode_word, learn_merges

LEARN_MERGES = Exercise("tokenizer.learn_merges", points=3, minutes=20, reference=learn_merges)
ENCODE_WORD = Exercise("tokenizer.encode_word", points=3, minutes=10, reference=encode_word)

TEXT = ("a small red ring left of a large blue square on a gray background a large red star right of a small green ring on a "
        "mint background a small striped purple triangle above a large black cross").split()


def spell(word: str) -> tuple[str, ...]:
    """"low" -> ("l", "o", "w</w>")."""
    return (*word[:-1], word[-1] + "</w>")


LOW = {spell("low"): 5, spell("lot"): 2, spell("new"): 3}


# ---- 5 · learn

def _list(value):
    if not isinstance(value, (list, tuple)):
        return f"expected a list of pairs, got {type(value).__name__}" + (": is the `return` missing?" if value is None else "")
    for pair in value:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(s, str) for s in pair):
            return f"expected pairs of symbols such as ('l', 'o'), got {pair!r}"


def _same(value, right, bugs=()):
    value = [tuple(pair) for pair in value]
    if value == right:
        return None
    for words, wrong in dict(bugs).items():
        if value == wrong:
            return words
    i = next((i for i, (a, b) in enumerate(zip(value, right, strict=False)) if a != b), min(len(value), len(right)))
    got, wanted = (str(x[i]) if i < len(x) else "nothing" for x in (value, right))
    return f"merge {i} should be {wanted}, got {got}"


@LEARN_MERGES.gate("returns a list of pairs of symbols")
def _(fn):
    return _list(fn(dict(LOW), 2))


@LEARN_MERGES.property("worked by hand: 5 x low, 2 x lot, 3 x new: first (l, o), which stands in 7 words, then (lo, w</w>)")
def _(fn):
    return _same(fn(dict(LOW), 2), [("l", "o"), ("lo", "w</w>")], {
        "the pairs were counted once, at the beginning: count anew behind each merge": [("l", "o"), ("o", "w</w>")],
        "these are the rarest pairs: join the most frequent": [("o", "t</w>"), ("l", "ot</w>")],
        "the same pair twice: put it together in the words before you count again": [("l", "o"), ("l", "o")],
        "each word was counted once: a pair counts as often as its word occurs": [("l", "o"), ("e", "w</w>")],
        "the list is turned round: the first merge comes first": [("lo", "w</w>"), ("l", "o")]})


@LEARN_MERGES.property("a word counts as often as it occurs")
def _(fn):
    words = {spell("xy"): 10, spell("ab"): 1, spell("abc"): 1, spell("abd"): 1, spell("abe"): 1}
    return _same(fn(words, 1), [("x", "y</w>")], {
        "each word was counted once: a pair counts as often as its word occurs": [("a", "b")]})


@LEARN_MERGES.property("of equally frequent pairs the first in the alphabet is joined")
def _(fn):
    words = {spell("new"): 3, spell("zq"): 3, spell("ab"): 3}
    return _same(fn(words, 1), [("a", "b</w>")], {
        "the pair that was met first won: ties go by the alphabet": [("n", "e")],
        "the last in the alphabet won: the first": [("z", "q</w>")]})


@LEARN_MERGES.property("stops when every word is one symbol")
def _(fn):
    return _same(fn({spell("ab"): 2, ("c</w>",): 9}, 10), [("a", "b</w>")]) or _same(fn({}, 3), [])


@LEARN_MERGES.property("no pair reaches across two words, and a merge changes every word")
def _(fn):
    words = Counter(map(spell, TEXT))
    return _same(fn(dict(words), 12), learn_merges(words, 12)) or _same(fn(dict(words), 200), learn_merges(words, 200))


@LEARN_MERGES.hygiene("leaves the table of words as it was")
def _(fn):
    words = dict(LOW)
    fn(words, 3)
    return None if words == LOW else "the table of words was changed: work on a copy"


# ---- 6 · encode

MERGES = learn_merges(Counter(map(spell, TEXT)), 60)
RANK = {pair: i for i, pair in enumerate(MERGES)}


def _pieces(value, right, bugs=()):
    if not isinstance(value, (list, tuple)) or not all(isinstance(s, str) for s in value):
        return f"expected a list of symbols, got {value!r}" + (": is the `return` missing?" if value is None else "")
    if list(value) == right:
        return None
    return next((words for words, wrong in dict(bugs).items() if list(value) == wrong), f"expected {right}, got {list(value)}")


@ENCODE_WORD.gate("returns a list of symbols that together spell the word")
def _(fn):
    out = fn(list(spell("low")), {("l", "o"): 0})
    if problem := _pieces(out, ["lo", "w</w>"]):
        return problem if not isinstance(out, (list, tuple)) or "".join(map(str, out)) != "low</w>" else None


@ENCODE_WORD.property("worked by hand: (l, o), then (lo, w</w>) make one symbol of low")
def _(fn):
    return _pieces(fn(list(spell("low")), {("l", "o"): 0, ("lo", "w</w>"): 1}), ["low</w>"], {
        "only one pair was joined: go on until none is in `rank`": ["lo", "w</w>"],
        "nothing was joined": ["l", "o", "w</w>"]})


@ENCODE_WORD.property("the pair of the lowest rank comes first, wherever it stands")
def _(fn):
    rank = {("b", "c"): 0, ("c", "d"): 1, ("a", "b"): 2, ("d", "e"): 3}
    return _pieces(fn(list("abcde"), rank), ["a", "bc", "de"], {
        "pairs were joined from left to right: the one of the lowest rank comes first": ["ab", "cd", "e"],
        "the pair of the highest rank came first: rank 0 was the most frequent": ["ab", "c", "de"]})


@ENCODE_WORD.property("every occurrence of a pair is joined")
def _(fn):
    return _pieces(fn(list("abxab"), {("a", "b"): 0}), ["ab", "x", "ab"], {
        "only the first occurrence was joined": ["ab", "x", "a", "b"], "only the last one": ["a", "b", "x", "ab"]})


@ENCODE_WORD.property("pairs that were never learned stay apart; a word of one symbol is left as it is")
def _(fn):
    return _pieces(fn(list("xyz"), {("x", "z"): 0}), ["x", "y", "z"], {
        "x and z are joined across y: only neighbours are": ["xz", "y"]}) or _pieces(fn(["q"], {}), ["q"])


@ENCODE_WORD.property("equals the course's on words that were learned, and on words that were not")
def _(fn):
    for word in [*TEXT, "ring", "rings", "redback", "marble", "turquoise", "o"]:
        if problem := _pieces(fn(list(spell(word)), RANK), encode_word(spell(word), RANK)):
            return f"{word}: {problem}"


@ENCODE_WORD.hygiene("leaves pieces and rank as they were")
def _(fn):
    pieces, rank = list(spell("low")), {("l", "o"): 0, ("lo", "w</w>"): 1}
    fn(pieces, rank)
    if pieces != list(spell("low")):
        return "the list of pieces was changed: work on a copy"
    return None if len(rank) == 2 else "rank was changed"
