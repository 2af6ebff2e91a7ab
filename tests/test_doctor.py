import io
import json
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from course import doctor
from course.doctor import Finding
from course.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]


def by_name(findings, name):
    return next(f for f in findings if f.name == name)


def rendered(findings, width=60):
    out = io.StringIO()
    doctor.render(findings, Console(file=out, width=width))
    return out.getvalue()


# ---- packages

def test_a_missing_core_package_is_missing_and_the_command_installs_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    finding, = doctor.packages(["no-such-package-here>=1.5"])
    assert finding.status == "missing" and finding.found == "not installed"
    assert finding.remedy.endswith("-m pip install -c constraints.txt 'no-such-package-here>=1.5'")
    assert doctor.exit_code([finding]) == 1


def test_a_missing_optional_package_is_a_warning_and_the_command_installs_its_extra(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(doctor, "_extras", lambda: ["dev", "bench"])
    finding, = doctor.packages(['no-such-package-here>=1; extra == "bench"', 'no-such-package-here>=1; extra == "dev"'])
    assert (finding.name, finding.status) == ("no-such-package-here (bench, dev)", "warn")
    assert finding.remedy.endswith("-m pip install -c constraints.txt -e '.[bench]'")
    assert doctor.exit_code([finding]) == 0


def test_without_a_checkout_the_command_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor, "_extras", lambda: ["dev"])
    finding, = doctor.packages(['no-such-package-here>=1; extra == "dev"'])
    assert finding.remedy.endswith("-m pip install 'no-such-package-here>=1'")


@pytest.mark.parametrize(("version", "status"), [
    ("2.6.0", "ok"), ("2.15.0+cpu", "ok"), ("3.0.0.dev20260101", "ok"),
    ("2.5.1", "missing"), ("2.5.1+cu124", "missing"),
])
def test_versions_are_compared_as_versions(monkeypatch, version, status):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    finding, = doctor.packages(["torch>=2.6"])
    assert finding.status == status and version in finding.found
    assert bool(finding.remedy) == (status != "ok")


def test_packages_are_never_imported(monkeypatch, tmp_path):
    """A folder or file of a package's name on the path is no installed package."""
    (tmp_path / "shadow_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    finding, = doctor.packages(["shadow_package>=1"])
    assert finding.status == "missing"


def test_markers():
    """A requirement for another system is left out; one that always holds is core, whatever its marker."""
    assert doctor.packages(['no-such-package-here; sys_platform == "amiga"']) == []
    assert doctor.packages(['no-such-package-here; python_version >= "3.0"'])[0].status == "missing"
    assert doctor._only_with(Requirement('pytest; extra == "dev"'), "dev")
    assert not doctor._only_with(Requirement('pytest; extra == "dev"'), "bench")


def test_every_core_dependency_of_the_installed_course_is_reported():
    try:
        requires = [Requirement(r) for r in metadata.requires(doctor.DISTRIBUTION)]
    except metadata.PackageNotFoundError:
        pytest.skip("the course is not installed here, so it has no metadata: pip install -e .")
    names = {f.name.split(" ")[0] for f in doctor.packages()}
    assert names == {r.name for r in requires} - {doctor.DISTRIBUTION} and {"torch", "einops", "pytest", "lpips"} <= names


def test_a_course_that_is_not_installed_is_missing(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution-here")
    finding, = doctor.packages()
    assert finding.status == "missing" and finding.remedy.endswith("-m pip install -c constraints.txt -e .")


# ---- machine

def test_a_folder_that_cannot_be_written_is_missing(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for runs in (file / "runs", file):
        finding = doctor.writable(runs)
        assert finding.status == "missing" and finding.found and finding.remedy.split()[-2] == str(file)
        assert by_name(doctor.examine(runs), finding.name) == finding


def test_asking_for_write_access_leaves_nothing_behind(tmp_path):
    assert doctor.writable(tmp_path / "a" / "runs").status == "ok"
    assert doctor.writable(tmp_path).status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_to_write_names_its_reason_and_the_folder(monkeypatch, tmp_path):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    finding = doctor.writable(tmp_path / "runs")
    assert finding.status == "missing" and finding.found == "Permission denied" and str(tmp_path) in finding.remedy


def test_little_disk_and_little_memory_are_warnings(monkeypatch, tmp_path):
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1e8))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "total available")(8e9, 5e8))
    assert (doctor.disk(tmp_path).status, doctor.memory().status) == ("warn", "warn")
    assert doctor.memory().found == "0.5 GB free of 8.0 GB"


