"""Every command that README, documents, data cards and chapters show would be taken, and runs, at quick scale (`make test-all`).

A line is in exactly one of these: it is run here; an existing test runs it (`COVERED`); it cannot be run here, for a reason
(`NOT_HERE`); or it only names a command, which another line shows in full (`NAMES`). `documented.py` collects the lines and asks
each program's parser. They are run one after the other in one folder, as by a reader: two that clash are noticed.
"""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from course import cli, demo, shipped, teaching
from course.classroom import mutants, release, sandbox
from course.data import Scenes
from course.evaluation import cost, machine
from course.evaluation.tables import page
from course.pixels import to_bytes
from course.training import recipes
from tests import documented, test_demo, test_translation
from tests.attacks.files import RIGHT, cell, notebook
from tests.documented import ROOT, commands, parsed, simple

LINES = list(dict.fromkeys(line for document in documented.DOCUMENTS for line in commands(document)))

COVERED = {
    "course tables": "tests/evaluation/test_tables.py::test_all_at_the_quick_scale",
    "course tables all": "tests/evaluation/test_tables.py::test_all_at_the_quick_scale",
    "course bench parity": "tests/evaluation/test_parity.py::test_equal_to_the_reference",
    "course bench scaling": "tests/evaluation/test_speed.py::test_the_commands_print_json",
    "python -m course.evaluation.plan": "tests/evaluation/test_plan.py::test_it_prints_them",
    "make release": "tests/test_releasing.py::test_a_release_of_a_clone",
    "course studio": "tests/test_studio.py::test_the_command_listens_until_ctrl_c",
    "torchrun --nproc_per_node 4 -m course train ldm --autoencoder runs/vae-demo --precision bf16":
        "tests/test_train.py::test_the_command_on_two_processes",
}

NEEDS_THE_NET, NEEDS_DOCKER = "downloads packages", "needs Docker and its images"
NOT_HERE = {
    "make test": "this test is a part of it", "make test-all": "this test is a part of it",
    "make test TORCH=cpu": "this test is a part of it",
    "make site": "minutes, and the packages of .[site]", "make test-site": "minutes, Chromium, and the packages of .[site]",
    "make class": "grades for an hour and more",
    "course release": "executes all chapters at the cpu profile, up to ten minutes each; `course release 05` is run",
    "make constraints": NEEDS_THE_NET,
    'python -m pip install -c constraints.txt -e ".[dev]"': NEEDS_THE_NET,
    'python -m pip install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu -e ".[dev]"': NEEDS_THE_NET,
    'python -m venv .venv && python -m pip install -c constraints.txt -e ".[dev]"': NEEDS_THE_NET,
    'python -m pip install -e ".[dev,bench,docs,site]"': NEEDS_THE_NET,
    'python -m pip install -c constraints-min.txt -e ".[dev]"': NEEDS_THE_NET,
    'pip install -e ".[data]"': NEEDS_THE_NET,
    "pip install -q --no-deps -e .": "would install over the packages that run this test",
    "pip install -q -c /tmp/keep.txt einops safetensors rich typer psutil packaging jinja2 tqdm nbformat accelerate":
        NEEDS_THE_NET,
    "git clone <the course> && cd <the course>": "the address is the reader's",
    "export COURSE_RELEASED=/path/to/stable-diffusion-v1-5": "released weights",
    "export COURSE_TOKENIZER=/path/to/tokenizer": "released weights",
    "docker build -t course .": NEEDS_DOCKER,
    'docker run --rm -it -p 127.0.0.1:8888:8888 -v "$PWD/my-notebooks:/home/student/course/my-notebooks" course': NEEDS_DOCKER,
    "docker run --rm --network none --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    '--security-opt systempaths=unconfined -v "$PWD/class":/class -v "$PWD/out":/out IMAGE course grade /class --out /out':
        NEEDS_DOCKER,
    "course bench speed --size sd15": "Stable Diffusion twice, in float32: a GPU, or many GB and minutes",
    "course bench speed --compile": "compiles for minutes",
}

NAMES = {
    "course sample": 'course sample "a small red ring left of a large blue square" --out ring.png',
    "course grade": "course grade submissions/ --out graded/ --jobs 2",
    "course train ldm": "course train ldm --preset demo --autoencoder runs/vae-demo",
    "docker run --gpus all":
        'docker run --rm -it -p 127.0.0.1:8888:8888 -v "$PWD/my-notebooks:/home/student/course/my-notebooks" course',
}

RUN = [line for line in LINES if line not in COVERED | NOT_HERE | NAMES]

