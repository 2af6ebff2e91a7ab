"""api/: one page for each module of the library, in reading order; what stands on them comes from the docstrings."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
COMPONENTS = ("pixels", "schedule", "objectives", "layers", "attention", "unet", "vae", "vq", "tokenizer", "text", "losses",
              "samplers", "guidance", "sdxl", "controlnet", "lora", "inversion", "tiling", "heatmaps", "memo", "deepcache")
WHOLE = ("pipeline", "parts", "presets", "sample", "animation", "device", "errors", "files")
PACKAGES = {"published": "Released files", "data": "Data", "training": "Training", "adapt": "Adapters",
            "evaluation": "Evaluation", "classroom": "Classroom"}
INTRODUCTION = """\
Every module of ``course``, from its docstrings: shapes, units, errors, the paper and its equation. ``B`` is the batch, ``C H W``
a picture's axes, ``N`` tokens, ``D`` a width, ``h`` heads, ``T`` steps. *[source]* leads to the code, which is meant to
be read."""


def modules() -> dict[str, list[str]]:
    """Title -> dotted names below `course`, only those that say what they are."""
    groups = {"Components, in reading order": list(COMPONENTS), "The whole": list(WHOLE)}
    for package, title in PACKAGES.items():
        names = [p.stem for p in sorted((ROOT / "course" / package).glob("*.py")) if p.stem != "__init__"]
        groups[title] = [package, *(f"{package}.{name}" for name in names)]
    return {title: [name for name in names if summary(name)] for title, names in groups.items()}


def source(name: str) -> Path:
    base = ROOT / "course" / name.replace(".", "/")
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def summary(name: str) -> str | None:
    """The first sentence of a module's docstring."""
    path = source(name)
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) if path.is_file() else None
    return " ".join(text.split("\n\n")[0].split()).rstrip(":") if text else None


def pages() -> dict[str, str]:
    """File name -> reStructuredText."""
    made, index = {}, ["The library", "===========", "",
                       INTRODUCTION, ""]
    for title, names in modules().items():
        index += [title, "-" * len(title), "", ".. toctree::", "   :maxdepth: 1", "", *(f"   {name}" for name in names), ""]
        for name in names:
            head = f"course.{name}"
            made[f"api/{name}.rst"] = f"{head}\n{'=' * len(head)}\n\n.. automodule:: {head}\n"
    made["api/index.rst"] = "\n".join(index)
    return made
