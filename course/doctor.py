"""What this machine has, what it lacks, and the command that mends it: the substance of `course doctor`.

Packages are looked up in the installed metadata, never imported: an import proves less (a folder called `datasets`
would do) and costs seconds. Only PyTorch is imported, to ask it which device it sees, and only when it is installed.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from course import errors

DISTRIBUTION = "latent-diffusion-course"
ROOT = Path(__file__).resolve().parents[1]     # of the checkout, where the package is installed from one
PYTHON = (3, 11)
GB = 1e9
LITTLE_MEMORY, LITTLE_DISK = 2 * GB, 2 * GB    # rules of thumb: below these, expect trouble
MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "missing": "[red]missing[/]"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `status`: ok; warn, the course runs without it; missing, it does not.

    `remedy` is a command, or a comment where no command helps; empty where nothing is to be done.
    """

    name: str
    status: str
    found: str
    remedy: str = ""


def examine(runs: str | Path = "runs") -> list[Finding]:
    """Everything the course depends on, in the order in which one would mend it. `runs` is where results go."""
    runs = Path(runs)
    return [python(), *packages(), *device(), memory(), disk(runs.absolute().parent), writable(runs), kernel()]


def exit_code(findings: Iterable[Finding]) -> int:
    """0 if nothing is missing, else 1."""
    return int(any(f.status == "missing" for f in findings))


def to_json(findings: Iterable[Finding]) -> str:
    """{"ok": bool, "findings": [{"name", "status", "found", "remedy"}, ...]}"""
    findings = list(findings)
    return json.dumps({"ok": exit_code(findings) == 0, "findings": [asdict(f) for f in findings]}, indent=2)


def from_json(text: str) -> list[Finding]:
    """The inverse of `to_json`, for a report that somebody sends. Raises UsageError for any other text."""
    try:
        return [Finding(**f) for f in json.loads(text)["findings"]]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.UsageError(f"this is no report of `course doctor --json` ({error})") from None


def render(findings: Iterable[Finding], console: Console | None = None) -> None:
    """Print a table, and below it each remedy once, on a line of its own that can be copied."""
    findings, console = list(findings), console or Console()
    table = Table("", "what", "found", box=None, pad_edge=False)
    for f in findings:
        table.add_row(MARKS[f.status], Text(f.name), Text(f.found))
    console.print(table)
    for status, title in (("missing", "Missing. To mend it:"), ("warn", "Worth a look:")):
        remedies: dict[str, list[str]] = {}
        for f in findings:
            if f.status == status:
                remedies.setdefault(f.remedy, []).append(f.name)
        if remedies:
            console.print(f"\n[bold]{title}[/]")
        for remedy, names in remedies.items():
            console.print(Text("  # " + ", ".join(names), style="dim"), soft_wrap=True)
            console.print(Text("  " + remedy), soft_wrap=True)
    if not exit_code(findings):
        console.print("\nNothing is missing.")


# ---- what is looked at

def python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] >= PYTHON:
        return Finding("Python", "ok", found)
    wanted = ".".join(map(str, PYTHON))
    return Finding("Python", "missing", f"{found}, needed is {wanted}", f"python{wanted} -m venv .venv")


def packages(requires: Iterable[str] | None = None) -> list[Finding]:
    """One finding for each requirement of the course, by default as its installed metadata lists them.

    Args:
        requires: requirements such as 'torch>=2.6' or 'pytest>=8; extra == "dev"'. One with an extra is optional.
    """
    if requires is None:
        try:
            requires = metadata.requires(DISTRIBUTION) or []
        except metadata.PackageNotFoundError:
            remedy = install("-e", _here(ROOT))
            return [Finding("course", "missing", f"used from {ROOT} without being installed", remedy)]
    needed: dict[str, tuple[Requirement, list[str]]] = {}        # name -> requirement, the extras that ask for it
    for requirement in map(Requirement, requires):
        if requirement.name == DISTRIBUTION:                     # "dev" asks for our own other extras; they are listed, too
            continue
        extras = [extra for extra in _extras() if _only_with(requirement, extra)]
        if extras or _applies(requirement):                      # a requirement may be for another system only
            needed.setdefault(requirement.name, (requirement, []))[1].extend(extras)
    core = [_package(requirement, extras) for requirement, extras in needed.values() if not extras]
    return core + [_package(requirement, extras) for requirement, extras in needed.values() if extras]


