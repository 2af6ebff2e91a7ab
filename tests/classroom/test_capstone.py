"""The detective names the part that breaks the picture, and no other."""

import math
import re

import nbformat
import pytest
import torch

from course import attention, layers, parts, samplers
from course.classroom import capstone, checks, collect, house, mutants, release
from course.classroom.release import ROOT
from course.errors import UsageError
from tests.classroom.test_working import with_answers

ANSWERS = mutants.load()
DRAWING = [id for id in ANSWERS if id in parts.PARTS and capstone.tasks_of(id)]


class NoTime(layers.ResBlock):
    def forward(self, x, time_emb=None):
        return super().forward(x, None if time_emb is None else 0 * time_emb)


class Renamed(layers.ResBlock):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.first = self.conv1
        del self.conv1


def late(denoiser, x, timesteps, **how):
    return samplers_ddim(denoiser, x, timesteps[1:], **how)


samplers_ddim = samplers.ddim


def own(name):
    """The library's part behind a name of its own."""
    module, attribute = name.split(".")
    part = getattr(__import__(f"course.{module}", fromlist=[attribute]), attribute)
    return type(attribute, (part,), {}) if isinstance(part, type) else lambda *a, **k: part(*a, **k)


def test_every_part_has_its_pictures_or_none():
    assert {name: capstone.tasks_of(name) for name in ("vq.VectorQuantizer", "objectives.diffusion_loss")} == {
        "vq.VectorQuantizer": (), "objectives.diffusion_loss": ()}
    assert capstone.tasks_of("samplers.heun") == ("heun",) and capstone.tasks_of("controlnet.HintNet") == ("edges",)
    with pytest.raises(UsageError, match="no such part"):
        capstone.tasks_of("layers.Nothing")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in parts.PARTS if capstone.tasks_of(name)])
def test_each_part_is_used_by_its_pictures(name):
    """A part that none of its pictures needs would never be found out."""
    part, calls = own(name), []

    def built(self, *arguments, **options):
        calls.append(1)
        part.__init__(self, *arguments, **options)

    def called(*arguments, **options):
        calls.append(1)
        return part(*arguments, **options)
    capstone.compare({name: type(part.__name__, (part,), {"__init__": built}) if isinstance(part, type) else called}, name)
    assert calls


def test_the_library_s_own_parts_give_its_picture_bit_for_bit():
    mapping = {name: own(name) for name in ("layers.ResBlock", "samplers.ddim", "attention.CrossAttention", "vae.Encoder")}
    found = capstone.diagnose(mapping)
    assert [f.verdict for f in found] == [capstone.EXACT] * 4 and not any(f.broken for f in found)
    assert capstone.report(found).startswith("4 parts, the library's picture")


def test_the_one_that_breaks_it_is_named_and_no_other():
    mapping = {name: own(name) for name in ("layers.Downsample", "samplers.ddim", "attention.CrossAttention", "vae.Decoder")}
    found = capstone.diagnose(mapping | {"layers.ResBlock": NoTime})
    assert [f.part for f in found if f.broken] == ["layers.ResBlock"]
    bad = found[-1]
    assert bad.verdict == capstone.OTHER and bad.distance > 5 and set(bad.pictures) == {"words", "picture"}
    assert "its check: " in bad.says and "broken by layers.ResBlock" in capstone.report(found)


def test_two_at_once_are_both_named():
    found = capstone.diagnose({"layers.ResBlock": NoTime, "layers.Upsample": own("layers.Upsample"), "samplers.ddim": late})
    assert [f.part for f in found if f.broken] == ["layers.ResBlock", "samplers.ddim"]


def test_what_does_not_load_or_raises_is_a_finding():
    found = capstone.compare({"layers.ResBlock": Renamed}, "layers.ResBlock")
    assert found.verdict == capstone.FAILS and "first" in found.says and found.distance == math.inf

    def quits(*arguments, **options):
        raise SystemExit(3)
    assert capstone.compare({"samplers.ddim": quits}, "samplers.ddim").verdict == capstone.FAILS


def test_no_number_and_another_shape_are_infinitely_far():
    one = {"words": torch.zeros(3, 4, 4)}
    assert capstone.difference({"words": torch.full((3, 4, 4), torch.nan)}, one) == math.inf
    assert capstone.difference({"words": torch.zeros(3, 4, 5)}, one) == math.inf
    assert abs(capstone.difference({"words": torch.full((3, 4, 4), 2 / 255)}, one) - 1) < 1e-4


def test_parts_that_break_it_only_together_are_said_to():
    class Double(attention.GEGLU):                             # each speaks of twice what it is asked where the other is there
        def forward(self, x):
            return super().forward(x) * (2 if isinstance_of_mine(layers.Upsample) else 1)

    class Mine(layers.Upsample):
        pass

    def isinstance_of_mine(kind):
        return kind is Mine
    found = capstone.diagnose({"attention.GEGLU": Double, "layers.Upsample": Mine})
    assert [f.part for f in found if f.broken] == [None]
    assert "several parts together" in capstone.report(found)


def test_what_a_picture_does_not_show_the_check_says():
    answers = {name: answer for name, answer, _ in ANSWERS["vq.VectorQuantizer"].wrong}
    name, answer = next(iter(answers.items()))
    [found] = capstone.diagnose({"vq.VectorQuantizer": answer})
    assert found.verdict == capstone.UNSEEN and found.broken and "its check" in found.says


# ---- the answers of the mutation suite

def wrong_ones(few):
    return [pytest.param(id, name, answer, id=f"{id}-{name}") for id in DRAWING
            for k, (name, answer, _) in enumerate(ANSWERS[id].wrong) if (k % 6 == 0) == few]


