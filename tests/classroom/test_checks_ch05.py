"""What checks have in common, on the exercises of chapter 05; and that its own answers equal the library's."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course import classroom, parts, schedule
from course.classroom import check, checks, use
from course.classroom.checks import ch05
from course.classroom.checks.ch05 import answers
from course.classroom.mutants import own
from course.errors import UsageError


def test_a_half_written_answer_keeps_the_points_of_the_written_half():
    def linear_only(steps, num_steps=1000, spacing="trailing"):
        if spacing == "leading" and num_steps != 10:
            raise NotImplementedError
        return answers.timesteps(steps, num_steps, spacing)
    result = checks.find("schedule.timesteps").run(linear_only)
    assert 0 < result.points < result.max_points
    assert "not written yet" in "\n".join(result.messages)


def test_the_result_reads_as_its_points():
    result = check("schedule.add_noise", own("schedule.add_noise"))
    assert float(repr(result)) == result.points == result.max_points == 3


def test_a_wrong_answer_raises_only_when_graded(monkeypatch):
    check("schedule.add_noise", None)
    monkeypatch.setenv("COURSE_GRADING", "1")
    with pytest.raises(checks.CheckFailed, match="schedule.add_noise"):
        check("schedule.add_noise", None)
    assert issubclass(checks.CheckFailed, AssertionError)
    assert check("schedule.add_noise", own("schedule.add_noise")).passed


def test_an_unknown_id_lists_the_known_ones():
    with pytest.raises(UsageError, match="schedule.add_noise"):
        check("schedule.ad_noise", None)


def test_use_keeps_what_passes_and_replaces_what_does_not(capsys):
    mine = own("schedule.add_noise")
    assert use("schedule.add_noise", mine) is mine
    assert capsys.readouterr().out == ""
    stand_in = use("schedule.add_noise", None)
    assert stand_in is answers.add_noise
    assert "course's own part" in capsys.readouterr().out


def test_the_part_that_stands_in_earns_nothing():
    result = check("schedule.add_noise", use("schedule.add_noise", None))
    assert result.points == 0
    assert "run the cell with your definition again" in result.messages[0]


def test_the_courses_answers_equal_the_library():
    for kind in schedule.KINDS:
        library = schedule.NoiseSchedule(1000, kind)
        betas, alphas_cumprod = answers.make_schedule(kind)
        torch.testing.assert_close(betas, library.betas)
        torch.testing.assert_close(alphas_cumprod, library.alphas_cumprod)
        t = torch.tensor([0, 10, 500, 999])
        x, noise = torch.randn(4, 2, 3, 3).double(), torch.randn(4, 2, 3, 3).double()
        x_t = library.add_noise(x, noise, t)
        torch.testing.assert_close(answers.add_noise(x, noise, t, alphas_cumprod), x_t)
        torch.testing.assert_close(answers.log_snr(alphas_cumprod)[0], library.snr(torch.arange(1000)).log())
        triple = {"x0": x, "eps": noise, "v": library.to_v(x, noise, t)}
        for given, prediction in triple.items():
            converted = answers.convert(x_t, prediction, t, alphas_cumprod, given)
            for found, right in zip(converted, triple.values(), strict=True):
                torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    for steps in (1, 7, 30, 50, 1000):
        for spacing in ("leading", "trailing"):
            assert torch.equal(answers.timesteps(steps, 1000, spacing), library.timesteps(steps, spacing))


def test_a_swapped_schedule_does_not_reach_the_checks():
    class Broken:
        def __init__(self, *arguments):
            raise RuntimeError
    with parts.swapped({"schedule.NoiseSchedule": Broken}):
        assert all(checks.find(e.id).run(own(e.id)).passed for e in ch05.EXERCISES)


def test_begin_refuses_another_version_and_an_unknown_profile(monkeypatch, capsys):
    with pytest.raises(UsageError, match="written for course 99.1"):
        classroom.begin(needs="99.1")
    monkeypatch.setenv("COURSE_PROFILE", "huge")
    with pytest.raises(UsageError, match="quick, cpu, gpu"):
        classroom.begin(needs="0.1")
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    session = classroom.begin(needs="0.1", seed=3)
    assert (session.profile, session.device, session.seed) == ("cpu", "cpu", 3)
    assert "profile cpu" in capsys.readouterr().out


def test_progress_is_a_bar_for_people_and_lines_for_machines(monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert list(classroom.track(range(10), "training")) == list(range(10))
    out, err = capsys.readouterr()
    assert out.splitlines() == ["training: 3 of 10", "training: 5 of 10", "training: 8 of 10", "training: 10 of 10"] and err == ""
    assert list(classroom.track([], "nothing")) == [] and list(classroom.track("ab", "two")) == ["a", "b"]
    assert capsys.readouterr().out.splitlines() == ["two: 1 of 2", "two: 2 of 2"]
    monkeypatch.setenv("JPY_SESSION_NAME", "somewhere.ipynb")
    assert list(classroom.track(range(3), "training")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == "" and "training: 100%" in err


def test_importing_the_classroom_is_cheap():
    code = "import sys, course.classroom; print([m for m in ('torch', 'numpy', 'IPython') if m in sys.modules])"
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == "[]" and found.stderr == ""


def test_a_slider_is_for_people_and_one_picture_for_machines(monkeypatch):
    import ipywidgets
    drawn, made = [], []
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    classroom.slider(drawn.append, 0, 9, start=4)
    assert drawn == [4]
    monkeypatch.setattr(ipywidgets, "interact", lambda draw, **moved: made.append(moved))
    monkeypatch.setenv("JPY_SESSION_NAME", "somewhere.ipynb")
    classroom.slider(lambda t: drawn.append(t), 0, 9, start=4)
    assert drawn == [4] and list(made[0]) == ["t"]
    knob = made[0]["t"]
    assert (knob.min, knob.max, knob.value) == (0, 9, 4)
