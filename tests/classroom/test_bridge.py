"""Through the bridge a check says the same as beside the answer: points and words, gradients, modules and recorders included."""

import os
import socket
import sys
import types
from unittest import mock

import cloudpickle
import pytest
import torch
from torch import nn

from course.classroom import checks, mutants
from course.classroom.bridge import Bridge
from course.classroom.plugin import changes_what_it_is_given, fitting
from course.classroom.wire import HEAD, Channel, Interrupted
from tests.classroom.children import Child

ANSWERS = mutants.load()


cloudpickle.register_pickle_by_value(sys.modules[__name__])     # answers are functions and classes of this file


def through(id: str, answer) -> checks.Result:
    exercise, changes = checks.find(id), changes_what_it_is_given(id)
    with Child(answer) as bridge:
        return exercise.run(lambda *a, **k: bridge.named("answer")(*a, **k),
                            lambda kind: bridge.reset(changes or kind == "hygiene"))


def compare(id: str, name: str, answer) -> None:
    """Right answers get all, wrong ones no point more than beside the check (and hardly ever one less)."""
    far, near = through(id, answer), checks.find(id).run(answer)
    said = f"{name}: {far.points} through the bridge, {near.points} beside the check\n{far.messages}"
    assert far.passed == near.passed and far.points <= near.points, said
    if near.passed:
        assert far.messages == near.messages, said


@pytest.mark.parametrize("id", list(checks.exercises()))
def test_the_courses_answer_is_right_and_the_first_wrong_one_wrong(id):
    compare(id, "own", mutants.own(id))
    compare(id, *ANSWERS[id].wrong[0][:2])


@pytest.mark.skipif(not os.environ.get("COURSE_CLASS"), reason="`make class` runs it")
@pytest.mark.slow
@pytest.mark.parametrize("id", list(checks.exercises()))
def test_every_answer_gets_the_same_points_and_words(id):
    for name, answer, *_ in ANSWERS[id].wrong + ANSWERS[id].right:
        compare(id, name, answer)


@pytest.mark.parametrize("id", list(checks.exercises()))
def test_right_answers_are_right_whatever_the_inputs(id):
    """The grader draws other inputs than the notebook: they are at most redrawn, and cost nobody points."""
    for salt in (1, 2**39 + 12345, 2**40 - 50):
        with checks.fresh(fitting(id, salt)):
            for name, answer in (("own", mutants.own(id)), *ANSWERS[id].right[:3]):
                result = checks.find(id).run(answer)
                assert result.passed, (salt, name, result.messages)


@pytest.mark.slow
@pytest.mark.parametrize("id", list(checks.exercises()))
def test_wrong_answers_are_wrong_whatever_the_inputs(id):
    for salt in (12345, 777, 2**35 + 1):
        with checks.fresh(fitting(id, salt)):
            accepted = [name for name, answer, *_ in ANSWERS[id].wrong if checks.find(id).run(answer).passed]
        assert accepted == [], salt


def test_fresh_inputs_are_others_and_come_back():
    before = checks.normal((3,), 1)
    with checks.fresh(5):
        once, again = checks.normal((3,), 1), checks.normal((3,), 1)
    assert torch.equal(once, again) and not torch.equal(once, before) and torch.equal(checks.normal((3,), 1), before)


# ---- what crosses

@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", (1, (2, "x")), [1, [2.0]], {"a": 1, 2: [None]}, {1, 2},
                                   slice(1, None, 2), torch.float64, torch.Size([2, 3]), float("inf")])
def test_plain_values_come_back_as_they_are(value):
    with Child(lambda x: x) as bridge:
        back = bridge.named("answer")(value)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
                                   torch.complex64])
def test_tensors_of_every_kind_and_shape_cross(dtype):
    with Child(lambda x: (x.clone(), x.flatten()[:0])) as bridge:
        for shape in ((), (3,), (2, 0, 3), (2, 3, 4)):
            value = (10 * torch.rand(shape)).to(dtype)
            same, empty = bridge.named("answer")(value)
            assert torch.equal(same, value) and same.dtype == dtype and empty.shape == (0,)
        for value in (torch.ones(()).to(dtype).expand(1, 1), torch.ones(3, 1).to(dtype).expand(3, 4).T):
            assert torch.equal(bridge.named("answer")(value)[0], value)             # many values in one place of memory


def test_gradients_of_both_sides_and_of_a_function_in_between():
    weight = torch.tensor(3.0, requires_grad=True)

    def answer(f, x):
        inner = torch.tensor([2.0], requires_grad=True)
        slope, = torch.autograd.grad(f(inner * inner).sum(), inner)             # through the other side and back: 4 * 3
        return f(x.sin()) * 2 + x, slope
    with Child(answer) as bridge:
        x = torch.randn(4, requires_grad=True)
        out, slope = bridge.named("answer")(lambda v: weight * v, x)
        to_x, to_weight = torch.autograd.grad(out.sum(), (x, weight))
    assert torch.allclose(to_x, 6 * x.cos() + 1) and torch.allclose(to_weight, 2 * x.sin().sum())
    assert slope.item() == 12