# what makes a command quick: these options, in place of its own ...
QUICK = {"demo": "--minutes 0.05 --prompts 8", "sample": "--steps 2", "sweep": "--guidance 1,3 --steps 2 --seeds 1 --unseen 2",
         "train": "", "bench prompts": "--count 8 --steps 2", "bench control": "--count 8 --steps 1",
         "bench lora": "--ranks 2 --steps 2", "bench speed": "--rounds 1 --prompts 0 --only text", "tables": "--scale quick"}
# ... and these words in place of others. Recipes have 2 steps and 64 pictures, chapters are one: see `small`
INSTEAD = {"--set steps=2400": "--set steps=2", "course train --tensorboard": "course train vae --tensorboard --out runs/board",
           "python -m venv": "python -m venv --without-pip", "/tmp/keep.txt": "keep.txt", "-o bundle.zip": "-o $PLACE/bundle.zip",
           'pytest -q -m "not slow"': 'pytest -q -m "not slow" tests/test_pixels.py', "RUN NAME": "runs/vae-demo mine",
           "180 solutions notebooks": "180 notebooks/05_forward_process.ipynb",
           "pytest tests/classroom/test_bridge.py": "pytest -q --collect-only tests/classroom/test_bridge.py",
           "course.data.oracle_study": "course.data.oracle_study --clean 8 --spoilt 4",
           "pre-commit install": "git init -q hooks && cd hooks && pre-commit install"}
# what has to be there when a line is run alone: the line that makes it
FIRST = {'course sample "a large green ring on a pink background" --model runs/demo --out ring.png': "make demo",
         "course train ldm --autoencoder runs/vae-demo --text-encoder runs/clip-cond --out runs/ldm-frozen":
             "course train clip --preset cond",
         "course train clip --preset cond": "course train vae --preset demo",
         "course train ldm --preset demo --autoencoder runs/vae-demo": "course train vae --preset demo",
         "course train xl --preset refiner --model runs/xl-base": "course train xl --preset base",
         "course train ldm --preset emoji --set data.source=FOLDER_OR_TAR --autoencoder runs/vae-emoji":
             "course train vae --preset emoji --set data.source=FOLDER_OR_TAR",
         "course train ldm --preset scenes64 --autoencoder runs/vae-scenes64": "course train vae --preset scenes64",
         "course tables report --pdf": "course tables <letter> --scale quick",
         "course lab": "course start", "course progress": "course start",
         "python -m course.shipped RUN NAME": "course train vae --preset demo",
         "mkdir again && cp graded/.secret again/ && course grade submissions/ann --out again/":
             "course grade submissions/ --out graded/ --jobs 2"}
# what is there afterwards, where the options do not say it
LEAVES = {"pre-commit install": "hooks/.git/hooks/pre-commit", "python -m venv .venv": ".venv/pyvenv.cfg",
          "make lab": "my-notebooks/00_tour.ipynb",
          "git archive HEAD -o bundle.zip -- . ':!solutions' ':!tests'": "bundle.zip", "make demo": "runs/demo/report.html",
          "python -m course.shipped RUN NAME": "weights/mine/provenance.json",
          "python -m course.data.oracle_study --out docs/oracle": "docs/oracle/robustness.md",
          "python -m course.evaluation.labelled --out docs/oracle": "docs/oracle/labelled.md"}


# ---- would it be taken?

@pytest.fixture(autouse=True)
def pytests_own_parser(pytestconfig, monkeypatch):
    monkeypatch.setattr(documented, "PYTEST", pytestconfig._parser)


def wrong(line: str, there: set[str]) -> str | None:
    """Why a line would not be taken."""
    try:
        documented.check(line, there)
    except (Exception, SystemExit) as error:
        return f"{line}: {type(error).__name__} {getattr(error, 'message', error)}"


