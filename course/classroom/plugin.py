"""A plugin of pytest for nbval: the kernel in a sandbox, the check in this process, the verdict in a file of JSON.

The grader starts `pytest -p course.classroom.plugin --nbval-lax` over notebooks that it made itself (`grade.py`), each with
its terms beside it: `unit.ipynb`, `unit.json`. The last cell of a notebook only answers calls; while it runs, the check of the
exercise runs here, against a proxy of the student's answer (`bridge.py`). What a cell prints is counted and thrown away.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import Empty

import nbval.plugin
import pytest
import torch
import zmq
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from nbval.kernel import RunningKernel

from course import files
from course.classroom import checks, curriculum, mutants, sandbox
from course.classroom.bridge import Bridge
from course.classroom.wire import Channel, Interrupted

POLL = 0.25                                # seconds between two looks at whether the kernel is alive
MESSAGE, OUTPUT = 1 << 20, 4 << 20         # bytes of one message, and of all that a cell prints


class Stopped(Exception):
    """The kernel died, was too slow, or said too much."""

    def __init__(self, status: str, why: str):
        super().__init__(why)
        self.status = status


class Manager(KernelManager):
    """Starts the kernel by the sandbox's command; its sockets are files."""

    spec_of_kernel: KernelSpec = None

    @property
    def kernel_spec(self):
        return self.spec_of_kernel

    def write_connection_file(self, **options):
        super().write_connection_file(**options)
        if os.getuid() == 0:
            os.chown(self.connection_file, sandbox.NOBODY, sandbox.NOBODY)


