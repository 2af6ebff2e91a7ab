"""A release, up to the tag: `make release VERSION=0.2.0`, then the two lines it prints.

    refused       a tree with changes, a version that is older or tagged already, an empty [Unreleased] in CHANGELOG.md, chapters
                  out of step, a lint error, a test of `make test` that fails (`--untested` leaves the tests out, to try this)
    written       the version in pyproject.toml, course/__init__.py and CITATION.cff; the date in CITATION.cff and CHANGELOG.md
    made          dist/*.whl and dist/*.tar.gz from exactly that; a commit; an annotated tag. Nothing is pushed or uploaded.
"""

import argparse
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

from packaging.version import InvalidVersion, Version

PYTHON, ROOT = sys.executable, Path(__file__).resolve().parents[1]


class Refused(SystemExit):
    """Said in one line; nothing has been changed."""

    def __init__(self, why: str):
        print(f"no release: {why}", file=sys.stderr)
        super().__init__(1)


def run(*command: str, root: Path) -> str:
    result = subprocess.run(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode:
        raise Refused(f"`{' '.join(command)}` failed:\n{result.stdout[-2000:]}")
    return result.stdout.strip()


def current(root: Path) -> str:
    return re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text("utf-8"), re.M)[1]


def require(root: Path, version: str, tested: bool) -> None:
    tags = run("git", "tag", root=root).split()                 # the first release has the version that stands there
    try:
        if Version(version) < Version(current(root)):
            raise Refused(f"{version} is older than {current(root)}")
    except InvalidVersion:
        raise Refused(f"{version!r} is no version; expected something like 0.2.0") from None
    if f"v{version}" in tags:
        raise Refused(f"there is a tag v{version} already")
    if changes := run("git", "status", "--porcelain", root=root):
        raise Refused(f"the tree has changes that are not committed:\n{changes}")
    if not notes(root).strip():
        raise Refused("CHANGELOG.md says nothing under [Unreleased]")
    run(PYTHON, "-m", "course", "release", "--check", root=root)
    run(PYTHON, "-m", "ruff", "check", ".", root=root)
    if tested and subprocess.run(["make", "test"], cwd=root).returncode:
        raise Refused("`make test` failed; what it printed is above")


def notes(root: Path) -> str:
    """What CHANGELOG.md says under [Unreleased]."""
    text = (root / "CHANGELOG.md").read_text("utf-8")
    return re.search(r"^## \[Unreleased\]\n(.*?)(?=^## \[|\Z)", text, re.M | re.S)[1]


def write(root: Path, version: str, today: str) -> list[str]:
    """Put the version where it stands; returns the files. Each pattern must fit exactly once: a file that changed is noticed."""
    edits = {"pyproject.toml": [(r'^version = ".+"$', f'version = "{version}"')],
             "course/__init__.py": [(r'^__version__ = ".+"$', f'__version__ = "{version}"')],
             "CITATION.cff": [(r"^version: .+$(\ndate-released: .+$)?", f"version: {version}\ndate-released: {today}")],
             "CHANGELOG.md": [(r"^## \[Unreleased\]$", f"## [Unreleased]\n\n## [{version}] - {today}")]}
    texts = {}
    for name, changes in edits.items():
        texts[name] = (root / name).read_text("utf-8")
        for pattern, new in changes:
            texts[name], count = re.subn(pattern, lambda _, new=new: new, texts[name], flags=re.M)
            if count != 1:
                raise Refused(f"{name} has {count} places that fit {pattern!r}, expected one")
    for name, text in texts.items():
        (root / name).write_text(text, "utf-8")
    return list(texts)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(prog="make release", description=__doc__.splitlines()[0])
    parser.add_argument("version")
    parser.add_argument("--untested", action="store_true", help="without `make test`")
    given = parser.parse_args(arguments)
    require(root, given.version, not given.untested)
    said, files = notes(root).strip(), write(root, given.version, date.today().isoformat())
    shutil.rmtree(root / "dist", ignore_errors=True)
    try:
        run(PYTHON, "-m", "build", "--no-isolation", "--outdir", "dist", ".", root=root)
    except Refused:
        run("git", "checkout", "--", *files, root=root)         # as it was
        raise
    run("git", "commit", "-qm", f"Release {given.version}", *files, root=root)
    run("git", "tag", "-a", f"v{given.version}", "--cleanup=verbatim", "-m", f"{given.version}\n\n{said}", root=root)
    print("made:", *sorted(path.name for path in (root / "dist").iterdir()))
    print("now:  git push --follow-tags\n      twine upload dist/*      where the package is to be on an index")


if __name__ == "__main__":
    main()
