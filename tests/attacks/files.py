"""Hostile files: each function makes one in a folder of a student, and returns what the mark's status has to be."""

import io
import json
import os
import stat
import zipfile
from pathlib import Path

from tests.attacks.cells import ID, WRONG

RIGHT = '''
def add_noise(x0, noise, t, alphas_cumprod):
    a = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return a.sqrt().to(x0) * x0 + (1 - a).sqrt().to(x0) * noise
'''
GRADE_ID = "schedule-add_noise"


def cell(source, grade_id=GRADE_ID, **metadata) -> dict:
    own = {"nbgrader": {"grade_id": grade_id, "solution": True, "grade": False, "schema_version": 3}} if grade_id else {}
    return {"cell_type": "code", "source": source, "metadata": own | metadata, "outputs": [], "execution_count": None, "id": "x"}


def notebook(*cells, **metadata) -> bytes:
    return json.dumps({"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}).encode()


def zipped(*entries) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return data.getvalue()


def invalid_json(folder: Path):
    (folder / "05_forward_process.ipynb").write_bytes(b'{"cells": [')
    return "blocked"


def deep_json(folder: Path):
    (folder / "05_forward_process.ipynb").write_bytes(b'{"cells": ' + b"[" * 200_000)
    return "blocked"


def no_text(folder: Path):
    (folder / "05_forward_process.ipynb").write_bytes(bytes(range(256)) * 10)
    return "blocked"


def a_million_cells(folder: Path):
    (folder / "05_forward_process.ipynb").write_bytes(b'{"cells":[' + b",".join([b"{}"] * 1_000_000) + b"]}")
    return "blocked"


def too_large(folder: Path):
    (folder / "05_forward_process.ipynb").write_bytes(notebook(cell("#" * (9 << 20))))
    return "blocked"


def one_cell_too_large(folder: Path):
    (folder / "a.ipynb").write_bytes(notebook(cell("#" * (1 << 20))))
    return "missing"


def zip_bomb(folder: Path):
    (folder / "a.zip").write_bytes(zipped(("05_forward_process.ipynb", bytes(1 << 28))))
    return "blocked"


def zip_of_many(folder: Path):
    (folder / "a.zip").write_bytes(zipped(*((f"{n}.ipynb", b"{}") for n in range(3000))))
    return "blocked"


def zip_with_a_link(folder: Path):
    entry = zipfile.ZipInfo("05_forward_process.ipynb")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    (folder / "a.zip").write_bytes(zipped((entry, "/etc/passwd")))
    return "blocked"


def zip_out_of_its_folder(folder: Path):
    (folder / "a.zip").write_bytes(zipped(("../../../05_forward_process.ipynb", notebook(cell(RIGHT))),
                                          ("/05_forward_process.ipynb", notebook(cell(RIGHT)))))
    return "blocked"


def damaged_zip(folder: Path):
    (folder / "a.zip").write_bytes(zipped(("05_forward_process.ipynb", notebook(cell(RIGHT))))[:-40])
    return "blocked"


def a_link(folder: Path):
    os.symlink("/etc/passwd", folder / "05_forward_process.ipynb")
    return "blocked"


def a_pipe(folder: Path):
    os.mkfifo(folder / "05_forward_process.ipynb")
    return "blocked"


def a_folder(folder: Path):
    (folder / "05_forward_process.ipynb").mkdir()
    (folder / "b.ipynb").write_bytes(notebook(cell(WRONG, "another")))
    return "missing"


def zero_width_id(folder: Path):
    (folder / "a.ipynb").write_bytes(notebook(cell(RIGHT, GRADE_ID + "\u200b"), cell(RIGHT, "\u2060" + GRADE_ID)))
    return "missing"


def id_of_the_check(folder: Path):
    (folder / "a.ipynb").write_bytes(notebook(cell(RIGHT, GRADE_ID + "-check", course={"exercise": ID, "role": "check"})))
    return "missing"


def metadata_of_other_kinds(folder: Path):
    cells = [{"cell_type": "code", "source": 7, "metadata": []}, {"cell_type": [], "source": RIGHT}, 3, None, [],
             {"cell_type": "code", "source": [1, 2], "metadata": {"nbgrader": {"grade_id": GRADE_ID}}},
             {"cell_type": "code", "source": RIGHT, "metadata": {"nbgrader": {"grade_id": [GRADE_ID]}, "course": "x"}}]
    (folder / "a.ipynb").write_bytes(notebook(*cells))
    return "missing"


def half_characters(folder: Path):
    (folder / "a.ipynb").write_bytes(notebook(cell("x = '\ud800'", "another"), cell("\udfff", "\ud800")))
    return "missing"


def a_list_of_names(folder: Path):
    (folder / "a.ipynb").write_bytes(b"[1, 2, 3]")
    return "blocked"


FILES = [invalid_json, deep_json, no_text, a_million_cells, too_large, one_cell_too_large, zip_bomb, zip_of_many, zip_with_a_link,
         zip_out_of_its_folder, damaged_zip, a_link, a_pipe, a_folder, zero_width_id, id_of_the_check, metadata_of_other_kinds,
         half_characters, a_list_of_names]
