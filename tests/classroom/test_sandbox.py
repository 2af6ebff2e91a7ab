"""The sandbox on machines that are set up otherwise; what it keeps out is in `tests/attacks`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from course.classroom import sandbox
from course.classroom.release import ROOT


@pytest.mark.skipif(sandbox.available() is not None, reason=f"no sandbox: {sandbox.available()}")
def test_an_environment_that_is_a_symbolic_link_works(tmp_path):
    """A working tree may share the environment of another: its `.venv` leads there."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    python = tmp_path / ".venv/bin" / Path(sys.executable).name
    code = ("import sys; from course.classroom import sandbox; "
            "print(sys.prefix); print(sandbox.available())")
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    prefix, why = done.stdout.splitlines()
    assert why == "None", why
    if sys.prefix != sys.base_prefix:
        assert prefix == str(tmp_path / ".venv")


def test_names_of_this_python_lead_to_what_is_shown(tmp_path, monkeypatch):
    real, other = tmp_path / "real", tmp_path / "other"
    for folder in (real, other):
        (folder / "bin").mkdir(parents=True)
    (other / "bin/python3").touch()
    (tmp_path / "current").symlink_to(other)
    (real / "bin/python").symlink_to(tmp_path / "current/bin/python3")       # as package managers do
    (tmp_path / ".venv").symlink_to(real)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setattr(sys, "base_prefix", str(other))
    shown = [str(real), str(other)]
    assert sandbox.links(shown) == {str(tmp_path / ".venv"): str(real), str(tmp_path / "current"): str(other)}
    assert sandbox.links([str(tmp_path)]) == {}
