"""Every command that a document shows, and whether the program that it names would take it.

    commands(document)  ->  its command lines in order: of fenced blocks, and those in `...`
    check(line, there)  ->  nothing; or an error that says what is wrong with the line. `there` are the files made so far

Nothing is run. `course` is parsed by its own parser, to the last option; what only the command itself would notice (a recipe, a
sampler, a chapter that does not exist) is looked up, too. pip, pytest and torchrun are asked through their own parsers.
"""

import importlib
import json
import re
import shlex
import tomllib
from pathlib import Path

import typer

from course import cli, sample, samplers, shipped
from course.classroom import release
from course.data import hints
from course.errors import UsageError
from course.evaluation import architecture, drawings, speed, tables
from course.evaluation.tables.table import SCALES
from course.options import weighted
from course.training import recipes
from tests import test_translation

ROOT = Path(__file__).resolve().parents[1]
TRANSLATED = [(ROOT / name, ROOT / test_translation.translation(name)) for name in test_translation.DOCUMENTS]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + [
    *sorted({*(ROOT / "docs").rglob("*.md")} - {korean for _, korean in TRANSLATED}),
    *sorted((ROOT / "datasets").glob("*.md")), *sorted((ROOT / ".github").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb"))]
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
PROGRAM = re.compile(r"(course|make|export|pip|pytest|docker|python[\d.]* -m|\.venv[/\\](bin|Scripts)[/\\][\w-]+)\s+\S")
SHELLS = ("bash", "bat", "sh")
COMMENT = re.compile(r"(?:^|\s+)# (.*)")
ROOT_COMMAND = typer.main.get_command(cli.app)

# what a reader has, and a document only names
YOURS = {"edges.png": "a picture of edges", "my/pictures": "a folder of pictures", "FOLDER_OR_TAR": "pictures of emoji",
         "submissions": "what students handed in", "RUN": "any run of the reader's"}
# in the words of a document -> what stands there in an example
PLACEHOLDERS = {"NN": "05", "<letter>": "I", "<the course>": "THE_COURSE"}
OF_THE_READER = ("runs", "build", "my-notebooks", ".venv")      # git does not keep them: there only if a command has made them


def text(document: Path) -> str:
    """What is read; of a notebook its prose."""
    said = document.read_text("utf-8")
    if document.suffix != ".ipynb":
        return said
    return "\n\n".join("".join(c["source"]) for c in json.loads(said)["cells"] if c["cell_type"] == "markdown")


def commands(document: Path) -> list[str]:
    """In order, each on one line without its comment, in one form: `.venv/bin/course`, on Windows or not, is `course`."""
    found = []
    for kind, part in blocks(text(document)):
        if kind == "prose":
            spans = [" ".join(span.split()) for paragraph in re.split(r"\n\s*\n", part)
                     for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", paragraph)]
            found += [span.replace(r"\|", "|") for span in spans if PROGRAM.match(span)]
        elif kind not in ("python", "json"):
            lines = [COMMENT.sub("", line).strip() for line in re.sub(r"\s*\\\n\s*", " ", part).splitlines()]
            found += [line for line in lines if line and (kind in SHELLS or re.match("course |make |export ", line))]
    return [normal(line) for line in found]


def comments(document: Path) -> list[str]:
    return [said for kind, part in blocks(text(document)) if kind in SHELLS
            for said in COMMENT.findall(part)]


def blocks(said: str) -> list[tuple[str, str]]:
    """("prose", what stands between) and (language, code), in turns."""
    pieces, end = [], 0
    for block in FENCED.finditer(said):
        pieces += [("prose", said[end: block.start()]), (block[2], block[3])]
        end = block.end()
    return [*pieces, ("prose", said[end:])]


def normal(line: str) -> str:
    line = re.sub(r"(?<!\S)(?:\.venv|build/\w+)[/\\](?:bin|Scripts)[/\\]", "", line)
    return re.sub(r"(?<!\S)py(?:thon[\d.]*)?(?= )", "python", line)


def filled(line: str) -> str:
    for words, example in PLACEHOLDERS.items():
        line = re.sub(rf"(?<!\w){re.escape(words)}(?!\w)", example, line)
    return line


def simple(line: str) -> list[list[str]]:
    """A line -> the words of each command in it; `a && b > file` is a, b and file's name at the end of b after ">"."""
    lexer = shlex.shlex(filled(line), posix=True, punctuation_chars="&|>")
    lexer.whitespace_split, lexer.commenters = True, ""
    found = [[]]
    for word in lexer:
        if word in ("&&", "|"):
            found.append([])
        else:
            found[-1].append(word)
    return found


# ---- would it be taken?

def check(line: str, there: set[str]) -> None:
    """Raises what the program's own parser raises, UsageError, or AssertionError. Adds to `there` what the line makes."""
    for words in simple(line):
        if ">" in words:
            there.add(words[words.index(">") + 1])
            words = words[:words.index(">")]
        program = words[1:3] if words[:2] == ["python", "-m"] else words[:1]
        name = program[-1]
        assert name in CHECKS or name.startswith("course."), f"nobody checks {name!r}"
        CHECKS.get(name, check_module)(words[2:] if len(program) == 2 else words, there)


def parsed(words: list[str], command=ROOT_COMMAND):
    """The innermost context of `words`, without the program's own name; None after --help. Raises click's UsageError."""
    context, name = None, "course"
    while True:
        try:
            context = command.make_context(name, list(words), parent=context)
        except typer.Exit:
            return None
        if not hasattr(command, "resolve_command"):            # (not isinstance: newer typers bring a click of their own)
            return context
        first = getattr(context, "_protected_args", None) or getattr(context, "protected_args", [])
        name, command, words = command.resolve_command(context, [*first, *context.args])


def check_course(words: list[str], there: set[str]) -> None:
    context = parsed(words[1:])
    if context is None:
        return
    path, p = context.command_path.removeprefix("course "), context.params
    check_values(path, p)
    for file in reads(path, context):
        assert exists(file, there), f"{file} is not there, and no command before makes it"
    there.update(writes(path, p))


def check_values(path: str, p: dict) -> None:
    """What only the command itself says of a value. Raises UsageError."""
    known = {"sampler": samplers.SAMPLERS, "scale": SCALES, "device": ("auto", "cpu", "cuda", "mps")}
    known["kind"] = {"train": recipes.KINDS, "bench control": hints.KINDS}.get(path, ())
    known["size"] = speed.SIZES if path == "bench speed" else (p.get("size"),)
    known["what"] = drawings.DRAWINGS
    known["precision"] = ("fp32", "bf16", "fp64") if path == "train" else sample.PRECISIONS
    for key in known.keys() & p.keys():
        if p[key] is not None and p[key] not in known[key]:
            raise UsageError(f"{key} {p[key]!r}, expected one of {', '.join(known[key])}")
    if path == "train" and p["kind"] and not p["list_all"]:
        recipe = recipes.find(p["kind"], p["preset"], p["change"])
        if p["kind"] == "ldm" and not p["first_stage"]:
            raise UsageError("ldm needs --autoencoder")
        if recipe.data.source == "emoji":
            raise UsageError("this recipe needs --set data.source=...")
    if path == "tables" and p["names"] != "report":
        tables.chosen(p["names"])
    if path == "sweep":
        sample.numbers(p["guidance"], "--guidance"), sample.numbers(p["steps"], "--steps", int)
    if path == "release":
        stems = [chapter.stem[:2] for chapter in release.chapters()]
        if unknown := set(p["chapters"] or ()) - set(stems):
            raise UsageError(f"no chapter {unknown}")


READS = ("model", "first_stage", "text_encoder", "start", "network", "image", "mask", "refiner", "points", "paths", "folder",
         "adapters", "new_words", "control", "change", "inception", "clip", "lpips", "source")


def reads(path: str, context) -> list[str]:
    """Files and folders that the command line names and that have to be there."""
    said = {name: value for name, value in context.params.items() if name in READS and value is not None
            and context.get_parameter_source(name).name == "COMMANDLINE" and (name, path) != ("folder", "start")}
    found = []
    for name, value in said.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            match name:
                case "change":
                    found += [each.split("=")[1]] if each.startswith("data.source=") else []
                case "control":
                    network, _, picture = weighted(each)[0].partition("=")
                    found += [network, picture]
                case "source":
                    found += [each] if each not in architecture.names() else []
                case "adapters" | "new_words":
                    found.append(weighted(each)[0])
                case _:
                    found.append(str(each))
    return found


def writes(path: str, p: dict) -> list[str]:
    """What is there afterwards."""
    if path == "train":
        made = [p["out"] or f"runs/{p['kind']}-{p['preset']}"] if p["kind"] and not p["list_all"] else []
    else:
        made = [p.get("out"), p["folder"] if path == "start" else None]
    made += [p.get(name) for name in ("attention", "animate", "latents", "page")]
    return [str(file) for file in made if file is not None]


def exists(file: str, there: set[str]) -> bool:
    parents = [str(place) for place in (Path(file), *Path(file).parents)]
    if any(place in there or place in YOURS or place in shipped.names() for place in parents[:-1] or parents):
        return True
    return Path(file).parts[0] not in OF_THE_READER and (ROOT / file).exists()


def check_module(words: list[str], there: set[str]) -> None:
    """python -m course.x: its `main` is a command for typer."""
    module = importlib.import_module(words[0])
    assert parsed(words[1:], module_command(module)) is not None
    if words[0] == "course.shipped":
        assert exists(words[1], there)


def module_command(module):
    app = typer.Typer(add_completion=False)
    app.command()(module.main)
    return typer.main.get_command(app)


def check_translation(words: list[str], there: set[str]) -> None:
    assert set(words[2:]) <= set(test_translation.HEADINGS[words[1]]), words


def check_make(words: list[str], there: set[str]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("$(VENV)", ".venv")
    targets = [word for word in words[1:] if "=" not in word]
    assert targets, "no target: that is `make help`"
    for target in targets:
        assert re.search(rf"^(?:[\w-]+ )*{re.escape(target)}(?: [\w-]+)*:", makefile, re.M), f"no target {target}"
        for line in re.findall(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", makefile, re.M):
            for command in re.findall(r"\$\(BIN\)/(course .*)", line):              # runs/demo, my-notebooks
                check(command.replace(" $(ARGS)", ""), there)
    for word in set(words[1:]) - set(targets):
        assert re.search(rf"^{word.split('=')[0]} +\?=", makefile, re.M), f"no variable {word}"


def check_pip(words: list[str], there: set[str]) -> None:
    from pip._internal.commands import create_command
    options, packages = create_command(words[1]).parse_args(words[2:])
    if words[1] != "install":
        return
    for file in [*options.constraints, *options.requirements]:
        assert exists(file, there), f"no {file}"
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
    for editable in options.editables:
        asked = re.fullmatch(r"\.(?:\[([\w,]+)\])?", editable)
        assert asked and set((asked[1] or "").split(",")) <= extras | {""}, editable
    assert packages or options.editables


def check_pytest(words: list[str], there: set[str]) -> None:
    options = PYTEST.parse(words[1:])                          # raises pytest.UsageError
    for name in options.file_or_dir:
        assert (ROOT / name.split("::")[0]).exists(), f"no {name}"


def check_torchrun(words: list[str], there: set[str]) -> None:
    from torch.distributed.run import get_args_parser
    options = get_args_parser().parse_args(words[1:])
    assert options.module and options.training_script == "course"
    check_course(["course", *options.training_script_args], there)


def check_docker(words: list[str], there: set[str]) -> None:
    """Docker's own options are not looked at; what runs inside is, and what the Dockerfile has to know."""
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    for before, word in zip(words, words[1:], strict=False):
        if before == "--build-arg":
            assert f"ARG {word.split('=')[0]}=" in dockerfile, word
        if before == "-v" and "/home/" in word:
            assert f"WORKDIR {word.split(':')[1].rsplit('/', 1)[0]}\n" in dockerfile, word
    if "IMAGE" in words:
        mounted = {word.split(":")[1] for before, word in zip(words, words[1:], strict=False) if before == "-v"}
        check_course(words[words.index("IMAGE") + 1:], there | mounted)


def check_export(words: list[str], there: set[str]) -> None:
    name = words[1].split("=")[0]
    assert any(f'"{name}"' in path.read_text("utf-8") for path in (ROOT / "solutions").glob("*.py")), f"nothing reads {name}"


def free(words: list[str], there: set[str]) -> None:
    """Programs of the system, and those that are tried by running them: see test_commands."""


PYTEST = None                                                  # pytest's own parser; the test puts it here
CHECKS = {"course": check_course, "make": check_make, "pip": check_pip, "pytest": check_pytest, "torchrun": check_torchrun,
          "docker": check_docker, "export": check_export, "tests.test_translation": check_translation, "venv": free}
CHECKS |= dict.fromkeys(["git", "cd", "mkdir", "cp", "grep", "ruff", "pre-commit"], free)
