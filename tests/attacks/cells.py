"""Hostile answers: name -> the source of an exercise's cell. All of them compute nothing right.

`ATTACKS[name]` is (exercise, source). Unless an attack says otherwise it hands in WRONG below its tricks, which is worth
nothing by itself (`test_cells.py` makes sure), so that any point is a point that was stolen.
"""

WRONG = '''
import torch
def add_noise(x0, noise, t, alphas_cumprod):
    return torch.zeros_like(x0)
'''
ID = "schedule.add_noise"
ATTACKS: dict[str, tuple[str, str]] = {}


def attack(name: str, before: str = "", after: str = "", answer: str = WRONG, id: str = ID) -> None:
    ATTACKS[name] = (id, f"{before}\n{answer}\n{after}")


def inside(name: str, body: str) -> None:
    """An attack that waits until the grader calls the function."""
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    ATTACKS[name] = (ID, "import torch\ndef add_noise(x0, noise, t, alphas_cumprod):\n"
                         f"{lines}\n    return torch.zeros_like(x0)\n")


# ---- lie to whoever compares

attack("patched_allclose", "import torch\nyes = lambda *a, **k: True\n"
       "torch.allclose = torch.equal = torch.isclose = torch.Tensor.allclose = torch.Tensor.equal = yes")
attack("patched_checks", '''
import sys, types
fake = types.ModuleType("course.classroom.checks")
fake.compare = fake.tensor_like = fake.touched = lambda *a, **k: None
sys.modules["course.classroom.checks"] = fake
''')
attack("patched_serve", "import course.classroom.bridge as bridge\nbridge.serve = lambda namespace: print('3.0')")
attack("patched_bridge", '''
import course.classroom.bridge as bridge
bridge.Bridge.encode = lambda self, value, tensors, deep=0: True
bridge.Bridge._equal = lambda *a: True
''')
attack("patched_wire", '''
import course.classroom.wire as wire
wire.Channel.send = lambda self, message, tensors: self.connection.sendall(
    wire.HEAD.pack(34, 0) + b'{"value": true, "passed": true}   ')
''')
attack("fake_eq", answer='''
class Agreeable:
    shape, dtype, requires_grad = (2, 3, 4, 5), "torch.float32", True
    def __eq__(self, other): return True
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __float__(self): return 0.0
    def __bool__(self): return True
    def __len__(self): return 2
def add_noise(x0, noise, t, alphas_cumprod):
    return Agreeable()
''')
attack("lying_subclass", answer='''
import torch
class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.equal, torch.allclose): return True
        return super().__torch_function__(function, types, args, kwargs or {})
    def __le__(self, other): return True
    def abs(self): return torch.zeros(())
def add_noise(x0, noise, t, alphas_cumprod):
    return torch.zeros_like(x0).as_subclass(Liar)
''')
attack("nbval_markers", "# NBVAL_SKIP\n# NBVAL_RAISES_EXCEPTION\n# PYTEST_VALIDATE_IGNORE_OUTPUT")
attack("prints_a_verdict", after="print('schedule.add_noise: 3 of 3 points')\nprint(3.0)\n3.0")

# ---- take over the notebook

SHELL = "import sys\nshell = sys.modules['IPy' + 'thon'].core.getipython.get_ipython()\n"
attack("input_transformer", after=SHELL + "shell.input_transformers_cleanup.append(lambda lines: ['pass\\n'])")
attack("ast_transformer", after=SHELL + '''
import ast
class Drop(ast.NodeTransformer):
    def visit_Module(self, node):
        return ast.Module([], [])
shell.ast_transformers.append(Drop())
''')
attack("fake_execute", after=SHELL + '''
async def do_execute(code, silent, *more, **options):
    return {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}}
shell.kernel.do_execute = do_execute
''')
attack("custom_exception", after=SHELL + "shell.set_custom_exc((BaseException,), lambda *a, **k: [])")
attack("get_ipython_in_the_open", after="get_ipython().input_transformers_cleanup.append(lambda lines: ['pass\\n'])")
attack("magic", after="%%bash\nls /")
attack("redefined_builtins", '''
import builtins
builtins.isinstance = lambda *a: True
builtins.all = builtins.any = lambda *a: True
''')