def test_second_derivatives_cross():
    with Child(lambda x: x**3) as bridge:
        x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        first, = torch.autograd.grad(bridge.named("answer")(x), x, create_graph=True)
        second, = torch.autograd.grad(first, x)
    assert (first.item(), second.item()) == (12.0, 12.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.norm = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2)]), nn.BatchNorm1d(2)
        self.width = 3

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def test_a_module_of_the_other_side_is_trained_loaded_and_switched_as_any():
    with Child(Net) as bridge:
        far, near = bridge.named("answer")(), Net()
        assert isinstance(far, nn.Module) and isinstance(far.layers[0], nn.Linear) and far.width == 3
        far.load_state_dict(near.state_dict())
        x = torch.randn(5, 2)
        for _ in range(3):
            for net in (far, near):
                optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
                optimizer.zero_grad()
                net(x).square().sum().backward()
                optimizer.step()
        weights = zip(far.state_dict().values(), near.state_dict().values(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in weights)
        assert torch.allclose(far.eval()(x), near.eval()(x), atol=1e-6) and not far.training


def test_a_module_that_is_handed_over_is_changed_only_where_that_is_the_exercise():
    def zero(net):
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()
        net.layers[0] = nn.Linear(2, 3, bias=False)
    for allowed in (False, True):
        with Child(zero) as bridge:
            bridge.reset(lend_for_change=allowed)
            net = Net()
            bridge.named("answer")(net)
            assert (net.layers[1].weight.abs().sum() == 0) == allowed
            assert (net.layers[0].bias is None) == allowed


def test_a_weight_that_became_a_plain_tensor_is_one_here_too():
    """`del layer.weight` and a sum in its place: a merge with its graph, which a check has to see."""
    class Merged(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.change = layer, nn.Parameter(torch.ones(2, 2))

        def merge(self):
            changed = self.layer.weight + self.change
            del self.layer.weight
            self.layer.weight = changed

        def zero(self):
            with torch.no_grad():
                self.layer.weight.zero_()

        def forward(self, x):
            return self.layer(x)
    with Child(Merged) as bridge:
        bridge.reset(lend_for_change=True)
        layer, x = nn.Linear(2, 2), torch.ones(1, 2)
        far, before = bridge.named("answer")(layer), layer(x).detach()
        far.merge()
        assert layer.weight is far.layer.weight and layer.weight.requires_grad and not layer.weight.is_leaf
        assert torch.allclose(layer(x), before + 2) and torch.allclose(far(x), before + 2)
        layer(x).sum().backward()
        assert torch.equal(far.change.grad, torch.ones(2, 2))
        far.zero()
        assert not layer.weight.any() and set(layer.state_dict()) == {"bias"}
        layer.weight = nn.Parameter(torch.ones(2, 2))           # and back
        assert torch.allclose(far(x), 2 + layer.bias) and set(far.layer.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("name", ["forward", "seen", "training"])
def test_no_other_attribute_of_what_was_lent_can_become_a_tensor(name):
    def answer(layer):
        vars(layer)[name] = torch.ones(2)
        layer.weight = None
    with Child(answer) as bridge:
        bridge.reset(lend_for_change=True)
        layer = nn.Linear(2, 2)
        layer.seen = "mine"
        with pytest.raises(Interrupted):
            bridge.named("answer")(layer)
        assert layer.seen == "mine" and not isinstance(layer.forward, torch.Tensor)


def test_an_adapter_put_into_a_module_works_from_there():
    class Low(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.scale = inner, nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.scale * self.inner(x)

    def inject(net):
        for i, layer in enumerate(net.layers):
            if isinstance(layer, nn.Linear):
                net.layers[i] = Low(layer)
    with Child(inject) as bridge:
        bridge.reset(lend_for_change=True)
        net, x = nn.ModuleDict({"a": nn.Linear(2, 2)}), torch.randn(3, 2)
        net.layers = nn.ModuleList([nn.Linear(2, 2)])
        before = net.layers[0](x)
        bridge.named("answer")(net)
        after = net.layers[0](x)
        assert torch.allclose(after, 2 * before, atol=1e-6)
        after.sum().backward()
        assert net.layers[0].scale.grad is not None and net.layers[0].inner.weight.grad is not None


def test_lists_dicts_generators_and_errors_cross():
    def answer(batches, table, generator):
        table["sum"] = sum(float(b.sum()) for b in batches)
        if generator is None:
            raise KeyError("no generator")
        return torch.randn(2, generator=generator)
    with Child(answer) as bridge:
        bridge.reset(lend_for_change=True)
        table, generator = {"old": 1}, torch.Generator().manual_seed(3)
        out = bridge.named("answer")((torch.ones(2) for _ in range(3)), table, generator)
        expected = torch.Generator().manual_seed(3)
        assert torch.equal(out, torch.randn(2, generator=expected)) and table == {"old": 1, "sum": 6.0}
        assert torch.equal(torch.rand(1, generator=generator), torch.rand(1, generator=expected))
        with pytest.raises(KeyError, match="no generator"):
            bridge.named("answer")([], {}, None)


def test_an_attribute_is_deleted_where_the_exercise_is_to_change_it():
    """`mock.patch.object` takes the new attribute away before it puts the old one back."""
    for allowed in (True, False):
        with Child(lambda place: mock.patch.object(place, "part", "mine")) as bridge:
            bridge.reset(lend_for_change=allowed)
            place = types.SimpleNamespace(part="the library's", _secret=1)
            manager = bridge.named("answer")(place)
            if allowed:
                with manager:
                    assert place.part == "mine"
            else:
                with pytest.raises(AttributeError):
                    manager.__enter__()
            assert vars(place) == {"part": "the library's", "_secret": 1}


@pytest.mark.parametrize("name", ["part", "_secret", "__class__"])
def test_nothing_is_deleted_without_leave(name):
    def answer(place):
        delattr(place, name)
    with Child(answer) as bridge:
        bridge.reset(lend_for_change=name != "part")
        place = types.SimpleNamespace(part="the library's", _secret=1)
        with pytest.raises(AttributeError, match="cannot be set"):
            bridge.named("answer")(place)
        assert vars(place) == {"part": "the library's", "_secret": 1}


# ---- what does not cross

class Recorder:
    def __init__(self):
        self.seen, self._secret = [], "hidden"

    def __call__(self, x):
        self.seen.append(x)
        return x


Recorder.__module__ = "course.test"                             # as the recorders of the checks


def test_the_grader_shows_nothing_but_public_attributes():
    def answer(recorder, function, module):
        found = []
        for thing, name in ((recorder, "_secret"), (recorder, "__class__"), (function, "__globals__"), (function, "gi_frame")):
            try:
                found.append(thing._bridge.ask("get", thing._number, name))
            except AttributeError:
                pass
        for name in ("register_forward_hook", "load_state_dict", "apply", "_parameters", "__class__"):
            try:
                found.append(module._bridge.ask("get", module._number, name))
            except AttributeError:
                pass
        recorder.seen.append("forged")
        return len(found), recorder.seen
    with Child(answer) as bridge:
        recorder = Recorder()
        assert bridge.named("answer")(recorder, lambda: 1, nn.Linear(1, 1)) == (0, ["forged"][:0])
        assert recorder.seen == []


@pytest.mark.parametrize("frame", [
    HEAD.pack(10, 1 << 60), HEAD.pack((1 << 32) - 1, 0), HEAD.pack(2, 0) + b"[]", HEAD.pack(3, 0) + b"\xff\xfe\xfd",
    HEAD.pack(100_000, 0) + b"[" * 100_000,
    HEAD.pack(13, 0) + b'{"value": {}}'])
def test_what_is_no_answer_ends_the_run(frame):
    mine, theirs = socket.socketpair()
    with mine, theirs:
        theirs.sendall(frame)
        with pytest.raises(Interrupted):
            Bridge(Channel(mine, 5), strict=True).named("answer")


def test_a_silent_kernel_is_a_timeout_and_a_dead_one_is_killed():
    mine, theirs = socket.socketpair()
    with mine, pytest.raises(Interrupted) as caught:
        Bridge(Channel(mine, 0.2), strict=True).named("answer")
    assert caught.value.status == "timeout"
    theirs.close()
    mine, theirs = socket.socketpair()
    theirs.close()
    with mine, pytest.raises(Interrupted) as caught:
        Bridge(Channel(mine, 5), strict=True).named("answer")
    assert caught.value.status == "killed"


def test_what_an_answer_does_to_a_list_it_was_lent_shows_in_its_result_alone():
    def answer(items):
        items[0] = items[0] + 1
        items[1] += 1                                           # in place, in the list and in the tensor
        return items
    with Child(answer) as bridge:
        bridge.reset(lend_for_change=False)
        items = [torch.zeros(2), torch.zeros(2)]
        for _ in range(2):
            out = bridge.named("answer")(items)
            assert [t.tolist() for t in out] == [[1, 1], [1, 1]] and [t.tolist() for t in items] == [[0, 0], [0, 0]]
        bridge.reset(lend_for_change=True)
        assert bridge.named("answer")(items) is items and [t.tolist() for t in items] == [[1, 1], [1, 1]]


def test_memory_that_is_shared_over_there_is_shared_here():
    def share(one, other):
        one.weight.data = other.weight.data
    with Child(share) as bridge:
        bridge.reset(lend_for_change=True)
        one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        bridge.named("answer")(one, other)
        with torch.no_grad():
            other.weight.fill_(7)
        assert one.weight.flatten().tolist() == [7] * 4