def is_named(id, answer):
    """Among parts that are right, exactly this one is named; whether by its picture."""
    others = {"layers.Upsample": own("layers.Upsample"), "attention.FeedForward": own("attention.FeedForward")}
    found = capstone.diagnose(others | {id: answer})
    assert [f.part for f in found if f.broken] == [id], capstone.report(found)


@pytest.mark.parametrize("id, name, answer", wrong_ones(few=True))
def test_a_wrong_answer_on_the_way_is_named(id, name, answer):
    is_named(id, answer)


@pytest.mark.slow
@pytest.mark.parametrize("id, name, answer", wrong_ones(few=False))
def test_every_wrong_answer_on_the_way_is_named(id, name, answer):
    is_named(id, answer)


@pytest.mark.slow
@pytest.mark.parametrize("id", DRAWING)
def test_every_right_answer_draws_the_library_s_picture(id):
    for name, answer in ANSWERS[id].right:
        [found] = capstone.diagnose({id: answer})
        assert not found.broken and found.distance < 0.01, f"{name}: {found}"


BUILT = [(path, part, name) for path in release.chapters()
         for part, name in re.findall(r'^# %% part="([^"]+)" is="([^"]+)"', path.read_text("utf-8"), flags=re.M)
         if capstone.tasks_of(part)]


def try_built(path, part, name, every):
    """With each wrong answer the part is named, or, where no picture shows it, the check of the answer says so."""
    cells = [c for c in release.notebooks(path)[0].cells if c.cell_type == "code"]
    [cell] = [c for c in cells if c.metadata.get("course", {}).get("part") == part]
    space: dict = {"__name__": "of_a_student"}
    for earlier in cells[:cells.index(cell) + 1]:
        collect._define(earlier.source, space, path.name)
    tried = 0
    for id, answer_name in collect._answers(cells).items():
        if re.search(rf"\b{answer_name}\b", cell.source) is None or id not in ANSWERS:
            continue
        for label, answer, _ in ANSWERS[id].wrong[:None if every else 1]:
            trial = space | {answer_name: answer}
            if collect._define(cell.source, trial, path.name):
                continue                                       # the class cannot even be defined
            found = capstone.diagnose({"layers.Upsample": own("layers.Upsample"), part: trial[name]})
            blamed = [f.part for f in found if f.broken]
            assert blamed in ([part], []), f"{label}: {capstone.report(found)}"
            assert blamed or not checks.find(id).run(answer).passed, label
            tried += 1
    return tried


@pytest.mark.parametrize("path, part, name", BUILT, ids=[part for _, part, _ in BUILT])
def test_a_part_built_from_a_wrong_answer_is_named(path, part, name):
    try_built(path, part, name, every=False)


@pytest.mark.slow
def test_every_wrong_answer_in_a_built_part():
    assert sum(try_built(*built, every=True) for built in BUILT) >= 10


# ---- the students' folder

def test_all_solutions_together_draw_the_library_s_picture(tmp_path):
    for path in release.chapters():
        nbformat.write(release.notebooks(path)[0], tmp_path / f"{path.stem}.ipynb")
    mine = parts.from_notebooks(tmp_path)
    assert set(mine.status.values()) == {collect.YOURS} and not mine.attempts
    found = capstone.diagnose(mine)
    assert not any(f.broken for f in found) and max(f.distance for f in found) < 1, capstone.report(found)
    tasks = tuple({task: 1 for name in mine for task in capstone.tasks_of(name)})
    together = capstone.difference(capstone.draw(mine, tasks), capstone.reference(tasks))
    assert together < 1


def test_what_was_written_and_is_wrong_is_kept_as_an_attempt(tmp_path):
    for name in ("05_forward_process", "06_unet_pixel_ddpm"):
        nbformat.write(release.notebooks(ROOT / "solutions" / f"{name}.py")[0], tmp_path / f"{name}.ipynb")
    with_answers(tmp_path / "06_unet_pixel_ddpm.ipynb", {
        "layers.timestep_embedding": "def timestep_embedding(t, dim, max_period=10_000):\n    return torch.zeros(len(t), dim)",
        "layers.ResBlock": "class ResBlock(nn.Module):\n    def __init__(self, *a, **k):\n        raise NotImplementedError"})
    with_answers(tmp_path / "05_forward_process.ipynb", {
        "schedule.add_noise": "def add_noise(x0, noise, t, alphas_cumprod):\n    return x0"})
    mine = parts.from_notebooks(tmp_path)
    assert set(mine.attempts) == {"layers.timestep_embedding", "schedule.NoiseSchedule"}
    assert not set(mine.attempts) & set(mine)
    found = capstone.diagnose(mine.attempts)
    assert {f.part: f.verdict for f in found if f.broken} == {
        "layers.timestep_embedding": capstone.OTHER, "schedule.NoiseSchedule": capstone.OTHER}


# ---- the house

def test_the_house_has_a_room_for_every_part_and_lights_the_student_s():
    rooms = [part for row in house.floors().values() for part in row]
    assert sorted(rooms) == sorted(parts.PARTS)
    figure = house.draw({"layers.ResBlock": "yours", "samplers.ddim": "library: not solved"}, ("vae.Encoder",), "the plate")
    axis = figure.axes[0]
    colors = [patch.get_facecolor() for patch in axis.patches]
    from matplotlib.colors import to_rgba
    assert colors.count(to_rgba(house.LIT)) == 1 and colors.count(to_rgba(house.BROKEN)) == 1
    words = [t.get_text() for t in axis.texts]
    assert "the plate" in words and "1 rooms lit" not in words and "1 room lit" in words
    assert any(w.replace("\n", "") == "BasicTransformerBlock" for w in words)