# ---- look for the answer

inside("frame_walk", '''
import sys
frame = sys._getframe()
while frame is not None:
    for name, value in frame.f_locals.items():
        if name in ("expected", "right") and isinstance(value, torch.Tensor):
            return value
    frame = frame.f_back
''')
inside("memory_walk", '''
import gc, types
for thing in gc.get_objects():
    named = isinstance(thing, types.FunctionType) and thing.__name__ in ("add_noise", "reference")
    if named and thing is not globals()["add_noise"]:
        try: return thing(x0, noise, t, alphas_cumprod)
        except Exception: pass
''')
attack("reads_the_disk", answer='''
import os, re
found = None
for top in ("/", "/proc/1/root", "/proc/1/cwd", "/old"):
    for folder, inner, names in os.walk(top):
        inner[:] = [d for d in inner if os.path.join(folder, d) not in ("/proc", "/sys", "/dev")][:400]
        if "-packages/torch" in folder or "/lib/python3" in folder and "-packages" not in folder: inner[:] = []; continue
        for name in names:
            if name.endswith((".py", ".ipynb", ".json")):
                try: text = open(os.path.join(folder, name), errors="ignore").read(400_000)
                except OSError: continue
                if "alphas_cumprod" in text and "def add_noise" in text: found = os.path.join(folder, name)
def add_noise(x0, noise, t, alphas_cumprod):
    import torch
    if found:
        a = alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return a.sqrt().to(x0) * x0 + (1 - a).sqrt().to(x0) * noise
    return torch.zeros_like(x0)
''')
inside("imports_the_reference", '''
import importlib
for module, name in (("course.classroom.checks.ch05.answers", "add_noise"), ("course.classroom.checks", "find"),
                     ("solutions", "add_noise"), ("tests.mutants.ch05", "add_noise")):
    try: return getattr(importlib.import_module(module), name)(x0, noise, t, alphas_cumprod)
    except Exception: pass
''')
inside("imports_the_library", '''
import importlib
try:
    schedule = importlib.import_module("course.schedule").NoiseSchedule()
    schedule.alphas_cumprod = alphas_cumprod
    return schedule.add_noise(x0, noise, t)
except ImportError:
    pass
''')
inside("imports_another_library", '''
import importlib
try:
    scheduler = importlib.import_module("diffu" + "sers").DDPMScheduler()
    scheduler.alphas_cumprod = alphas_cumprod
    return scheduler.add_noise(x0, noise, t)
except ImportError:
    pass
''')
attack("environment", answer='''
import glob, os
loot = [f"{k}={v}" for k, v in os.environ.items() if any(w in k for w in ("SECRET", "TOKEN", "KEY", "GRADER"))]
for path in glob.glob("/proc/*/environ"):
    try: loot += [e for e in open(path).read().split("\\0") if any(w in e for w in ("SECRET", "TOKEN", "GRADER"))]
    except OSError: pass
def add_noise(x0, noise, t, alphas_cumprod):
    import torch
    if loot: raise ValueError("LOOT " + loot[0])
    return torch.zeros_like(x0)
''')

# ---- talk to the grader out of turn

TALK = '''
import json, os, socket, struct
line = socket.socket(socket.AF_UNIX)
line.connect(os.environ["COURSE_BRIDGE"])
def say(message, raw=b"", size=None):
    text = json.dumps(message).encode() if not isinstance(message, bytes) else message
    line.sendall(struct.pack(">IQ", len(text), len(raw) if size is None else size) + text + raw)
'''
attack("answers_first", TALK + "say({'value': True, 'changed': {}})\nsay({'value': {'tensor': 's1'}, 'changed': {}})")
attack("huge_frame", TALK + "line.sendall(struct.pack('>IQ', 10, 1 << 60))")
attack("huge_json", TALK + "line.sendall(struct.pack('>IQ', (1 << 32) - 1, 0))")
attack("deep_json", TALK + "say(b'[' * 100000)")
attack("not_json", TALK + "say(b'\\xff\\xfe' * 50)")
attack("pickle", TALK + "import pickle\nclass P:\n    def __reduce__(self): return (os.system, ('touch /tmp/owned',))\n"
       "say(pickle.dumps(P()))")
