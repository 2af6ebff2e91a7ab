"""Grade a class: every exercise of every student by nbval in a sandbox, equal answers once, resumed where it was stopped.

    submissions.py   what was handed in, as data
    curriculum.py    what each exercise builds on, and the course without the answer
    plugin.py        runs inside pytest: sandboxed kernel, check beside it, verdict to disk
    pages.py, exports.py, similar.py    what comes out

A unit is one source of one exercise, with what stands before it. Its verdict is kept under a key made of both and of the check,
so that the same answer is run once in a class, and a second call of the command runs only what it has no verdict for.
"""

import contextlib
import hashlib
import hmac
import importlib.metadata
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nbformat

from course import files
from course.classroom import curriculum, exports, pages, sandbox, similar, submissions
from course.classroom.release import ROOT
from course.errors import UsageError

STATUSES = ("correct", "partial", "wrong", "error", "timeout", "killed", "missing", "blocked", "policy")
SECONDS = {"setup": 60, "answer": 20, "probe": 60}              # most that each cell of a unit may take
BATCH, PATIENCE = 30, 90                   # units of one pytest process; seconds of silence beyond a unit's own limits
PROBE = "from course.classroom.bridge import serve\nserve({'answer': %s})"
CONTAINER = ("docker run --rm --network none --cap-add SYS_ADMIN --security-opt seccomp=unconfined "
             "--security-opt apparmor=unconfined --security-opt systempaths=unconfined "
             "-v CLASS:/class -v OUT:/out IMAGE course grade /class --out /out")


@dataclass
class Mark:
    """One exercise of one student."""

    status: str
    points: float
    most: float
    why: str = ""                          # in words, where there is no report of properties
    messages: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    key: str = ""


@dataclass
class Unit:
    key: str
    task: curriculum.Task
    source: str
    before: str                            # imports and definitions that it needs
    attempts: int = 0


@dataclass
class Class:
    """What is known at the end."""

    students: dict[str, submissions.Student]
    exercises: list[str]
    most: dict[str, float]                 # exercise -> points
    marks: dict[str, dict[str, Mark]]      # student -> exercise -> mark

    def total(self, name: str) -> float:
        return sum(m.points for m in self.marks[name].values())


