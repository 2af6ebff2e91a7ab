"""A sandbox for one kernel: namespaces, limits, and of the file system only what a notebook needs.

    outer      the grader's child. Makes the namespaces, watches memory and the clock, dies with the grader.
      init     process 1 inside. Builds the file system, seals the kernel's sockets, takes everything with it when it ends.
        kernel the student's code: no network, no other process in sight, no rights, a folder in memory to write to

Run as a script (`python -I sandbox.py spec.json -- command ...`), with nothing but the standard library. `available` says
whether this machine can do it. What is inside: the system's libraries, this Python with its packages, a copy of the course
without the answers. What is not: the checks, the solutions, the grader's environment, home folders, other submissions.
"""

import ctypes
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
PDEATHSIG, SET_DUMPABLE, CAPBSET_DROP, NO_NEW_PRIVS = 1, 4, 24, 38
PIVOT_ROOT, CAPSET = {"x86_64": (155, 126), "aarch64": (41, 91)}.get(platform.machine(), (0, 0))    # numbers of system calls
NOBODY = 65534

LIMITS = {"memory": 3 << 30,               # bytes resident, of all processes together
          "address": 16 << 30,             # bytes of address space, of each process: torch maps much that it never touches
          "cpu": 120, "wall": 180,         # seconds
          "processes": 64,                 # threads count
          "file": 16 << 20, "disk": 64 << 20,   # bytes of one file, and of all of them
          "open": 256}


class Refused(OSError):
    """This machine has no namespaces to give."""


# ---- the grader's side

def spec(folder: Path, course: Path, hidden: list[str], limits: dict | None = None) -> dict:
    """What one sandbox is made of.

    folder: on this machine, shared with the inside under the same name; the kernel's sockets are made in it, then it is sealed.
    course: the folder that holds the package `course` as the student may see it.
    hidden: packages of this Python that hold other implementations, or the course itself.
    """
    prefixes = dict.fromkeys(str(Path(p).resolve()) for p in ("/usr", sys.base_prefix, sys.prefix))
    shown = [p for p in prefixes if not any(p != q and p.startswith(q + "/") for q in prefixes)]
    packages = sorted({str(Path(p).resolve()) for p in sys.path if p.endswith("-packages") and Path(p).is_dir()})
    cover = [f"{p}/{name}" for p in packages for name in hidden if Path(p, name).is_dir()]
    return {"folder": str(folder), "course": str(course), "shown": shown, "links": links(shown), "cover": cover, "sockets": 5,
            "limits": LIMITS | (limits or {}),
            "environment": {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC",
                            "PYTHONPATH": str(course), "COURSE_BRIDGE": str(folder / "bridge"),
                            "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1",
                            "IPYTHONDIR": "/tmp/ipython", "JUPYTER_RUNTIME_DIR": "/tmp", "MPLBACKEND": "agg",
                            "MPLCONFIGDIR": "/tmp", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}}


def links(shown: list[str]) -> dict[str, str]:
    """Names of this Python that are not below what is `shown`, and where they lead: an environment may be a symbolic link."""
    step, names = Path(sys.executable), [sys.prefix, sys.base_prefix]
    while step.is_symlink():                                    # bin/python is one, often to a link in another folder
        step = Path(os.path.abspath(step.parent / os.readlink(step)))
        names.append(str(step.parent.parent))
    found: dict[str, str] = {}
    for name in sorted(set(names)):
        if not any(f"{name}/".startswith(f"{known}/") for known in (*shown, *found)):
            found[name] = str(Path(name).resolve())
    return found