@pytest.mark.parametrize("document", documented.DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_would_be_taken(document):
    there, found = set(), []
    for line in commands(document):
        found.append(None if line in NAMES else wrong(line, there))
    assert not list(filter(None, found))


@pytest.mark.parametrize("line", [
    "course fly", "course sample", "course sample x --stepz 2", "course sample x --steps many",
    "course sample x --sampler magic", "course sample x --model runs/demo", "course sample x --lora nothing",
    "course sample x --control scenes64-edges=nothing.png", "course sample x --device tpu", "course train vae --preset grand",
    "course train gan", "course train ldm", "course train vae --set lr=1", "course train ldm --autoencoder runs/vae-demo",
    "course train vae --set data.source=nowhere", "course train distill", "course tables Q", "course tables C --scale huge",
    "course bench speed --size sd9", "course bench flight", "course release 77", "course grade",
    "course bench control --kind pose", "course architecture sd9", "course architecture sd15 --what roof",
    "course sweep --guidance 1,x", "make dmeo", "make demo TORHC=cpu", "make TORCH=cpu",
    'pip install -e ".[devv]"', "pip install -c nowhere.txt -e .", "pip install --no-dps -e .", "pip fly",
    "pytest tests/nothing.py", "pytest --nbval-laxer tests", "python -m course.nothing",
    "python -m course.evaluation.labelled --outt x", "torchrun --nprocs_per_node 4 -m course train --list",
    "torchrun -m course train --lst", "fly", "export COURSE_NOTHING=1", "python -m course.shipped runs/x NAME",
    'python -m tests.test_translation README.md "No such section"', "python -m tests.test_translation SECURITY.md",
    "docker run IMAGE course grade /class --out /out",
    "docker run --build-arg NOTHING=1 course"])
def test_what_would_not_be_taken_is_found(line):
    assert wrong(line, set())


def test_files_come_from_earlier_commands():
    there = set()
    assert not wrong("make demo", there) and not wrong("course sample x --model runs/demo", there)
    assert not wrong("course train vae", there) and not wrong("course train ldm --autoencoder runs/vae-demo", there)
    assert not wrong("pip freeze > kept.txt && pip install -c kept.txt einops", there)


@pytest.mark.parametrize("document, korean", documented.TRANSLATED, ids=test_translation.DOCUMENTS)
def test_a_translation_shows_the_same_commands(document, korean):
    assert sorted(commands(korean)) == sorted(commands(document))


def test_no_command_hides_in_a_comment():
    said = [line for document in [*documented.DOCUMENTS, *(korean for _, korean in documented.TRANSLATED)]
            for line in documented.comments(document)]
    assert said and not [line for line in said if re.search(r"\b(course|make) [a-z-]{3,}\b(?! of)", line)]


# ---- is it run?

def test_every_command_is_accounted_for_once():
    tables = (COVERED, NOT_HERE, NAMES)
    stale = {line for table in (*tables, FIRST, LEAVES) for line in table} - set(LINES)
    assert not stale, "no document shows these any more"
    assert sum(map(len, tables)) == len(set().union(*tables)) and not (set(FIRST) | set(LEAVES)) - set(RUN)
    assert set(NAMES.values()) <= set(RUN) | set(NOT_HERE) and set(FIRST.values()) <= set(RUN)
    assert len(RUN) > 60
    for words in [*INSTEAD, *documented.PLACEHOLDERS, *documented.YOURS]:
        assert any(words in line for line in LINES), f"no document shows {words!r} any more"
    for path in QUICK:
        assert any(line.startswith(f"course {path}") for line in RUN), f"no document shows course {path} any more"


@pytest.mark.parametrize("node", sorted(set(COVERED.values())))
def test_what_covers_a_command_is_there(node):
    file, name = node.split("::")
    assert name in {item.name for item in ast.parse((ROOT / file).read_text("utf-8")).body if isinstance(item, ast.FunctionDef)}


# ---- running

def small(monkeypatch, place: Path) -> None:
    """What no option makes quick: recipes, the demo and its batches, chapters (one, in a copy), the machine's measurement."""
    def shorter(recipe):
        data, loop = replace(recipe.data, pictures=64), replace(recipe.loop, batch_size=4)
        return replace(recipe, steps=2, prompts=4, data=data, loop=loop)
    for kind, named in recipes.RECIPES.items():
        monkeypatch.setitem(recipes.RECIPES, kind, {name: shorter(recipe) for name, recipe in named.items()})
    monkeypatch.setattr(demo, "recipe_for", lambda device: test_demo.RECIPE)
    compare = cost.compare
    monkeypatch.setattr(cost, "compare", lambda configs, batch, device: compare(configs, 2, device))
    monkeypatch.setattr(machine, "measure", partial(machine.measure, seconds=0.01))
    monkeypatch.setattr(release, "chapters", lambda: sorted((place / "checkout/solutions").glob("*.py")))
    monkeypatch.setattr(mutants, "load", partial(mutants.load, place / "checkout" / "mutants"))
    monkeypatch.setattr(shipped, "pack", partial(shipped.pack, into=place / "weights"))
    monkeypatch.setattr(teaching.subprocess, "call", lambda command: 0)              # JupyterLab, which would stay open
    monkeypatch.setattr(test_translation, "ROOT", place)
    monkeypatch.setenv("COURSE_PROFILE", "quick")
    monkeypatch.setenv("PLACE", str(place))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what a reader brings, and a copy of chapter 05."""
    place = tmp_path_factory.mktemp("reader")
    data = Scenes(64, objects=(1, 1))
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in to_bytes(data.images(range(24)))]
    pictures[0].convert("L").save(place / "edges.png")
    for folder, name in (("my/pictures", "{}.png"), ("FOLDER_OR_TAR", "emoji_u1f6{:02x}.png")):
        (place / folder).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            picture.save(place / folder / name.format(i))
    (place / "submissions/ann").mkdir(parents=True)
    (place / "submissions/ann/a.ipynb").write_bytes(notebook(cell(RIGHT, "schedule-add_noise")))
    for file in ("solutions/05_forward_process.py", "solutions/05_forward_process.ipynb", "notebooks/05_forward_process.ipynb",
                 "tests/mutants/ch05.py"):
        (place / "checkout" / file.removeprefix("tests/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, place / "checkout" / file.removeprefix("tests/"))
    for file in ("README.md", "README.ko.md"):
        shutil.copy(ROOT / file, place)
    return place


class Reader:
    """Types a line, once; before it what it needs, if that was not typed yet."""

    def __init__(self, place: Path, monkeypatch, done: set[str]):
        self.place, self.monkeypatch, self.done = place, monkeypatch, done

    def run(self, line: str) -> None:
        said = documented.filled(line)
        for words, others in INSTEAD.items():
            said = said.replace(words, others)
        if said in self.done:
            return
        if line in FIRST:
            self.run(FIRST[line])
        for piece in said.split(" && ") if "course " in said else [said]:
            words = simple(piece)[0]
            if words[0] == "course":
                self.course(words[1:])
            elif words[0] == "make":
                self.make(words)
            elif words[:2] == ["python", "-m"] and words[2].startswith("course."):
                documented.module_command(importlib.import_module(words[2]))(words[3:], standalone_mode=False)
            elif words[:2] == ["python", "-m"] and words[2] == "tests.test_translation":
                assert test_translation.main(words[3:]) == 0
            else:
                self.shell(piece, ROOT if re.search(r"pytest|ruff|git archive", piece) else self.place)
        assert line not in LEAVES or (self.place / LEAVES[line]).exists()
        self.done.add(said)

    def course(self, words: list[str]) -> None:
        context = parsed(words)
        path = context.command_path.removeprefix("course ") if context else ""
        if "--pdf" in words and not any(map(shutil.which, page.BROWSERS)):
            words = [word for word in words if word != "--pdf"]
        if path == "grade" and sandbox.available() is not None:
            words = [*words, "--trusted"]
        options = QUICK.get(path, "").split() + (["--device", "cpu"] if context and "device" in context.params else [])
        for option, value in zip(options[::2], options[1::2], strict=True):
            if option in words:
                words[words.index(option) + 1] = value
            else:
                words = [*words, option, value]
        self.monkeypatch.setattr("sys.argv", ["course", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert (end.value.code or 0) in ((0, 1) if path == "doctor" else (0,)), f"course {' '.join(words)}"
        for file in documented.writes(path, parsed(words).params) if context else []:
            assert (self.place / file).exists(), file

    def make(self, words: list[str]) -> None:
        """The recipe of `demo` and `lab`, line by line; `clean-all` in a copy; others as they are."""
        if "clean-all" in words:
            copy = self.place / "copy"
            for folder in ("build", ".venv", "runs"):
                (copy / folder).mkdir(parents=True)
            shutil.copy(ROOT / "Makefile", copy)
            self.shell(" ".join(words), copy)
            assert sorted(p.name for p in copy.iterdir()) == ["Makefile", "runs"]
            return
        there = self.place / "venv"
        there.mkdir(exist_ok=True)
        if not (there / "bin").is_symlink():
            (there / "bin").symlink_to(Path(sys.executable).parent)
            for stamp in (".core", ".dev"):
                (there / stamp).touch()
        line = f"make VENV={there} {' '.join(words[1:])}"
        if {"demo", "lab"} & set(words):
            for said in self.shell(f"{line} -n", ROOT).splitlines():
                self.run(said.strip().replace(f"{there}/bin/", ""))
        else:
            self.shell(line, ROOT)

    def shell(self, line: str, folder: Path) -> str:
        outer = ("PYTEST", "MAKE", "MFLAGS")                   # of the `make test-all` that this is a part of
        environment = {key: value for key, value in os.environ.items() if not key.startswith(outer)} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=folder, env=environment, capture_output=True, text=True,
                              timeout=180)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def done() -> set[str]:
    return set()


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("bash", "make", "git"))), reason="bash, make and git are not all there")
@pytest.mark.parametrize("line", RUN)
def test_it_runs(line, place, done, monkeypatch):
    small(monkeypatch, place)
    monkeypatch.chdir(place)
    Reader(place, monkeypatch, done).run(line)
