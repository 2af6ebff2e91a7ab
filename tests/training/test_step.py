import torch

from course.training.step import Step


def draws(step):
    return [step.integers(100), step.uniform(), step.stratified(), step.normal(2, 3), step.normal(5)]


def test_rows_are_the_same_whoever_draws_them():
    whole = draws(Step(0, 7, 12))
    for size in (1, 5, 12):
        pieces = [draws(piece) for piece in Step(0, 7, 12).split(size)]
        for kind, expected in enumerate(whole):
            assert torch.equal(torch.cat([p[kind] for p in pieces]), expected)
    second = draws(Step(0, 7, 12, rows=range(6, 12)))
    assert all(torch.equal(mine, expected[6:]) for mine, expected in zip(second, whole, strict=True))


def test_steps_and_seeds_differ():
    a, b, c = (Step(seed, number, 64).normal(8).flatten() for seed, number in ((0, 0), (0, 1), (1, 0)))
    assert torch.corrcoef(torch.stack([a, b, c])).sub(torch.eye(3)).abs().max() < 0.2
    assert abs(a.mean()) < 0.2 and abs(a.std() - 1) < 0.2


def test_the_whole_batch_is_stratified():
    t = torch.cat([piece.stratified() for piece in Step(3, 1, 16).split(4)])
    assert (t * 16).long().sort().values.tolist() == list(range(16))