def command(file: Path, program: list[str]) -> list[str]:
    """How to run `program` in the sandbox whose `spec` is in `file`."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(file), "--", *program]


def available() -> str | None:
    """None where the sandbox works here; otherwise why not. A program is run in one to know."""
    if not sys.platform.startswith("linux") or not PIVOT_ROOT:
        return f"it needs Linux namespaces; this is {sys.platform}"
    with tempfile.TemporaryDirectory(prefix="course-") as name:
        folder, course = Path(name, "k"), Path(name, "c")
        os.chmod(name, 0o755)
        course.mkdir()
        give(folder)
        file = Path(name, "spec.json")
        file.write_text(json.dumps(spec(folder, course, []) | {"sockets": 0}))
        test = "import os,sys; sys.exit(0 if os.getpid() == 2 and not os.path.exists('/home') else 1)"
        try:
            done = subprocess.run(command(file, [sys.executable, "-I", "-c", test]), capture_output=True, text=True, timeout=60,
                                  env={"PATH": "/usr/bin:/bin"})
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["the inside is not as it should be"])[-1]


def give(folder: Path) -> None:
    """Make `folder` for the inside to write to, until it is sealed: a root user is nobody there."""
    folder.mkdir(mode=0o700)
    folder.with_name(folder.name + ".root").mkdir()             # where the inside's file system is put together
    if os.getuid() == 0:
        os.chown(folder, NOBODY, NOBODY)


# ---- system calls

libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None


def check(result: int, what: str) -> None:
    if result != 0:
        raise Refused(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    encoded = [v.encode() if v is not None else None for v in (source, target, kind)]
    check(libc.mount(*encoded, ctypes.c_ulong(flags), options.encode() if options else None), f"mount {target}")


def read_only(target: str) -> None:
    """Remount; flags that the mount has already may not be taken away in a user namespace."""
    have = os.statvfs(target).f_flag
    keep = have & (NOSUID | NODEV | NOEXEC) | {1024: 1024, 0: 0}[have & 1024] | {4096: 1 << 21, 0: 0}[have & 4096]
    mount("none", target, None, BIND | REMOUNT | RDONLY | NOSUID | keep)


# ---- outer

def outer(made: dict, program: list[str]) -> int:
    libc.prctl(PDEATHSIG, signal.SIGKILL)
    uid, gid = os.getuid(), os.getgid()
    inside, outside = os.pipe(), os.pipe()
    helper = 0
    if uid == 0:                                                # only a process outside may map another user in
        me, helper = os.getpid(), os.fork()
        if helper == 0:
            os.read(inside[0], 1)
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{me}/{name}").write_text(f"0 {NOBODY} 1\n")
            os.write(outside[1], b"x")
            os._exit(0)
    check(libc.unshare(NEWUSER | NEWPID | NEWNET | NEWIPC | NEWUTS), "unshare")
    if uid == 0:
        os.write(inside[1], b"x")
        os.read(outside[0], 1)
        os.waitpid(helper, 0)
    else:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1\n")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1\n")
    for end in (*inside, *outside):
        os.close(end)
    child = os.fork()
    if child == 0:
        try:
            init(made, program)
        except OSError as error:
            print(f"sandbox: {error}", file=sys.stderr, flush=True)
            os._exit(125)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return watch(child, made["limits"], Path(made["folder"]))


def watch(child: int, limits: dict, folder: Path) -> int:
    """Wait for init; kill it when its processes together take too much memory, or too long."""
    end = time.monotonic() + limits["wall"]
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) % 256
        why = f"more than {limits['memory'] >> 20} MB of memory" if resident(child) > limits["memory"] else \
            f"more than {limits['wall']} seconds" if time.monotonic() > end else None
        if why:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            print(f"sandbox: {why}", file=sys.stderr, flush=True)
            Path(f"{folder}.verdict").write_text(why)
            return 137
        time.sleep(0.1)


def resident(root: int) -> int:
    """Bytes in memory of a process and all its descendants, shared pages of forks once for each."""
    children, sizes, page = {}, {}, os.sysconf("SC_PAGE_SIZE")
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                with open(f"/proc/{entry}/statm", "rb") as file:
                    memory = [int(n) for n in file.read().split()]
            except (OSError, ValueError):
                continue
            children.setdefault(int(fields[1]), []).append(int(entry))
            sizes[int(entry)] = (memory[1] - memory[2]) * page      # without files that are mapped
    total, open_ones = 0, [root]
    while open_ones:
        process = open_ones.pop()
        total += sizes.get(process, 0)
        open_ones += children.get(process, [])
    return total


# ---- init

def init(made: dict, program: list[str]) -> None:
    """Process 1: the file system, then the kernel, then wait for its end."""
    libc.prctl(PDEATHSIG, signal.SIGKILL)
    check(libc.unshare(NEWNS), "unshare")
    Path("/proc/self/oom_score_adj").write_text("1000")         # if memory runs out, this is what goes
    paths = (*made["shown"], made["course"], made["folder"], *(f"/{n}" for n in LIBRARIES), *DEVICES)
    # opened while a root user may still look into folders of its own
    opened = {path: os.open(path, os.O_PATH) for path in paths if os.path.exists(path)}
    if os.getuid() != 0:                                        # root outside: become the user that is mapped
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    libc.prctl(PDEATHSIG, signal.SIGKILL)                       # a change of user clears it
    libc.prctl(SET_DUMPABLE, 1)
    build(made, {path: f"/proc/self/fd/{number}" for path, number in opened.items()})
    socket.sethostname("classroom")
    kernel = os.fork()
    if kernel == 0:
        try:
            become(made, program)
        except OSError as error:
            print(f"sandbox: {error}", file=sys.stderr, flush=True)
        os._exit(125)
    libc.prctl(SET_DUMPABLE, 0)                                 # nobody inside may trace the process that holds the rights
    sealed = made["sockets"] == 0
    while True:
        done, status = os.waitpid(-1, 0 if sealed else os.WNOHANG)
        if done == kernel:
            os._exit(os.waitstatus_to_exitcode(status) % 256)
        if not sealed:
            sealed = seal(made["folder"], made["sockets"])
            time.sleep(0 if sealed else 0.02)


def seal(folder: str, sockets: int) -> bool:
    """Once the kernel's sockets are there nothing more is written to the shared folder."""
    if sum("-ipc-" in name for name in os.listdir(folder)) < sockets:
        return False
    Path(folder, "sealed").touch()
    read_only(folder)
    return True


