"""The site's own words in another language: what stands for the figures, and a few labels. ko/site.po translates them.

    python docs/site/words.py ko            puts new words into the catalogue, marks those whose English changed
    python docs/site/words.py ko --check    names what is missing or stale; 1 where there is any

The chapters' prose has its catalogues beside the notebooks: course/classroom/translate.py, whose functions this uses.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(HERE), str(HERE.parents[1])) if path not in sys.path]

LANGUAGES = {"en": "English", "ko": "한국어"}
CHAPTERS = "The chapters"
ABOUT_CHAPTERS = ("Each page is a chapter as it was executed: text, code, and the figures that came out. Answers and hints are "
                  "folded; `make lab` opens the same chapters as notebooks in which you write them yourself.")
DOCUMENTS = "All documents"
ABOUT_DOCUMENTS = "The repository's own documents, as they stand there."
FOLDED = {"solution": ("Show an answer", "Hide it"), "setup": ("Show the helpers for the figures", "Hide them")}

# what Furo and MyST-NB have in English alone
THEME = ("Next", "Previous", "On this page", "Contents", "Back to top", "Skip to content", "Menu", "Expand", "Light mode",
         "Dark mode", "Auto light/dark, in light mode", "Auto light/dark, in dark mode", "Toggle site navigation sidebar",
         "Toggle table of contents sidebar", "Toggle Light / Dark / Auto color theme", "Toggle navigation of",
         "Link to this heading", "Link to this definition", "Toggle hidden content")


def wanted() -> dict[str, str]:
    """Passage -> where it stands."""
    labels = (CHAPTERS, ABOUT_CHAPTERS, DOCUMENTS, ABOUT_DOCUMENTS, *THEME, *(word for pair in FOLDED.values() for word in pair))
    found = {text: "labels" for text in labels}
    for path in sorted((HERE / "alt").glob("*.json")):
        for texts in json.loads(path.read_text("utf-8")).values():
            found |= {text: f"a figure of {path.stem}" for text in texts}
    return found


def translated(document: Path, language: str) -> Path:
    """NAME.md -> NAME.ko.md beside it, where that is, else NAME.md."""
    twin = document.with_suffix(f".{language}.md")
    return twin if twin.is_file() else document


def translator(language: str) -> Callable[[str], str]:
    """The words in that language; English where they are missing."""
    from course.classroom import translate
    if language == "en":
        return lambda text: text
    catalogue = translate.load(HERE / language / "site.po")
    return lambda text: translate.replaced(text, catalogue)


def main(arguments: list[str]) -> int:
    from course.classroom import translate
    path = HERE / arguments[0] / "site.po"
    if "--check" not in arguments:
        translate.update(path, wanted())
    found = translate.faults(wanted(), translate.load(path))
    print(*found, sep="\n")
    return int("--check" in arguments and bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