def run(paths: list[Path], out: Path, chain: bool = False, jobs: int = 1, points: Path | None = None, trusted: bool = False,
        say: Callable[[str], None] = lambda line: None, seconds: dict | None = None) -> Class:
    """Grade what lies in `paths` into the folder `out`. Raises UsageError where this machine has no sandbox and `trusted` is not
    given, and for paths or points that make no sense."""
    if (why := sandbox.available()) and not trusted:
        raise UsageError(f"UNSANDBOXED: untrusted code cannot be confined on this machine ({why}). Use a container:\n"
                         f"  {CONTAINER}\nor, for code that you would run yourself, --trusted")
    if why or trusted:
        say("UNSANDBOXED: the students' code runs with your rights" if trusted else "")
    for package in ("pytest", "nbval"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise UsageError(f"{package} is not installed, and grading needs it: "
                             'pip install -c constraints.txt -e ".[dev]"') from None
    students = submissions.gather(paths)
    weights = _points(points)
    exercises = _exercises(students, weights)
    if not exercises:
        raise UsageError("no exercise of the course was found in what was handed in")
    out.mkdir(parents=True, exist_ok=True)
    secret = _secret(out)
    marks, wanted = {}, {}
    for name, student in students.items():
        marks[name] = {id: _without_running(student, id) for id in exercises}
        for id in exercises:
            if marks[name][id] is None:
                unit = _unit(id, student, chain, not trusted)
                wanted.setdefault(unit.key, unit)
                marks[name][id] = unit.key
    verdicts = _Runner(out, secret, trusted, SECONDS | (seconds or {}), say).verdicts(wanted, jobs)
    most = {id: weights.get(id, curriculum.tasks()[id].points) for id in exercises}
    for name, student in students.items():
        for id in exercises:
            mark = marks[name][id]
            mark = _mark(verdicts[mark], mark, most[id], id) if isinstance(mark, str) else mark
            mark.most, mark.flags = most[id], student.flags.get(id, [])
            marks[name][id] = mark
    made = Class(students, exercises, most, marks)
    write(made, out)
    return made


def write(made: Class, out: Path) -> None:
    """All files of the result: the same for the same verdicts."""
    table = {name: {"number": s.number, "total": made.total(name), "refused": s.refused,
                    "exercises": {id: asdict(m) for id, m in made.marks[name].items()}} for name, s in made.students.items()}
    files.write_json(out / "results.json", {"exercises": made.most, "students": table})
    exports.write(made, out)
    pairs = similar.pairs(made)
    files.write_json(out / "similar.json", pairs)
    pages.write(made, pairs, out)


# ---- what can be said without running anything

def _points(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    try:
        given = json.loads(path.read_text("utf-8"))
        given = {str(id): float(points) for id, points in given.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(f'{path}: expected JSON like {{"schedule.add_noise": 3}} ({error})') from None
    if unknown := [id for id in given if id not in curriculum.tasks()]:
        raise UsageError(f"{path}: no exercise is called {unknown[0]!r}")
    if bad := [id for id, p in given.items() if not 0 < p < 1000]:
        raise UsageError(f"{path}: points must be above 0 and below 1000, {bad[0]} has {given[bad[0]]:g}")
    return given


def _exercises(students, weights) -> list[str]:
    """The columns: those that have points, or all of every chapter of which anybody handed something in."""
    seen = {curriculum.tasks()[id].chapter for s in students.values() for id in s.sources}
    seen |= {stem for s in students.values() for stem in s.refused_chapters if stem}
    return [id for id, task in curriculum.tasks().items() if (id in weights if weights else task.chapter in seen)]


def _without_running(student: submissions.Student, id: str) -> Mark | None:
    task = curriculum.tasks()[id]
    if id not in student.sources:
        refused = task.chapter in student.refused_chapters or (student.refused and not student.sources)
        return Mark("blocked", 0.0, 0.0, "; ".join(student.refused)) if refused else \
            Mark("missing", 0.0, 0.0, "there is no cell of this exercise")
    if submissions.is_stub(student.sources[id], task):
        return Mark("missing", 0.0, 0.0, "not written yet")
    if why := submissions.breaks_policy(student.sources[id]):
        return Mark("policy", 0.0, 0.0, why)
    return None


def _unit(id: str, student: submissions.Student, chain: bool, confined: bool) -> Unit:
    task, source = curriculum.tasks()[id], student.sources[id]
    before = curriculum.prerequisites(task, source, student.sources if chain else None)
    parts = (id, source, before, curriculum.version(id), repr(confined))
    return Unit(hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest(), task, source, before)


def _mark(verdict: dict, key: str, most: float, id: str) -> Mark:
    points = verdict["points"] / curriculum.tasks()[id].points * most
    return Mark(verdict["status"], round(points, 2), most, verdict["why"], verdict["messages"], [], key[:16])


def _secret(out: Path) -> bytes:
    """Decides about the inputs of the checks: other in every class, the same when a class is resumed."""
    path = out / ".secret"
    if not path.exists():
        files.write_bytes(path, secrets.token_hex(32).encode())
        os.chmod(path, 0o600)
    return path.read_bytes()


# ---- running

class _Runner:
    """Hands units to pytest processes and takes their verdicts."""

    def __init__(self, out: Path, secret: bytes, trusted: bool, seconds: dict, say):
        self.kept, self.secret, self.trusted, self.seconds, self.say = out / "verdicts", secret, trusted, seconds, say
        # short, since sockets lie in it, and known, so that a second run clears what a killed one left
        self.work = Path(tempfile.gettempdir(), "grade-" + hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:8])
        self.stop = threading.Event()
        self.lock, self.done, self.total, self.began, self.failed = threading.Lock(), 0, 0, time.monotonic(), []

    def verdicts(self, wanted: dict[str, Unit], jobs: int) -> dict[str, dict]:
        found = {key: v for key in wanted if (v := self._load(key)) is not None}
        missing = [unit for key, unit in wanted.items() if key not in found]
        self.total = len(missing)
        self.say(f"{len(wanted)} different answers, {len(found)} of them graded before")
        self._clear()
        waiting: queue.Queue = queue.Queue()
        size = max(1, min(BATCH, -(-len(missing) // jobs)))
        for start in range(0, len(missing), size):
            waiting.put(missing[start: start + size])
        threads = [threading.Thread(target=self._work, args=(waiting, number), daemon=True) for number in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(10)
            self._clear()
        if self.failed:
            raise self.failed[0]
        return {key: self._load(key) for key in wanted}

    def _clear(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def _load(self, key: str) -> dict | None:
        try:
            return json.loads((self.kept / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def _work(self, waiting: queue.Queue, number: int) -> None:
        try:
            while True:
                try:
                    units = waiting.get_nowait()
                except queue.Empty:
                    return
                while units and not self.stop.is_set():
                    units = self._batch(units, self.work / str(number))
        except Exception as error:                              # noqa: BLE001 - raised again in the main thread
            self.failed.append(error)

    def _batch(self, units: list[Unit], folder: Path) -> list[Unit]:
        """Run one pytest process over the units; returns those that still have no verdict."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.chmod(self.work, 0o755)
        for place, unit in enumerate(units):
            self._lay_out(unit, folder / f"{place:03d}.ipynb")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:python", "-p", "no:xdist",
                   "-p", "course.classroom.plugin", "--nbval-lax", "-c", os.devnull, "--rootdir", str(folder), str(folder)]
        environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "SYSTEMROOT", "LD_LIBRARY_PATH")} | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "COURSE_GRADER": str(os.getpid())}
        with open(folder / "pytest.log", "wb") as log:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                       start_new_session=True)
            try:
                stuck = self._watch(process, units, folder)
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        left = [u for u in units if self._load(u.key) is None]
        if left and not self.stop.is_set():
            left[0].attempts += 1
            if left[0].attempts == 2:
                tail = (folder / "pytest.log").read_text("utf-8", "replace").strip().splitlines()[-1:]
                self._keep(left[0], {"status": "killed", "points": 0.0, "messages": [], "seconds": 0.0,
                                     "why": "it stopped the grading process" if stuck else f"no verdict: {tail}"})
                left = left[1:]
        return left

    def _lay_out(self, unit: Unit, path: Path) -> None:
        cells = (("setup", unit.before), ("answer", unit.source), ("probe", PROBE % unit.task.answer))
        made = [nbformat.v4.new_code_cell(text, metadata={"role": role}) for role, text in cells]
        notebook = nbformat.v4.new_notebook(cells=made)
        nbformat.write(notebook, path)
        salt = int.from_bytes(hmac.digest(self.secret, unit.key.encode(), "sha256")[:5])
        path.with_suffix(".json").write_text(json.dumps(
            {"id": unit.task.id, "salt": salt, "sandbox": not self.trusted, "seconds": self.seconds}))

    def _watch(self, process, units, folder: Path) -> bool:
        """Take verdicts as they come; True where nothing came for too long."""
        open_ones, last = dict(enumerate(units)), time.monotonic()
        while open_ones:
            ended = process.poll() is not None                  # looked at first, so that the last verdicts are not missed
            for place, unit in list(open_ones.items()):
                path = folder / f"{place:03d}.result.json"
                if path.exists():
                    self._keep(unit, json.loads(path.read_text("utf-8")))
                    del open_ones[place]
                    last = time.monotonic()
            if ended or self.stop.is_set():
                return False
            if time.monotonic() - last > sum(self.seconds.values()) + PATIENCE:
                return True
            time.sleep(0.1)
        return False

    def _keep(self, unit: Unit, verdict: dict) -> None:
        files.write_json(self.kept / f"{unit.key}.json", verdict)
        with self.lock:
            self.done += 1
            left = (time.monotonic() - self.began) / self.done * (self.total - self.done)
            self.say(f"{self.done} of {self.total}  {unit.task.id}: {verdict['status']}  ({left / 60:.0f} min left)")
