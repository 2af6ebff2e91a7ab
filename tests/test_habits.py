"""The files around the code say what is so: dependencies, constraints, containers, templates, the citation; README is short."""

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OURS = "latent-diffusion-course"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def minima() -> dict[str, str]:
    """Package -> the smallest version that pyproject.toml allows."""
    every = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    return {normal(name): version for name, version in (line.split(">=") for line in every if not line.startswith(OURS))}


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def test_every_dependency_is_reviewed_and_pinned():
    rows = re.findall(r"^\| ([a-z][\w.-]*) \| .+ \| .+ \| .+ \|$", (ROOT / "docs/dependencies.md").read_text("utf-8"), re.M)
    reviewed = [normal(row) for row in rows if row != "package"]
    assert sorted(reviewed) == sorted(minima())
    assert not set(minima()) - set(pins("constraints.txt"))


def test_the_licences_are_those_of_the_packages():
    families = {"MIT": "MIT", "BSD": "BSD", "APACHE": "Apache", "MPL": "MPL", "PYTHON SOFTWARE": "PSF"}
    checked = 0
    text = (ROOT / "docs/dependencies.md").read_text("utf-8")
    for name, licence in re.findall(r"^\| ([a-z][\w.-]*) \| [^|]+ \| ([^|]+) \|", text, re.M):
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        said = " ".join([about.get("License-Expression") or "", (about.get("License") or "")[:80],
                         *(c for c in about.get_all("Classifier") or () if "License" in c)]).upper()
        known = [ours for sign, ours in families.items() if sign in said]
        assert not known or any(ours in licence for ours in known), (name, licence, said)
        checked += bool(known)
    assert checked > 15


def test_the_oldest_versions_are_the_minima():
    from packaging.version import Version
    oldest, allowed = pins("constraints-min.txt"), minima()
    extras = PROJECT["optional-dependencies"]
    needed = {normal(line.split(">=")[0]) for line in PROJECT["dependencies"] + extras["dev"] + extras["data"] + extras["train"]
              if not line.startswith(OURS)}
    assert set(oldest) == needed
    assert {name: Version(v) for name, v in oldest.items()} == {name: Version(allowed[name]) for name in oldest}


@pytest.mark.parametrize("file", ["Dockerfile", ".binder/requirements.txt"])
def test_containers_install_by_the_constraints(file):
    text = (ROOT / file).read_text("utf-8")
    assert "constraints.txt" in text and "-e" in text


def test_what_the_dockerfile_copies_is_there():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    copied = [name for line in re.findall(r"^COPY (?!--)(.+) \./$", text, re.M) for name in line.split()]
    assert copied and all((ROOT / name).is_file() for name in copied)
    assert re.search(r"^FROM python:3\.(11|12|13)-", text, re.M)
    extra = re.search(r"^ARG EXTRAS=(\w+)$", text, re.M)[1]
    assert extra in PROJECT["optional-dependencies"]


def test_the_dev_container_calls_targets_that_are_there():
    said = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text("utf-8"))
    target = re.match(r"make (\S+) TORCH=cpu", said["postCreateCommand"])[1]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert f"{target.replace('.venv', '$(VENV)')}:" in makefile


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    yaml = pytest.importorskip("yaml")
    said = yaml.safe_load(text)
    assert said["version"] == PROJECT["version"] and said["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(said)
    assert said["authors"][0]["name"] == PROJECT["authors"][0]["name"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md")), ids=lambda path: path.stem)
def test_issue_templates_have_a_head(path):
    yaml = pytest.importorskip("yaml")
    head = yaml.safe_load(path.read_text("utf-8").split("---")[1])
    assert head["name"] and head["about"]


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", "SECURITY.md", "docs/elsewhere.md", ".github/pull_request_template.md"])
def test_files_that_documents_name_are_there(file):
    folders = r"course|tests|docs|datasets|solutions|\.binder|\.devcontainer"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", (ROOT / file).read_text("utf-8"))
    missing = [name for name in named if not re.search("NN|NAME", name) and not (ROOT / name).exists()]
    assert not missing


def prose(text: str) -> str:
    """What is read of a document: without code blocks and where links lead."""
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def test_the_readme_is_read_in_two_minutes():
    text = (ROOT / "README.md").read_text("utf-8")
    words = [word for word in prose(text).split() if re.search(r"\w", word)]
    assert 300 < len(words) <= 550, f"{len(words)} words: what is more belongs into docs/"
    assert sum(line.startswith("|--") for line in text.splitlines()) <= 1
    chapters = re.findall(r"^(\d+)\. \[.+\]\(solutions/(\w+)\.ipynb\)$", text, re.M)
    assert [name for _, name in chapters] == sorted(path.stem for path in (ROOT / "solutions").glob("[0-9][0-9]_*.py"))
    assert [int(number) for number, _ in chapters] == list(range(len(chapters)))


@pytest.mark.parametrize("heading, command, further", [
    ("To learn", "make lab", None), ("To teach", "course grade submissions/", "docs/instructors.md"),
    ("To measure", "course tables C", "docs/gpu.md")])
def test_each_reader_finds_the_next_command_and_a_figure(heading, command, further):
    text = (ROOT / "README.md").read_text("utf-8")
    part = re.search(rf"^## {heading}\n(.*?)^## ", text, re.M | re.S)[1]
    shown = "\n".join(re.findall(r"^```bash\n(.*?)^```$", part, re.M | re.S))
    assert command in shown
    assert re.search(r"\d", prose(part)), "no figure"
    assert further is None or f"]({further})" in part


def test_links_between_documents_lead_to_what_is_there():
    """As a code host shows them; the site's own test looks at the built pages."""
    documents = [*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if ROOT / "docs/site" not in path.parents),
                 *(ROOT / "datasets").glob("*.md")]
    links = [(path, link) for path in documents for link in re.findall(r"\]\(([^)\s#]+)", path.read_text("utf-8"))
             if not re.match(r"https?:|mailto:", link)]
    assert len(links) > 100
    assert not [f"{path.relative_to(ROOT)}: {link}" for path, link in links if not (path.parent / link).exists()]
