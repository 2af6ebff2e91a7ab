"""Every check rejects each wrong answer with a fitting sentence, accepts each right one, and survives whatever it is given."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch

from course.classroom import check, checks, mutants

ANSWERS = mutants.load()
WRONG = [(id, *rest) for id, answers in ANSWERS.items() for rest in answers.wrong]
RIGHT = [(id, *rest) for id, answers in ANSWERS.items() for rest in answers.right]
IDS = list(checks.exercises())


@pytest.mark.parametrize("id, name, answer, words", WRONG, ids=[f"{i}-{n}" for i, n, *_ in WRONG])
def test_a_wrong_answer_is_rejected_with_a_fitting_sentence(id, name, answer, words):
    result = checks.find(id).run(answer)
    assert not result.passed
    assert result.points < result.max_points
    first = next(line for line in result.messages if line.startswith("✗"))
    assert words in first, first


@pytest.mark.parametrize("id, name, answer", RIGHT, ids=[f"{i}-{n}" for i, n, _ in RIGHT])
def test_a_right_answer_is_accepted(id, name, answer):
    result = checks.find(id).run(answer)
    assert result.passed, "\n".join(result.messages)
    assert result.points == result.max_points
    assert all(line.startswith("✓") for line in result.messages)


@pytest.mark.parametrize("id", IDS)
def test_every_exercise_ships_enough_answers_and_its_own_is_right(id):
    assert mutants.missing(id, ANSWERS) == []
    assert checks.find(id).run(mutants.own(id)).passed


def test_the_tally_counts_what_is_rejected_and_what_is_not():
    id = "schedule.timesteps"
    right, wrong = mutants.own(id), lambda *a, **k: torch.zeros(3)
    answers = {id: mutants.Answers(wrong=[("a", wrong, "expected"), ("b", right, ""), ("c", wrong, "some other words")],
                                   right=[("d", right), ("e", wrong)])}
    tally = mutants.tally(answers)
    assert (tally.wrong, tally.killed, tally.right, tally.accepted) == (3, 1, 2, 1)
    assert len(tally.problems) == 3 and "b was accepted" in tally.problems[0] and "e was rejected" in tally.problems[-1]


def test_an_exercise_without_answers_is_named():
    answers = {"schedule.timesteps": mutants.Answers(wrong=ANSWERS["schedule.timesteps"].wrong[:3], right=[])}
    assert mutants.missing("schedule.timesteps", answers) == ["schedule.timesteps has 3 wrong answers, needed are 4",
                                                               "schedule.timesteps has 0 right answers, needed are 3"]
    assert len(mutants.missing("schedule.log_snr", answers)) == 2


def fails_to_run(*arguments, **options):
    raise ZeroDivisionError("division by zero\nand a second line")


def leaves(*arguments, **options):
    sys.exit(3)


def prints_and_warns(*arguments, **options):
    print("debugging")
    print("debugging", file=sys.stderr)
    return None


class Empty(torch.nn.Module):
    """A module that takes anything and does nothing."""

    def __init__(self, *arguments, **options):
        super().__init__()

    def forward(self, *arguments, **options):
        return None


class Same(Empty):
    def forward(self, x, *arguments, **options):
        return x


WEIRD = [None, 3, "a string", [1, 2], torch.ones(3), fails_to_run, leaves, prints_and_warns, lambda: 1, lambda *a, **k: None,
         lambda *a, **k: [1, 2], lambda *a, **k: (None, None, None), lambda *a, **k: torch.full((1000,), float("nan")), dict,
         lambda *a, **k: {"x": 1}, lambda *a, **k: (torch.ones(7), torch.ones(7)), object, torch.nn.Linear, Empty, Same,
         lambda x0, *a, **k: x0]


@pytest.mark.parametrize("id", IDS)
def test_no_object_makes_a_check_crash_or_pass(id):
    for weird in WEIRD:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            result = check(id, weird)
        assert not result.passed and result.points < result.max_points, weird
        assert "✗" in out.getvalue() and id in out.getvalue()
        assert err.getvalue() == "" and "debugging" not in out.getvalue(), weird


@pytest.mark.parametrize("id", IDS)
def test_a_stub_is_worth_nothing_and_reads_not_written_yet(id, capsys):
    def function(*arguments, **options):
        raise NotImplementedError(id)

    class Init(torch.nn.Module):
        def __init__(self, *arguments, **options):
            super().__init__()
            raise NotImplementedError(id)

    for stub in (function, Init):
        result = check(id, stub)
        assert result.points == 0 and not result.passed
        assert "not written yet" in capsys.readouterr().out


@pytest.mark.parametrize("id", IDS)
def test_a_check_leaves_the_random_state_alone(id):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    checks.find(id).run(ANSWERS[id].wrong[0][1])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("id", IDS)
def test_points_and_minutes_are_sensible(id):
    exercise = checks.find(id)
    assert 1 <= exercise.points <= 6 and 5 <= exercise.minutes <= 30