class SandboxedKernel(RunningKernel):
    """What nbval takes for its kernel."""

    def __init__(self, terms: dict):
        self.terms, self.said, self.limit, self.start = terms, 0, None, time.monotonic()
        self.base = Path(tempfile.mkdtemp(prefix="course-"))
        os.chmod(self.base, 0o755)
        self.folder, course = self.base / "k", self.base / "c"
        sandbox.give(self.folder)
        for name, text in curriculum.library(curriculum.tasks()[terms["id"]]).items():
            path = course / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        made = sandbox.spec(self.folder, course, list(curriculum.OTHERS), terms.get("limits"))
        (self.base / "spec.json").write_text(json.dumps(made))
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.folder / "bridge"))
        os.chmod(self.folder / "bridge", 0o666)
        self.listener.listen(1)
        program = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        environment = {"PATH": "/usr/bin:/bin"}
        if terms["sandbox"]:
            program = sandbox.command(self.base / "spec.json", program)
        else:
            environment = made["environment"] | {"HOME": str(self.folder), "TMPDIR": str(self.folder)}
        self.errors = open(self.base / "stderr", "wb")
        context = zmq.Context()
        context.setsockopt(zmq.MAXMSGSIZE, MESSAGE)
        context.setsockopt(zmq.RCVHWM, 200)
        self.km = Manager(transport="ipc", connection_file=str(self.folder / "k.json"), context=context)
        self.km.spec_of_kernel = KernelSpec(argv=program, language="python", display_name="sandbox")
        try:
            self.km.start_kernel(stdout=self.errors, stderr=self.errors, cwd=str(self.folder), env=environment)
            self.kc = self.km.client()
            self.kc.start_channels()
            self._await_sealed(60)
            self.kc.wait_for_ready(timeout=60)
            self._ensure_iopub_up()
        except BaseException:
            self.close()
            raise

    def _await_sealed(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.terms["sandbox"] and not (self.folder / "sealed").exists():
            if time.monotonic() > end or not self.km.is_alive():
                raise RuntimeError("the sandbox did not start: " + (self.base / "stderr").read_text("utf-8", "replace")[-400:])
            time.sleep(0.02)

    def allow(self, seconds: float) -> None:
        """For the cell that runs next."""
        self.limit, self.said = time.monotonic() + seconds, 0

    def get_message(self, stream, timeout=None):
        """One message, while the kernel is alive, in time, and not too loud."""
        end = time.monotonic() + timeout if timeout is not None else None
        while True:
            try:
                message = super().get_message(stream, timeout=POLL)
            except Empty:
                pass
            else:
                if stream == "iopub":
                    self.said += len(repr(message.get("content")))
                    if self.said > OUTPUT:
                        self._stop("killed", f"more than {OUTPUT >> 20} MB of output")
                return message
            if not self.km.is_alive():
                self._stop("killed", self.verdict() or "the kernel died")
            if self.limit is not None and time.monotonic() > self.limit:
                self._stop("timeout", "the time is up")
            if end is not None and time.monotonic() > end:
                raise Empty

    def verdict(self) -> str | None:
        path = Path(f"{self.folder}.verdict")
        return path.read_text("utf-8") if path.exists() else None

    def _stop(self, status: str, why: str):
        self.kill()
        raise Stopped(status, why)

    def kill(self) -> None:
        if hasattr(self, "km") and self.km.has_kernel:
            self.km.shutdown_kernel(now=True)

    def is_alive(self):
        return hasattr(self, "km") and self.km.has_kernel and self.km.is_alive()

    def stop(self):
        self.close()

    def hang_up(self) -> None:
        """Nobody is let in any more, and whoever waits for somebody is woken."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def close(self) -> None:
        """Nothing is left of the kernel, its sockets or its files."""
        if hasattr(self, "kc"):
            self.kc.stop_channels()
        self.kill()
        self.hang_up()
        self.errors.close()
        shutil.rmtree(self.base, ignore_errors=True)


class Probe(threading.Thread):
    """Runs the check of an exercise while the kernel answers."""

    def __init__(self, kernel: SandboxedKernel, terms: dict):
        super().__init__(daemon=True)
        self.kernel, self.terms, self.result, self.stopped = kernel, terms, None, None
        self.talked = False
        self.each: dict[str, dict] = {}                         # where several answers are behind one bridge, as in tests

    def run(self):
        try:
            self.kernel.listener.settimeout(self.terms["seconds"]["probe"])
            connection, _ = self.kernel.listener.accept()
            with connection:
                self.talked = True
                bridge = Bridge(Channel(connection, self.terms["seconds"]["probe"]), strict=True)
                for name in self.terms.get("names", ["answer"]):
                    self.result = examine(self.terms["id"], bridge, self.terms["salt"], name)
                    self.each[name] = {"points": self.result.points, "messages": self.result.messages}
        except Interrupted as error:
            self.stopped = (error.status, str(error))
        except OSError as error:
            self.stopped = ("timeout" if isinstance(error, TimeoutError) else "killed", str(error))
        except Exception as error:                              # noqa: BLE001 - a mistake of the check is no credit, and is said
            self.stopped = ("killed", f"the check failed: {type(error).__name__}: {error}")
        finally:
            self.kernel.hang_up()                               # a second caller is not kept waiting


def examine(id: str, bridge: Bridge, salt: int, name: str = "answer") -> checks.Result:
    """The check of exercise `id` on what is called `name` behind `bridge`, with inputs that belong to `salt`."""
    exercise, changes = checks.find(id), changes_what_it_is_given(id)

    def answer(*arguments, **options):
        return bridge.named(name)(*arguments, **options)

    def before(kind: str) -> None:
        bridge.reset(lend_for_change=changes or kind == "hygiene")

    before("gate")
    found = bridge.named(name)
    with checks.fresh(fitting(id, salt)):
        return exercise.run(answer if callable(found) else found, before)


def fitting(id: str, salt: int) -> int:
    """The first salt from `salt` on with which the course's own answer passes: bounds on statistics have to hold for the inputs
    that were drawn, and nobody loses points by an unlucky draw."""
    for step in range(20):
        with checks.fresh(salt + step):
            if checks.find(id).run(mutants.own(id)).passed:
                return salt + step
    raise RuntimeError(f"the course's own answer to {id} fails for all inputs")


@functools.cache
def changes_what_it_is_given(id: str) -> bool:
    """Whether the reference changes modules or containers that it was handed, then or later: then a student's answer may, too.

    It is tried over a bridge whose other end is a thread of this process, and lends nothing for change but where the check looks
    for just that.
    """
    mine, theirs = socket.socketpair()
    far = Bridge(Channel(theirs), strict=False)
    far.namespace = {"answer": mutants.own(id)}
    thread = threading.Thread(target=far.serve, daemon=True)
    thread.start()
    with mine, theirs:
        bridge = Bridge(Channel(mine, 120), strict=True)
        checks.find(id).run(lambda *a, **k: bridge.named("answer")(*a, **k), lambda kind: bridge.reset(kind == "hygiene"))
        mine.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        return bridge.refusals > 0


# ---- pytest's hooks

def pytest_configure(config):
    """nbval's kernels are sandboxed ones, from here on."""
    torch.set_num_threads(1)
    if hasattr(sandbox.libc, "prctl"):                          # go when the grader goes, however it goes
        sandbox.libc.prctl(sandbox.PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ.get("COURSE_GRADER", os.getppid())):
            os._exit(1)
    nbval.plugin.IPyNbFile.setup = _setup


def _terms(path: Path) -> dict:
    return json.loads(Path(path).with_suffix(".json").read_text("utf-8"))


def _setup(self):
    self.terms, self.verdict, self.began = _terms(self.path), {}, time.monotonic()
    self.kernel = None
    try:
        self.kernel = SandboxedKernel(self.terms)
    except (RuntimeError, OSError, Stopped) as error:
        self.verdict = {"status": "blocked", "why": str(error)[-400:]}
        raise


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    file, role = item.parent, item.cell.metadata["role"]
    seconds = file.terms["seconds"][role]
    file.kernel.allow(seconds)
    item.config.option.nbval_cell_timeout = seconds + 5
    probe = None
    if role == "probe" and file.verdict:
        file.kernel.hang_up()                                   # nobody is there to be answered
    elif role == "probe":
        probe = Probe(file.kernel, file.terms)
        probe.start()
    outcome = yield
    error = outcome.excinfo[1] if outcome.excinfo else None
    if probe is not None:
        file.kernel.hang_up()                                   # who has not called by now does not any more
        probe.join(file.terms["seconds"]["probe"] + 5)
        file.verdict = _verdict(probe, error)
    elif error is not None and not file.verdict:
        stopped = isinstance(error, Stopped)
        said = _first_line(getattr(error, "inner_traceback", "") or str(error))
        file.verdict = {"status": error.status if stopped else "error" if role == "answer" else "blocked",
                        "why": said, "role": role}
    if role == "probe":
        _write(file)


def _verdict(probe: Probe, error) -> dict:
    """Credit only where the cell ended well and the check in this process says so."""
    if probe.result is not None and error is None:
        result = probe.result
        first = next((m for m in result.messages if m.startswith("✗")), "")
        kind = "correct" if result.passed else "partial" if result.points else \
            "error" if "it raised" in first and len([m for m in result.messages if m[0] != "·"]) == 1 else "wrong"
        return {"status": kind, "points": result.points, "messages": result.messages} | (
            {"each": probe.each} if len(probe.each) > 1 else {})
    status, why = probe.stopped or ("killed", "the kernel did not answer to its end")
    if isinstance(error, Stopped):
        status, why = error.status, str(error)
    elif error is not None and not probe.talked:
        status = "error" if status == "killed" else status
        why = _first_line(getattr(error, "inner_traceback", "") or str(error))
    return {"status": status, "why": why}


def _first_line(text: str) -> str:
    """What a traceback ends with, without the colours of a terminal."""
    import re
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "no message"


def _write(file) -> None:
    made = {"points": 0.0, "messages": [], "why": ""} | file.verdict
    made["seconds"] = round(time.monotonic() - file.began, 2)
    files.write_json(Path(file.path).with_suffix(".result.json"), made)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    yield
    if call.when == "setup" and call.excinfo is not None and item.cell.metadata["role"] == "probe":
        item.parent.verdict = item.parent.verdict or {"status": "blocked", "why": str(call.excinfo.value)[-400:]}
        _write(item.parent)
