"""`make release`: what it refuses, and what it makes, in a clone."""

import importlib.util
import re
import subprocess
import tarfile
import tomllib
import zipfile
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)
FILES = ("pyproject.toml", "course/__init__.py", "CITATION.cff", "CHANGELOG.md")


def git(*command: str, root: Path) -> str:
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    return subprocess.run(["git", *who, *command], cwd=root, check=True, text=True, capture_output=True).stdout.strip()


@pytest.fixture
def small(tmp_path):
    """The files that carry the version, in a repository of their own."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    if not release.notes(tmp_path).strip():                     # straight after a release
        log = (tmp_path / "CHANGELOG.md").read_text("utf-8")
        (tmp_path / "CHANGELOG.md").write_text(log.replace("## [Unreleased]\n", "## [Unreleased]\n\n- A change.\n"), "utf-8")
    git("init", "-q", root=tmp_path)
    git("add", "-A", root=tmp_path)
    git("commit", "-qm", "all", root=tmp_path)
    return tmp_path


@pytest.mark.parametrize("version, said", [("0.0.1", "0.0.1 is older than"), ("next", "'next' is no version")])
def test_a_version_that_cannot_be_is_refused(small, capsys, version, said):
    with pytest.raises(release.Refused):
        release.require(small, version, tested=False)
    assert said in capsys.readouterr().err


def test_a_version_that_was_is_refused(small, capsys):
    git("tag", "v9.0.0", root=small)
    with pytest.raises(release.Refused):
        release.require(small, "9.0.0", tested=False)
    assert "a tag v9.0.0 already" in capsys.readouterr().err


def test_changes_that_are_not_committed_are_refused(small, capsys):
    (small / "new.txt").write_text("x")
    with pytest.raises(release.Refused):
        release.require(small, "9.0.0", tested=False)
    assert "new.txt" in capsys.readouterr().err


def test_a_release_without_notes_is_refused(small, capsys):
    (small / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2020-01-01\n\n- All.\n")
    git("commit", "-qam", "nothing new", root=small)
    with pytest.raises(release.Refused):
        release.require(small, "9.0.0", tested=False)
    assert "nothing under [Unreleased]" in capsys.readouterr().err


def test_a_failing_test_is_said_in_a_line(small, capfd, monkeypatch):
    (small / "Makefile").write_text("test:\n\tfalse\n")
    git("add", "-A", root=small)
    git("commit", "-qm", "tests that fail", root=small)
    steps = release.run
    monkeypatch.setattr(release, "run", lambda *words, root: "" if words[0] == release.PYTHON else steps(*words, root=root))
    with pytest.raises(release.Refused):
        release.require(small, "9.0.0", tested=True)
    assert "no release: `make test` failed" in capfd.readouterr().err


def test_the_version_is_written_wherever_it_stands(small):
    said = release.notes(small)
    for version in ("9.0.0", "9.1.0rc1"):
        assert release.write(small, version, "2030-01-02") == list(FILES)
        assert tomllib.loads((small / "pyproject.toml").read_text("utf-8"))["project"]["version"] == version
        assert f'__version__ = "{version}"' in (small / "course/__init__.py").read_text("utf-8")
        citation = (small / "CITATION.cff").read_text("utf-8")
        assert re.findall(r"^(?:version|date-released): (.+)$", citation, re.M) == [version, "2030-01-02"]
    log = (small / "CHANGELOG.md").read_text("utf-8")
    assert f"## [9.0.0] - 2030-01-02\n{said}" in log and release.notes(small).strip() == ""


def test_a_file_that_no_longer_fits_is_noticed_before_any_is_written(small, capsys):
    (small / "CITATION.cff").write_text("nothing")
    before = (small / "pyproject.toml").read_bytes()
    with pytest.raises(release.Refused):
        release.write(small, "9.0.0", "2030-01-02")
    assert "CITATION.cff has 0 places" in capsys.readouterr().err and (small / "pyproject.toml").read_bytes() == before


@pytest.mark.slow
def test_a_release_of_a_clone(tmp_path, monkeypatch, capsys):
    """The whole way but the tests: the archives hold the models and the figures, the tag the notes."""
    clone = tmp_path / "clone"
    git("clone", "-q", str(ROOT), str(clone), root=tmp_path)
    for name, value in (("AUTHOR_NAME", "S"), ("AUTHOR_EMAIL", "s@x"), ("COMMITTER_NAME", "S"), ("COMMITTER_EMAIL", "s@x")):
        monkeypatch.setenv(f"GIT_{name}", value)
    release.main(["9.0.0", "--untested"], root=clone)
    assert "push --follow-tags" in capsys.readouterr().out and git("status", "--porcelain", root=clone) == ""
    assert "Release 9.0.0" in git("log", "-1", "--format=%s", root=clone)
    assert git("tag", "-n1", root=clone).split() == ["v9.0.0", "9.0.0"]
    assert date.today().isoformat() in (clone / "CITATION.cff").read_text("utf-8")
    wheel, sdist = sorted((clone / "dist").iterdir(), key=lambda path: path.suffix, reverse=True)
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("course/vae.py", "course/weights/scenes64/pipeline.json", "course/classroom/pages.css", "course/cli.py"):
        assert needed in names, needed
    assert any(name.startswith("course/weights/") and name.endswith(".safetensors") for name in names)
    assert any(name.endswith("/pyproject.toml") for name in tarfile.open(sdist).getnames())