def device() -> list[Finding]:
    """The device PyTorch sees, and the processor's cores against its threads. Empty if torch is not installed."""
    if _version("torch") is None:
        return []                                                # `packages` has said so
    try:
        import torch
    except (ImportError, OSError) as error:
        again = install("--force-reinstall", "--no-deps", "torch")
        return [Finding("device", "missing", f"torch is installed but does not load: {_one_line(error)}", again)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    over = threads > cores
    processor = Finding("processor", "warn" if over else "ok", f"{cores} cores, {threads} threads in PyTorch",
                        _set_variable("OMP_NUM_THREADS", str(cores)) if over else "")
    return [_accelerator(torch), processor]


def memory() -> Finding:
    try:
        import psutil
    except ImportError:
        return Finding("memory", "warn", "unknown without psutil", install("psutil"))
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    found = f"{free / GB:.1f} GB free of {total / GB:.1f} GB"
    if free >= LITTLE_MEMORY:
        return Finding("memory", "ok", found)
    return Finding("memory", "warn", found, "# close other programs")


def disk(folder: str | Path) -> Finding:
    try:
        free = shutil.disk_usage(_existing(Path(folder))).free
    except OSError as error:
        return Finding("disk", "warn", f"cannot be asked: {_one_line(error)}", "# choose another folder")
    found = f"{free / GB:.1f} GB free in {folder}"
    if free >= LITTLE_DISK:
        return Finding("disk", "ok", found)
    return Finding("disk", "warn", found, "# make room on this disk")


def writable(runs: str | Path) -> Finding:
    """Can results be written? Tried by writing, because permission bits do not know of full or read-only disks."""
    runs = Path(runs)
    name = f"write access to {runs}"
    try:
        if runs.exists() and not runs.is_dir():
            raise NotADirectoryError(20, "it is a file", str(runs))
        with tempfile.NamedTemporaryFile(dir=_existing(runs)) as file:
            file.write(b"course doctor")
    except OSError as error:
        blocking = next((p for p in (runs, *runs.parents) if p.exists() and not p.is_dir()), None)
        if blocking:
            remedy = _move(blocking)
        elif os.name == "nt":
            remedy = "# work in a folder of your own"
        else:
            remedy = f"chmod u+rwx {shlex.quote(str(_existing(runs)))}"
        return Finding(name, "missing", error.strerror or _one_line(error), remedy)
    return Finding(name, "ok", "yes" if runs.is_dir() else "yes; made by the first run")


def kernel() -> Finding:
    """Will JupyterLab run the chapters in this Python?"""
    mend = command("-m", "ipykernel", "install", "--sys-prefix", "--name", "python3")
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        remedy = install("jupyterlab", "ipykernel")
        return Finding("notebook kernel", "missing", "jupyter_client is not installed", remedy)
    if _version("ipykernel") is None:
        return Finding("notebook kernel", "missing", "ipykernel is not installed", install("ipykernel"))
    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except (NoSuchKernel, ValueError, OSError) as error:
        return Finding("notebook kernel", "missing", _one_line(error), mend)
    program = Path(spec.argv[0] if spec.argv else "")
    # a bare `python` is replaced by the Python that starts the kernel
    if not program.is_absolute() or program == Path(sys.executable):
        return Finding("notebook kernel", "ok", "python3 runs in this Python")
    return Finding("notebook kernel", "warn", f"python3 runs in {program}", mend)


# ---- commands

def command(*arguments: str) -> str:
    """`arguments` for the Python that runs now, quoted for a terminal; its path is as short as it can be."""
    return _quote([_here(Path(sys.executable)), *arguments])


def install(*what: str) -> str:
    """The pip command for `what`; in a checkout it keeps to the pinned versions."""
    pins = ("-c", _here(ROOT / "constraints.txt")) if (ROOT / "constraints.txt").is_file() else ()
    return command("-m", "pip", "install", *pins, *what)


def _here(path: Path) -> str:
    """`path` as one would type it in the working folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _quote(words: list[str]) -> str:
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _set_variable(name: str, value: str) -> str:
    return f"set {name}={value}" if os.name == "nt" else f"export {name}={value}"


def _move(path: Path) -> str:
    return _quote(["move" if os.name == "nt" else "mv", str(path), f"{path}.old"])


# ---- packages

def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> list[str]:
    try:
        return metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _only_with(requirement: Requirement, extra: str) -> bool:
    return _applies(requirement, extra) and not _applies(requirement)


def _package(requirement: Requirement, extras: list[str]) -> Finding:
    version, name = _version(requirement.name), requirement.name
    remedy = install(f"{name}{requirement.specifier}")
    if extras:
        name = f"{name} ({', '.join(extras)})"
        if (ROOT / "pyproject.toml").is_file():
            remedy = install("-e", f"{_here(ROOT)}[{extras[0]}]")          # one command for the whole extra
    if version is None:
        return Finding(name, "warn" if extras else "missing", "not installed", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, "warn" if extras else "missing", f"{version}, needed is {requirement.specifier}", remedy)
    return Finding(name, "ok", version)


# ---- machine

def _accelerator(torch) -> Finding:
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return Finding("device", "ok", f"cuda: {gpu.name}, {gpu.total_memory / GB:.0f} GB")
    if torch.backends.mps.is_available():
        return Finding("device", "ok", f"mps: {platform.processor() or 'Apple'} GPU")
    if shutil.which("nvidia-smi"):
        if torch.version.cuda is None and torch.version.hip is None:
            return Finding("device", "warn", "cpu: there is an NVIDIA driver, but this PyTorch is built for the CPU",
                           install("--force-reinstall", "--no-deps", "torch"))
        found = f"cpu: there is an NVIDIA driver, but PyTorch (CUDA {torch.version.cuda}) sees no GPU"
        return Finding("device", "warn", found, "nvidia-smi")
    return Finding("device", "ok", "cpu")


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there: where a new folder would be made."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
