"""Scene -> words, by a handful of templates, and words -> scene, so that any typed prompt can be scored."""

import re

from course.data.vocabulary import ALL_COLORS, ALL_SHAPES, ALL_TEXTURES, BACKGROUNDS, POSITIONS, RELATIONS, SIZES, Object, Scene

PLACES = {"center": "in the center", "left": "on the left", "right": "on the right", "top": "at the top",
          "bottom": "at the bottom"}

# one object: all of these name its size, colour, shape, place and background ...
FULL = (
    "{thing} {place} of {background}",
    "{thing} {place} on {background}",
    "{place} {thing} on {background}",
    "{background} with {thing} {place}",
    "{thing} on {background} {place}",
)
# ... and these leave some of it open
SHORT = ("{thing} on {background}", "{thing} {place}", "{thing}")
SEVERAL = ("{relations} on {background}", "{background} with {relations}", "{relations}")
DEGRADED = {"blurry": "a blurry picture of ", "noisy": "a noisy picture of ", "cropped": "a cropped picture of ",
            "watermarked": "a watermarked picture of ", "sharp": "a sharp picture of "}


def noun(thing: Object) -> str:
    texture = "" if thing.texture == "plain" else f"{thing.texture} "
    return f"a {thing.size} {texture}{thing.color} {thing.shape}"


def caption(scene: Scene, template: int = 0, short: bool = False, quality: str | None = None) -> str:
    """Words for `scene`. `template` picks a word order, `short` allows leaving something out, `quality` is said first."""
    words = {"thing": noun(scene.objects[0]), "background": f"a {scene.background} background",
             "place": PLACES[scene.objects[0].position]}
    if len(scene.objects) == 1:
        choices = SHORT if short else FULL
    else:
        choices = SEVERAL[2:] if short else SEVERAL[:2]
        words["relations"] = noun(scene.objects[0]) + " " + " and ".join(
            f"{relation} {noun(scene.objects[j])}" for _, relation, j in scene.relations())
    quality = scene.degradation or quality
    return (DEGRADED[quality] if quality else "") + choices[template % len(choices)].format(**words)


def full_captions(scene: Scene) -> list[str]:
    """Every way to say all of it."""
    return [caption(scene, template) for template in range(len(FULL) if len(scene.objects) == 1 else 2)]


def near_misses(text: str, turn: int, count: int) -> list[str]:
    """`count` texts that say one thing otherwise: a word for another of its kind, or, of two things, the words exchanged.

    Exchanging ("a red ring left of a blue ring" for "a blue ring left of a red ring") keeps the bag of words: only who reads
    the order can tell. A text without a known word gets its first word taken away.
    """
    words, found = text.split(), []
    places = [(i, kind) for i, word in enumerate(words) for kind, known in _CHANGED.items() if word in known]
    for k in range(count):
        mine = list(words)
        swaps = [(i, j) for n, (i, a) in enumerate(places) for j, b in places[n + 1:] if a == b and words[i] != words[j]]
        if swaps and k % 2 == 0:
            i, j = swaps[(turn + k) % len(swaps)]
            mine[i], mine[j] = mine[j], mine[i]
        elif places:
            i, kind = places[(turn + k) % len(places)]
            others = [w for w in _CHANGED[kind] if w != mine[i]]
            mine[i] = others[(turn // 7 + k) % len(others)]
        else:
            mine = mine[k % max(len(mine), 1) + 1:]
        found.append(" ".join(mine))
    return found


_WORDS = {"size": SIZES, "texture": ALL_TEXTURES, "color": tuple(ALL_COLORS), "shape": ALL_SHAPES}

_CHANGED = {"size": SIZES, "color": tuple(ALL_COLORS)[:8], "shape": ALL_SHAPES[:6], "background": tuple(BACKGROUNDS),
            "side": ("left", "right"), "height": ("above", "below"), "end": ("top", "bottom")}


def parse(text: str) -> dict:
    """What `text` asks for: {"objects": [{"shape", "color", "size", "texture", "position"}], "background", "relations"}.

    Words that are not said are None; a texture that is not said is plain. Free of grammar: it looks for known words.
    """
    text = " ".join(re.findall(r"[a-z]+", text.lower()))
    background = next((b for b in BACKGROUNDS if f"{b} background" in text), None)
    text = text.replace(f"{background} background", "")
    position = next((p for p, words in PLACES.items() if re.search(rf"{words}\b", text)), None)
    objects, current = [], {}
    for word in text.split():
        kind = next((k for k, known in _WORDS.items() if word in known), None)
        if kind:
            current[kind] = word
        if kind == "shape":
            blank = {"shape": None, "color": None, "size": None, "texture": "plain", "position": None}
            objects.append(blank | current)
            current = {}
    if len(objects) == 1 and position in POSITIONS:
        objects[0]["position"] = position
    found = re.findall("|".join(RELATIONS), text)
    return {"objects": objects, "background": background, "relations": found[: max(len(objects) - 1, 0)]}