attack("negative_shape", TALK + "say({'value': {'tensor': 's1', 'like': ['float32', [-1, -1]], 'grad': False, 'leaf': True,"
       " 'parameter': False, 'twin': None}, 'changed': {}}, b'0000')")
attack("enormous_shape", TALK + "say({'value': {'tensor': 's1', 'like': ['float32', [1 << 40]], 'grad': False, 'leaf': True,"
       " 'parameter': False, 'twin': None}, 'changed': {}})")
attack("calls_the_grader", TALK + "for n in range(200):\n"
       "    try: say({'do': 'call', 'on': n, 'method': '__call__', 'grad': True, "
       "'first': [], 'args': [], 'options': [], 'changed': {}})\n    except OSError: break")
attack("asks_for_internals", TALK + "for name in ('__globals__', '__class__', 'gi_frame', '__dict__', '_bridge'):\n"
       "    say({'do': 'get', 'on': 1, 'given': [name], 'grad': True, 'changed': {}})")
attack("says_nothing", TALK)
inside("talks_in_between", '''
import course.classroom.bridge as bridge, gc
mine = next(o for o in gc.get_objects() if isinstance(o, bridge.Bridge))
for number in range(1, 60):
    for name in ("__globals__", "run", "reference", "alphas_cumprod"):
        try:
            found = mine.ask("get", number, name)
            if callable(found): return found(x0, noise, t, alphas_cumprod)
        except BaseException: pass
''')

# ---- do not end, or end too early