LIBRARIES = ("bin", "lib", "lib64", "lib32", "sbin")            # links into /usr, or folders
DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))


def build(made: dict, at: dict[str, str]) -> None:
    """The file system of the inside, and nothing else. `at` says where what is shown can be reached."""
    new, disk = made["folder"] + ".root", made["limits"]["disk"]
    mount("none", "/", None, REC | PRIVATE)
    mount("tmpfs", new, "tmpfs", NOSUID | NODEV, "size=1m,mode=755,nr_inodes=4k")
    for path in ("/tmp", "/dev/shm"):
        os.makedirs(new + path, exist_ok=True)
        size = disk if path == "/tmp" else disk // 4
        mount("tmpfs", new + path, "tmpfs", NOSUID | NODEV, f"size={size},mode=1777,nr_inodes=4k")
    for path in (*made["shown"], made["course"]):
        os.makedirs(new + path, exist_ok=True)
        mount(at[path], new + path, None, BIND | REC)
        read_only(new + path)
    for name in LIBRARIES:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{new}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{new}/{name}")
            mount(at[f"/{name}"], f"{new}/{name}", None, BIND | REC)
            read_only(f"{new}/{name}")
    for name, leads in made["links"].items():
        os.makedirs(new + os.path.dirname(name), exist_ok=True)
        os.symlink(leads, new + name)
    for path in made["cover"]:
        mount("tmpfs", new + path, "tmpfs", NOSUID | NODEV | RDONLY, "size=4k,mode=755")
    os.makedirs(f"{new}/etc")
    if os.path.exists("/etc/ld.so.cache"):
        shutil.copy("/etc/ld.so.cache", f"{new}/etc")
    Path(f"{new}/etc/passwd").write_text("student:x:0:0::/tmp:/bin/sh\n")
    for path in DEVICES:
        Path(new + path).touch()
        mount(at[path], new + path, None, BIND)
    os.makedirs(f"{new}/proc")
    mount("proc", f"{new}/proc", "proc", NOSUID | NODEV | NOEXEC)
    Path(f"{new}/proc/sys/user/max_user_namespaces").write_text("0")       # of this namespace: none inside it
    read_only(f"{new}/proc")
    os.makedirs(new + made["folder"], exist_ok=True)
    mount(at[made["folder"]], new + made["folder"], None, BIND)
    os.mkdir(f"{new}/old")
    check(libc.syscall(PIVOT_ROOT, new.encode(), f"{new}/old".encode()), "pivot_root")
    os.chdir("/")
    check(libc.umount2(b"/old", 2), "umount")                   # 2: detach, whatever still looks at it
    os.rmdir("/old")
    read_only("/")


def become(made: dict, program: list[str]) -> None:
    """The kernel: limits, no rights, a scrubbed environment, no open files but the three."""
    import resource  # is not there on Windows, where this never runs

    limits = made["limits"]
    for kind, most in ((resource.RLIMIT_AS, limits["address"]), (resource.RLIMIT_CPU, limits["cpu"]),
                       (resource.RLIMIT_NPROC, limits["processes"]), (resource.RLIMIT_FSIZE, limits["file"]),
                       (resource.RLIMIT_NOFILE, limits["open"]), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))
    for number in range(64):
        libc.prctl(CAPBSET_DROP, number, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    check(libc.syscall(CAPSET, header, (ctypes.c_uint32 * 6)()), "capset")
    check(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    os.setsid()
    os.closerange(3, 4096)
    os.chdir("/tmp")
    os.execve(program[0], program, made["environment"])


if __name__ == "__main__":
    divide = sys.argv.index("--")
    try:
        sys.exit(outer(json.loads(Path(sys.argv[1]).read_text()), sys.argv[divide + 1:]))
    except OSError as problem:
        sys.exit(f"sandbox: {problem}")
