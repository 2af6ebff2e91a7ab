"""Captions for Noto emoji: the file name is a sequence of code points, and Unicode has a name for each of them."""

import re
import unicodedata

JOINER, EMOJI_STYLE = 0x200D, 0xFE0F
TONES = {0x1F3FB: "light skin", 0x1F3FC: "medium light skin", 0x1F3FD: "medium skin", 0x1F3FE: "medium dark skin",
         0x1F3FF: "dark skin"}


def code_points(file_name: str) -> list[int] | None:
    """emoji_u1f469_1f3fd_200d_1f680.png -> [0x1f469, 0x1f3fd, 0x200d, 0x1f680]; None for any other name."""
    found = re.fullmatch(r"emoji_u([0-9a-f]{2,6}(?:_[0-9a-f]{2,6})*)\.\w+", file_name.lower())
    return [int(code, 16) for code in found[1].split("_")] if found else None


def captions(file_name: str) -> list[str]:
    """Plain words for an emoji's file, the short form first; [] where the name is no emoji's.

    >>> captions("emoji_u1f469_1f3fd_200d_1f680.png")
    ['woman, rocket, medium skin', 'an emoji of woman, rocket, medium skin']
    """
    codes = code_points(file_name)
    if codes is None:
        return []
    flag = "".join(chr(c - 0x1F1E6 + ord("A")) for c in codes if 0x1F1E6 <= c <= 0x1F1FF)
    if flag:
        words = [f"flag {flag.lower()}"]
    else:
        plain = [c for c in codes if c not in (JOINER, EMOJI_STYLE) and c not in TONES and not 0xE0000 <= c <= 0xE007F]
        words = [name(c) for c in plain] + [TONES[c] for c in codes if c in TONES]
    text = ", ".join(dict.fromkeys(w for w in words if w))     # each once, in order
    return [text, f"an emoji of {text}"] if text else []


def name(code: int) -> str:
    """Unicode's name without its shouting: "smiling face with open mouth"."""
    found = unicodedata.name(chr(code), "").lower()
    return re.sub(r"\s+", " ", re.sub(r"\b(emoji|symbol|sign|component)\b", "", found)).strip()