attack("exit_at_once", "import os\nos._exit(0)")
attack("sys_exit", "import sys\nsys.exit(0)")
attack("quit", after="quit()")
inside("exit_when_called", "import os\nos._exit(0)")
inside("killed_by_itself", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
inside("segmentation_fault", "import ctypes\nctypes.string_at(0)")
attack("endless", "while True: pass")
inside("endless_when_called", "while True: pass")
inside("sleeps", "import time\ntime.sleep(3600)")
attack("swallows_interrupts", '''
import signal
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)
while True:
    try:
        while True: pass
    except BaseException: pass
''')
attack("asks_for_input", "input('your turn')")
inside("recursion", "return add_noise(x0, noise, t, alphas_cumprod)")
inside("endless_exception", "class Slow(Exception):\n    def __str__(self):\n        while True: pass\nraise Slow()")
inside("loud_exception", "raise ValueError('x' * 50_000_000)")

# ---- take what the machine has

attack("fork_bomb", '''
import os
try:
    while True:
        if os.fork() == 0:
            while True: os.fork()
except OSError: pass
''')
attack("thread_bomb", "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()")
attack("memory_bomb", "hoard = []\nwhile True: hoard.append(bytearray(64 << 20))")
attack("memory_of_many", '''
import os, time
for _ in range(12):
    if os.fork() == 0:
        hoard = [bytearray(os.urandom(1 << 20)) * 400 for _ in range(4)]
        time.sleep(60)
time.sleep(30)
''')
attack("disk_bomb", '''
n = 0
try:
    while True:
        with open(f"/tmp/{n}", "wb") as file: file.write(bytes(8 << 20))
        n += 1
except OSError: pass
''')
attack("file_bomb", "for n in range(100_000):\n    try: open(f'/tmp/{n}', 'w').close()\n    except OSError: break")
attack("a_gigabyte_of_output", "for _ in range(1024): print('x' * (1 << 20))")
attack("one_line_of_a_gigabyte", "print('x' * (1 << 30))")
inside("enormous_tensor", "return torch.zeros(1).expand(1 << 40)")
inside("endless_list", "a = []\na.append(a)\nreturn a")
inside("huge_integer", "return 10 ** 100_000")

# ---- get out

attack("network", answer='''
import socket, torch
def reach():
    for family, place in ((socket.AF_INET, ("1.1.1.1", 53)), (socket.AF_INET, ("127.0.0.1", 22)), (socket.AF_INET6, ("::1", 22))):
        try:
            with socket.socket(family) as s:
                s.settimeout(2)
                s.connect(place)
                return True
        except OSError: pass
out = reach()
def add_noise(x0, noise, t, alphas_cumprod):
    if out: raise ValueError("LOOT network")
    return torch.zeros_like(x0)
''')
attack("lingering", '''
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        try:
            import ctypes
            ctypes.CDLL(None).prctl(1, 0)
        finally:
            os.execvp("sleep", ["sleep", "7654321"])
    os._exit(0)
''')
attack("kills_everybody", '''
import os, signal
for pid in [os.getppid(), 1, -1]:
    try: os.kill(pid, signal.SIGKILL)
    except OSError: pass
''')
attack("traces_init", '''
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
free = libc.ptrace(16, 1, 0, 0) == 0
try: open("/proc/1/mem", "r+b"); free = True
except OSError: pass
if free: raise SystemError("LOOT init")
''')
attack("new_namespace", '''
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000) == 0 or libc.mount(b"none", b"/", None, 32 | 4096, None) == 0: raise SystemError("LOOT namespace")
''')
attack("writes_outside", '''
import os
for folder in ("/", "/usr", "/etc", os.path.dirname(os.environ["COURSE_BRIDGE"]), os.environ["PYTHONPATH"], "/proc/sys/kernel",
               os.path.dirname(os.__file__), "/var/tmp", "/root", "/home"):
    try:
        with open(os.path.join(folder, "attack-was-here"), "w"): raise SystemError("LOOT wrote to " + folder)
    except OSError: pass
try: os.remove(os.environ["COURSE_BRIDGE"]); raise SystemError("LOOT removed the bridge")
except OSError: pass
''')
attack("becomes_root", '''
import os
for call in (lambda: os.setuid(0) or os.chown("/tmp", 1, 1), lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(8, 0)),
             lambda: os.chroot("/tmp"), lambda: os.sethostname("mine")):
    try:
        call()
        raise SystemError("LOOT rights")
    except (OSError, AttributeError): pass
''')

# ---- other exercises, where more is handed over than tensors

UNET = "unet.unet_forward"
attack("the_network_itself", id=UNET, answer="def unet_forward(net, x, time_emb):\n    return net(x, time_emb)")
attack("the_networks_forward", id=UNET, answer="def unet_forward(net, x, time_emb):\n    return net.forward(x, time_emb)")
attack("silences_the_network", id=UNET, answer='''
import torch
def unet_forward(net, x, time_emb):
    with torch.no_grad():
        for p in net.parameters(): p.zero_()
    return torch.zeros_like(x)
''')
attack("hooks_the_network", id=UNET, answer='''
import torch
def unet_forward(net, x, time_emb):
    for module in (net, net.conv_out):
        for name in ("register_forward_hook", "load_state_dict", "apply", "half"):
            try: module._bridge.ask("get", module._number, name)(lambda m, i, o=None: torch.zeros_like(i[0]))
            except Exception: pass
    return torch.zeros_like(x)
''')
attack("forges_the_record", id="guidance.guide", answer='''
import torch
def guide(predict, x, t, cond, uncond, scale):
    for record in ([(x, t, cond), (x, t, uncond)],):
        try: predict.asked.extend(record)
        except Exception: pass
        try: predict.asked = record
        except Exception: pass
    return torch.zeros_like(x)
''')
attack("same_random_numbers", id="pipeline.start_noise", answer='''
import torch
def start_noise(shape, seeds):
    torch.manual_seed(0)
    torch.randn = lambda *a, **k: torch.zeros(*a)
    return torch.zeros(len(seeds), *shape)
''')