def test_more_threads_than_cores_is_a_warning_that_says_how_many(monkeypatch):
    import torch
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    finding = by_name(doctor.device(), "processor")
    assert finding.status == "warn" and finding.remedy.endswith("OMP_NUM_THREADS=3")


def test_a_torch_that_does_not_load_is_missing_but_no_crash(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)               # `import torch` raises ImportError
    monkeypatch.setattr(metadata, "version", lambda name: "2.15.0")
    finding, = doctor.device()
    assert (finding.name, finding.status) == ("device", "missing") and "--force-reinstall" in finding.remedy


def test_a_driver_that_torch_cannot_use_is_a_warning(monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor._accelerator(torch).status == "warn"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor._accelerator(torch) == Finding("device", "ok", "cpu")


def test_no_kernel_is_missing(monkeypatch):
    version = metadata.version
    def without(name):
        if name == "ipykernel":
            raise metadata.PackageNotFoundError(name)
        return version(name)
    monkeypatch.setattr(metadata, "version", without)
    finding = doctor.kernel()
    assert finding.status == "missing" and "ipykernel" in finding.remedy


def test_a_kernel_of_another_python_is_a_warning(monkeypatch):
    kernelspec = pytest.importorskip("jupyter_client.kernelspec")
    spec = kernelspec.KernelSpec(argv=[str(Path("/elsewhere/bin/python").absolute()), "-m", "ipykernel_launcher"])
    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
    assert doctor.kernel().status == "warn"
    spec.argv[0] = sys.executable
    assert doctor.kernel().status == "ok"


# ---- the report

def test_examine_names_each_thing_once_and_every_trouble_has_a_remedy(tmp_path):
    findings = doctor.examine(tmp_path / "runs")
    names = [f.name for f in findings]
    assert len(set(names)) == len(names)
    assert {"Python", "device", "processor", "memory", "disk", "notebook kernel"} <= set(names)
    assert all(f.status in doctor.MARKS for f in findings)
    assert all(bool(f.remedy) == (f.status != "ok") for f in findings)


def test_json_there_and_back():
    findings = [Finding("a", "ok", "1.0"), Finding("b [dev]", "missing", "not \"there\"", "pip install 'b>=1'")]
    report = json.loads(doctor.to_json(findings))
    assert report["ok"] is False and [f["name"] for f in report["findings"]] == ["a", "b [dev]"]
    assert doctor.from_json(doctor.to_json(findings)) == findings
    assert json.loads(doctor.to_json(findings[:1]))["ok"] is True


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"findings": [{"name": "a"}]}', '{"findings": 3}'])
def test_other_json_is_refused(text):
    with pytest.raises(UsageError, match="course doctor --json"):
        doctor.from_json(text)


def test_each_remedy_is_printed_once_and_on_one_line():
    long = "python -m pip install -c " + "very/long/path/" * 8 + "constraints.txt -e '.[dev]'"
    findings = [Finding("pytest [1]", "warn", "not installed", long), Finding("nbval", "warn", "not installed", long),
                Finding("torch", "ok", "2.15.0")]
    text = rendered(findings)
    assert text.count(long) == 1 and "# pytest [1], nbval" in text and "Nothing is missing." in text


def test_missing_comes_before_warnings():
    text = rendered([Finding("x", "warn", "?", "mend-x"), Finding("y", "missing", "?", "mend-y")])
    assert 0 < text.index("mend-y") < text.index("mend-x") and "Nothing is missing." not in text
