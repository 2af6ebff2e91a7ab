"""Exercise 7: the average of the weights."""

import copy

import torch
from torch import Tensor, nn

from course.classroom.checks import Exercise, compare, tensor_like
from course.classroom.checks.ch06.answers import update_average

UPDATE_AVERAGE = Exercise("loop.update_average", points=2, minutes=10, reference=update_average)


def _model(value: float) -> nn.Module:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)
    return model


def _average(model) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _after(fn, old: float, new: float, step: int, decay: float) -> dict[str, Tensor]:
    average = _average(_model(old))
    kept = dict(average)
    fn(average, _model(new), step, decay)
    return {name: average[name] for name in kept}


@UPDATE_AVERAGE.gate("changes `average`, a dictionary of tensors by name, where it stands")
def _(fn):
    average = _average(_model(1.0))
    fn(average, _model(3.0), 100, 0.5)
    if set(average) != {"weight", "bias"}:
        return f"the names should stay weight and bias, got {', '.join(map(str, average))}"
    for name, shape in (("weight", (2, 2)), ("bias", (2,))):
        if problem := tensor_like(average[name], shape):
            return f"{name}: {problem}"
    if all(bool((v == 1).all()) for v in average.values()):
        return "the average has not changed: write the new values into the dictionary"


@UPDATE_AVERAGE.property("worked by hand: decay 0.9, average 10, weights 20, long after the start: 11")
def _(fn):
    for name, value in _after(fn, 10, 20, 100_000, 0.9).items():
        right = torch.full_like(value, 11.0)
        if problem := compare(value, right, {
                "the two shares are exchanged: the average keeps the share `decay`": right + 8,
                "the shares do not add up to 1: decay and 1 - decay": right + 18,
                "the weights are not mixed in": right - 2, "the weights replace the average": right + 9,
                "the average is not multiplied by decay": right + 1}):
            return f"{name}: {problem}"


@UPDATE_AVERAGE.property("at the start the decay is only (1 + step) / (10 + step)")
def _(fn):
    for step, share in ((0, 0.1), (8, 0.5), (80, 0.9)):
        value = _after(fn, 10, 20, step, 0.999)["weight"]
        right = torch.full_like(value, 20 - 10 * share)
        if problem := compare(value, right, {
                "the warm-up is missing: min(decay, (1 + step) / (10 + step))": torch.full_like(value, 10.01),
                "the larger of the two is taken: it should be the smaller": torch.full_like(value, 10.01),
                "the two shares are exchanged": 30 - right,
                "step is counted from 1: step 0 has the decay 1/10": torch.full_like(value, 20 - 10 * (step + 2) / (step + 11))}):
            return f"step {step}: {problem}"


@UPDATE_AVERAGE.property("many steps towards constant weights arrive there")
def _(fn):
    average, model = _average(_model(3.0)), _model(5.0)
    for step in range(200):
        fn(average, model, step, 0.9)
    if not bool((model.weight == 5).all()):
        return "the weight of the model was changed: only the average moves"
    return compare(average["weight"], torch.full((2, 2), 5.0), rtol=1e-3)


@UPDATE_AVERAGE.hygiene("the weights stay as they were, and the average is no part of their graph")
def _(fn):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before, average = copy.deepcopy(model.state_dict()), _average(model)
    for step in range(3):
        fn(average, model, step, 0.9)
    if any(v.requires_grad for v in average.values()):
        return "the average has a gradient: it would keep the graph of every step; use torch.no_grad() or .detach()"
    for name, value in model.state_dict().items():
        if not torch.equal(value, before[name]):
            return f"{name} of the model was changed: only the average moves"
    parameters = dict(model.named_parameters())
    shared = [name for name, v in average.items() if v.data_ptr() == parameters[name].data_ptr()]
    return f"the average of {shared[0]} is the very tensor of the model: it would move with it" if shared else None
