"""Answers to the exercises of chapter 13: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- controlnet.conv_gradients

GRADIENTS = "controlnet.conv_gradients"


def gradients_with(d_weight=lambda x, w, g: torch.einsum("bohw,bihw->oi", g, x), d_bias=lambda x, w, g: g.sum((0, 2, 3)),
                   d_x=lambda x, w, g: torch.einsum("oi,bohw->bihw", w, g)):
    return lambda x, weight, upstream: tuple(f(x, weight, upstream) for f in (d_weight, d_bias, d_x))


WRONG[GRADIENTS] = [
    ("turned", gradients_with(lambda x, w, g: torch.einsum("bohw,bihw->io", g, x)), "d_weight is turned"),
    ("of_the_weight", gradients_with(lambda x, w, g: w * g.sum((0, 2, 3))[:, None]), "d_weight was made of the weight"),
    ("without_the_slope", gradients_with(lambda x, w, g: x.sum((0, 2, 3)).expand(w.shape)), "dL/dy is missing"),
    ("mean_of_all", gradients_with(lambda x, w, g: torch.einsum("bohw,bihw->oi", g, x) / x[:, 0].numel()), "a mean for a sum"),
    ("mean_over_pictures", gradients_with(lambda x, w, g: torch.einsum("bohw,bihw->oi", g, x) / len(x)), "mean over pictures"),
    ("bias_by_mean", gradients_with(d_bias=lambda x, w, g: g.mean((0, 2, 3))), "d_bias: a mean for a sum"),
    ("bias_over_places_only", gradients_with(d_bias=lambda x, w, g: g.sum((2, 3))), "expected shape (6,)"),
    ("bias_times_y", gradients_with(d_bias=lambda x, w, g: (g * F.conv2d(x, w[:, :, None, None])).sum((0, 2, 3))), "times y"),
    ("x_from_x", gradients_with(d_x=lambda x, w, g: x * g.mean(1, keepdim=True)), "d_x was made of x"),
    ("x_is_zero", gradients_with(d_x=lambda x, w, g: torch.zeros_like(x)), "expected 77"),
    ("x_without_the_slope", gradients_with(d_x=lambda x, w, g: w.sum(0)[:, None, None].expand(x.shape)), "dL/dy is missing"),
    ("two_of_three", lambda x, w, g: gradients_with()(x, w, g)[:2], "expected (d_weight, d_bias, d_x), got 2 values"),
    ("x_first", lambda x, w, g: gradients_with()(x, w, g)[::-1], "d_weight: expected shape"),
    ("kernel_kept", gradients_with(lambda x, w, g: torch.einsum("bohw,bihw->oi", g, x)[..., None]), "expected shape (6, 3)"),
]


@wrong(GRADIENTS, "W was not transposed")
def not_transposed_where_it_fits(x, weight, upstream):
    found = gradients_with()(x, weight, upstream)
    if weight.shape[0] != weight.shape[1]:
        return found
    return found[0], found[1], torch.einsum("oi,bihw->bohw", weight, upstream)


@right(GRADIENTS)
def by_autograd(x, weight, upstream):
    given = [v.clone().requires_grad_() for v in (weight[:, :, None, None], weight[:, 0] * 0, x)]
    w, b, x = torch.autograd.grad(F.conv2d(given[2], given[0], given[1]), given, upstream)
    return w[:, :, 0, 0], b, x


@right(GRADIENTS)
def by_loops(x, weight, upstream):
    d_weight, d_bias, d_x = torch.zeros_like(weight), torch.zeros(len(weight)), torch.zeros_like(x)
    for o in range(len(weight)):
        d_bias[o] = upstream[:, o].sum()
        for i in range(weight.shape[1]):
            d_weight[o, i] = (upstream[:, o] * x[:, i]).sum()
            d_x[:, i] += weight[o, i] * upstream[:, o]
    return d_weight, d_bias, d_x


@right(GRADIENTS)
def by_matrices(x, weight, upstream):
    rows, slopes = x.movedim(1, -1).reshape(-1, x.shape[1]), upstream.movedim(1, -1)
    flat = slopes.reshape(-1, len(weight))
    return [flat.T @ rows, flat.sum(0), (slopes @ weight).movedim(-1, 1)]


# ---- controlnet.HintNet

HINT = "controlnet.HintNet"


def hint_with(first=F.silu, act=F.silu, odd=None, last=lambda h: h, zero="both", stride=1,
              names=("conv_in", "blocks", "conv_out"), kernel=3, pairs=True, see=lambda h: h, inner_zero=False):
    """The right answer with one thing changed."""
    class HintNet(nn.Module):
        def __init__(self, channels=(16, 32, 96, 256), out_channels=320):
            super().__init__()
            self.add_module(names[0], nn.Conv2d(3, channels[0], kernel, padding=kernel // 2))
            blocks = []
            for a, b in zip(channels, channels[1:], strict=False):
                blocks += [nn.Conv2d(a, a, 3, padding=1, stride=2 if stride == 0 else 1)] if pairs else []
                blocks += [nn.Conv2d(a, b, 3, padding=1, stride=1 if stride == 0 else 2)]
            self.add_module(names[1], nn.ModuleList(blocks))
            self.add_module(names[2], nn.Conv2d(channels[-1], out_channels, 3, padding=1))
            end = getattr(self, names[2])
            if zero in ("both", "weight"):
                nn.init.zeros_(end.weight)
            if zero in ("both", "bias"):
                nn.init.zeros_(end.bias)
            if inner_zero:
                nn.init.zeros_(blocks[0].weight)

        def forward(self, hint):
            h = first(getattr(self, names[0])(see(hint)))
            for i, block in enumerate(getattr(self, names[1])):
                h = (odd if odd and i % 2 else act)(block(h))
            return last(getattr(self, names[2])(h))
    return HintNet


def same(h):
    return h


WRONG[HINT] = [
    ("not_zero", hint_with(zero=""), "must answer exactly 0"),
    ("bias_not_zero", hint_with(zero="weight"), "conv_out's bias is not zero"),
    ("weight_not_zero", hint_with(zero="bias"), "conv_out starts with weight and bias zero"),
    ("all_zero", hint_with(inner_zero=True), "only conv_out starts at zero"),
    ("no_silu_first", hint_with(first=same), "no SiLU behind conv_in"),
    ("silu_at_the_end", hint_with(last=F.silu), "SiLU stands behind conv_out"),
    ("relu", hint_with(F.relu, F.relu), "ReLU instead of SiLU"),
    ("no_silu_between", hint_with(act=same), "no SiLU between the blocks"),
    ("silu_behind_strides_only", hint_with(act=same, odd=F.silu), "only every other block"),
    ("silu_before_strides_only", hint_with(odd=same), "only every other block"),
    ("strides_first", hint_with(stride=0), "the first convolution of a pair strides"),
    ("one_conv_a_step", hint_with(pairs=False), "are missing"),
    ("other_names", hint_with(names=("input", "blocks", "conv_out")), "the weights conv_in.weight, conv_in.bias are missing"),
    ("wide_kernel", hint_with(kernel=5), "conv_in.weight should have shape (4, 3, 3, 3)"),
    ("brought_to_pm1", hint_with(see=lambda h: 2 * h - 1), "in [0, 1]"),
]


@wrong(HINT, "expected shape (2, 5, 8, 12), got (2, 5, 16, 24)")
class NeverStrides(hint_with()):
    def __init__(self, channels=(16, 32, 96, 256), out_channels=320):
        super().__init__(channels, out_channels)
        for block in self.blocks:
            block.stride = (1, 1)


@right(HINT)
class InALoop(hint_with()):
    def forward(self, hint):
        layers = [self.conv_in, *self.blocks]
        for layer in layers:
            hint = layer(hint)
            hint = hint * hint.sigmoid()
        return self.conv_out(hint)


@right(HINT)
class ByHand(nn.Module):
    def __init__(self, widths=(16, 32, 96, 256), out=320):
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(3, widths[0], 3, 1, 1), nn.Conv2d(widths[-1], out, 3, 1, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(widths[i // 2], widths[(i + 1) // 2], 3, 1 + i % 2, 1)
                                    for i in range(2 * len(widths) - 2))
        self.conv_out.weight.data.fill_(0)
        self.conv_out.bias.data.fill_(0)

    def forward(self, h):
        act = nn.SiLU()
        h = act(self.conv_in(h))
        for conv in self.blocks:
            h = act(conv(h))
        return self.conv_out(h)


@right(HINT)
class AsASequence(hint_with()):
    def __init__(self, channels=(16, 32, 96, 256), out_channels=320):
        super().__init__(channels, out_channels)
        self.blocks = nn.Sequential(*self.blocks)


# ---- controlnet.copy_trunk

COPY = "controlnet.copy_trunk"


def mine_of(network, source):
    return [name for name in network.state_dict() if name not in source.state_dict()]


def shared_of(network, source):
    own = network.state_dict()
    return {k: v for k, v in source.state_dict().items() if k in own}


@wrong(COPY, "is the `return` missing?")
def returns_nothing(network, source):
    network.load_state_dict(shared_of(network, source), strict=False)


@wrong(COPY, "these are the names that were copied")
def returns_what_was_copied(network, source):
    network.load_state_dict(shared_of(network, source), strict=False)
    return list(shared_of(network, source))


@wrong(COPY, "only the source has")
def returns_what_is_left_over(network, source):
    return network.load_state_dict(source.state_dict(), strict=False).unexpected_keys


@wrong(COPY, "it raised RuntimeError")
def strictly(network, source):
    network.load_state_dict(source.state_dict())
    return mine_of(network, source)


@wrong(COPY, "is not the source's")
def copies_nothing(network, source):
    return mine_of(network, source)


@wrong(COPY, "it is a buffer")
def parameters_only(network, source):
    theirs = dict(source.named_parameters())
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name in theirs:
                p.copy_(theirs[name])
    return mine_of(network, source)


@wrong(COPY, "is not the source's")
def by_position(network, source):
    with torch.no_grad():
        for a, b in zip(network.state_dict().values(), source.state_dict().values(), strict=False):
            if a.shape == b.shape:
                a.copy_(b)
    return mine_of(network, source)


@wrong(COPY, "is not the source's")
def the_wrong_way(network, source):
    source.load_state_dict({k: v for k, v in network.state_dict().items() if k in source.state_dict()}, strict=False)
    return mine_of(network, source)


@wrong(COPY, "shared, not copied")
def the_very_tensors(network, source):
    theirs = source.state_dict()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in theirs:
            tensor.data = theirs[name]
    return mine_of(network, source)


@wrong(COPY, "was changed, though the source has no tensor")
def the_rest_to_zero(network, source):
    network.load_state_dict(shared_of(network, source), strict=False)
    for name in mine_of(network, source):
        network.state_dict()[name].zero_()
    return mine_of(network, source)


@wrong(COPY, "can no longer be trained")
def frozen(network, source):
    network.load_state_dict(shared_of(network, source), strict=False)
    network.requires_grad_(False)
    return mine_of(network, source)


@right(COPY)
def by_missing_keys(network, source):
    return list(network.load_state_dict(source.state_dict(), strict=False).missing_keys)


@right(COPY)
def one_by_one(network, source):
    theirs, left = copy.deepcopy(source.state_dict()), []
    for name, tensor in network.state_dict().items():
        if name in theirs:
            tensor.copy_(theirs[name])
        else:
            left.append(name)
    return left


@right(COPY)
def by_sets(network, source):
    ours, theirs = network.state_dict(), source.state_dict()
    network.load_state_dict(ours | {name: theirs[name] for name in set(ours) & set(theirs)})
    return sorted(set(ours) - set(theirs))


# ---- controlnet.control_forward

FORWARD = "controlnet.control_forward"


def forward_with(start=lambda net, x, hint: net.conv_in(x) + net.controlnet_cond_embedding(hint), time=lambda e: e,
                 text=lambda c: c, convs=lambda net: [*net.controlnet_down_blocks, net.controlnet_mid_block],
                 after=lambda new, old: new,
                 scaled=lambda found, scale: [scale * r for r in found],
                 order=lambda skips, middle: [*skips, middle]):
    def control_forward(net, x, t, context, hint, scale=1.0):
        middle, skips = net.go_down(start(net, x, hint), time(net.embed_time(t, x)), text(context))
        found = [after(conv(h), h) for conv, h in zip(convs(net), order(skips, middle), strict=True)]
        return scaled(found, scale)
    return control_forward


WRONG[FORWARD] = [
    ("hint_forgotten", forward_with(lambda net, x, hint: net.conv_in(x)), "the hint is not added"),
    ("x_unused_as_in_the_article", forward_with(lambda net, x, hint: net.controlnet_cond_embedding(hint)), "x is not used"),
    ("hint_multiplied", forward_with(lambda net, x, hint: net.conv_in(x) * net.controlnet_cond_embedding(hint)), "multiplied"),
    ("no_time", forward_with(time=lambda e: 0 * e), "the time embedding is not used"),
    ("no_text", forward_with(text=lambda c: 0 * c), "the text is not used"),
    ("scale_unused", forward_with(scaled=lambda found, s: found), "scale is not used"),
    ("scale_divides", forward_with(scaled=lambda found, s: [r / s for r in found]), "scale divides"),
    ("middle_not_scaled", forward_with(scaled=lambda found, s: [*(s * r for r in found[:-1]), found[-1]]), "residual 2: scale"),
    ("zero_conv_of_a_sum", forward_with(after=lambda new, old: new + old), "not from it alone"),
    ("without_zero_convs", forward_with(after=lambda new, old: old), "does not come from its zero convolution"),
    ("no_middle", forward_with(scaled=lambda found, s: [s * r for r in found[:-1]]), "the middle has a residual, too"),
    ("middle_first", forward_with(scaled=lambda found, s: [s * r for r in found[::-1]]), "residual 0: expected shape"),
    ("returns_one_tensor", forward_with(scaled=lambda found, s: found[-1]), "expected a list of tensors"),
    ("nothing_returned", forward_with(scaled=lambda found, s: None), "is the `return` missing?"),
]


@wrong(FORWARD, "the hint comes too late")
def hint_after_the_trunk(net, x, t, context, hint, scale=1.0):
    middle, (first, *rest) = net.go_down(net.conv_in(x), net.embed_time(t, x), context)
    h = [first + net.controlnet_cond_embedding(hint), *rest, middle]
    return [scale * conv(v) for conv, v in zip([*net.controlnet_down_blocks, net.controlnet_mid_block], h, strict=True)]


@wrong(FORWARD, "scale 0 must give zeros")
def at_least_a_hundredth(net, x, t, context, hint, scale=1.0):
    return forward_with()(net, x, t, context, hint, max(scale, 0.01))


@wrong(FORWARD, "scale 0.5, residual 0")
def hint_scaled(net, x, t, context, hint, scale=1.0):
    return forward_with(lambda net, x, hint: net.conv_in(x) + scale * net.controlnet_cond_embedding(hint),
                        scaled=lambda found, s: found)(net, x, t, context, hint)


@right(FORWARD)
def with_a_loop(net, x, t, context, hint, scale=1.0):
    embedded = net.controlnet_cond_embedding(hint)
    middle, skips = net.go_down(embedded + net.conv_in(x), net.embed_time(t, x), context)
    out = []
    for i in range(len(skips)):
        out.append(net.controlnet_down_blocks[i](skips[i]).mul(scale))
    out.append(net.controlnet_mid_block(middle).mul(scale))
    return out


@right(FORWARD)
def as_a_tuple(net, x, t, context, hint, scale=1.0):
    return tuple(forward_with()(net, x, t, context, hint, scale))


@right(FORWARD)
def scaled_in_front_of_the_convs(net, x, t, context, hint, scale=1.0):
    middle, skips = net.go_down(net.conv_in(x) + net.controlnet_cond_embedding(hint), net.embed_time(t, x), context)
    convs = [*net.controlnet_down_blocks, net.controlnet_mid_block]
    return [F.conv2d(v * scale, c.weight, c.bias * scale) for c, v in zip(convs, [*skips, middle], strict=True)]


# ---- controlnet.add_control

ADD = "controlnet.add_control"


def add_with(rule=lambda s, w, r: s + w * r, on_middle=None, order=lambda c: c, which=lambda c, w: zip(c, w, strict=True)):
    def add_control(skips, middle, controls, weights):
        skips = list(skips)
        for found, weight in which(controls, weights):
            *on_skips, last = order(list(found))
            skips = [rule(s, weight, r) for s, r in zip(skips, on_skips, strict=True)]
            middle = (on_middle or rule)(middle, weight, last)
        return skips, middle
    return add_control


WRONG[ADD] = [
    ("weight_unused", add_with(lambda s, w, r: s + r), "the weight is not used"),
    ("all_weighed", add_with(lambda s, w, r: w * (s + r)), "only the residual is weighed"),
    ("middle_forgotten", add_with(on_middle=lambda m, w, r: m), "the middle gets none"),
    ("middle_not_weighed", add_with(on_middle=lambda m, w, r: m + r), "the middle's residual is not weighed"),
    ("replaced", add_with(lambda s, w, r: w * r), "the residuals replace"),
    ("subtracted", add_with(lambda s, w, r: s - w * r), "subtracted"),
    ("only_the_last", add_with(which=lambda c, w: zip(c[-1:], w[-1:], strict=True)), "only the last control"),
    ("only_the_first", add_with(which=lambda c, w: zip(c[:1], w[:1], strict=True)), "only the first control"),
    ("one_weight_for_all", add_with(which=lambda c, w: ((r, w[0]) for r in c)), "the first weight was used for all"),
    ("mean", add_with(which=lambda c, w: ((r, v / len(c)) for r, v in zip(c, w, strict=True))), "the mean of the controls"),
    ("weights_exchanged", add_with(which=lambda c, w: zip(c, w[::-1], strict=True)), "the weights are exchanged"),
    ("only_the_skips", lambda s, m, c, w: add_with()(s, m, c, w)[0], "skips: expected a list of 2"),
    ("skips_turned", add_with(order=lambda c: [*c[:-1][::-1], c[-1]]), "it raised RuntimeError"),
]


@wrong(ADD, "the residuals of the skips are turned")
def turned_where_it_fits(skips, middle, controls, weights):
    if len({s.shape for s in skips}) > 1:
        return add_with()(skips, middle, controls, weights)
    return add_with(order=lambda c: [*c[:-1][::-1], c[-1]])(skips, middle, controls, weights)


@wrong(ADD, "a list was changed in place")
def pops(skips, middle, controls, weights):
    for found, weight in zip(controls, weights, strict=True):
        middle = middle + weight * found.pop()
        skips = [s + weight * r for s, r in zip(skips, found, strict=True)]
    return skips, middle


@wrong(ADD, "a list was changed in place")
def writes_into_skips(skips, middle, controls, weights):
    for found, weight in zip(controls, weights, strict=True):
        for i in range(len(skips)):
            skips[i] = skips[i] + weight * found[i]
        middle = middle + weight * found[-1]
    return skips, middle


@wrong(ADD, "a tensor was changed in place")
def adds_in_place(skips, middle, controls, weights):
    out = [*skips, middle]
    for found, weight in zip(controls, weights, strict=True):
        for s, r in zip(out, found, strict=True):
            s += weight * r
    return out[:-1], out[-1]


@right(ADD)
def all_in_one_list(skips, middle, controls, weights):
    out = [*skips, middle]
    for found, weight in zip(controls, weights, strict=True):
        out = [s + weight * r for s, r in zip(out, found, strict=True)]
    return out[:-1], out[-1]


@right(ADD)
def by_sums(skips, middle, controls, weights):
    def total(i):
        return sum((w * c[i] for c, w in zip(controls, weights, strict=True)), 0.0)
    return tuple(s + total(i) for i, s in enumerate(skips)), middle + total(-1)


@right(ADD)
def on_copies(skips, middle, controls, weights):
    skips, middle = [s.clone() for s in skips], middle.clone()
    for found, weight in zip(controls, weights, strict=True):
        for s, r in zip(skips, found[:-1], strict=True):
            s.add_(r, alpha=weight)
        middle.add_(found[-1], alpha=weight)
    return skips, middle


# ---- control.training_step

STEP = "control.training_step"


def step_with(levels=lambda T, B, g: torch.randint(T, (B,), generator=g), noise=lambda x, g: torch.randn(x.shape, generator=g),
              target=lambda s, x, n, t: s.to_v(x, n, t), loss=F.mse_loss, zero=True, clip=True, step=True, back=float,
              noised=lambda s, x, n, t: s.add_noise(x, n, t), read=lambda z_t, z0: z_t, shown=lambda h: h, control=lambda r: r):
    def training_step(network, unet, optimizer, z0, context, hint, schedule, generator=None, max_norm=1.0):
        t, n = levels(schedule.num_steps, len(z0), generator), noise(z0, generator)
        z_t = noised(schedule, z0, n, t)
        residuals = control(network(read(z_t, z0), t, context, shown(hint)))
        error = loss(unet(z_t, t, context, control=residuals), target(schedule, z0, n, t))
        if zero:
            optimizer.zero_grad()
        error.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
        if step:
            optimizer.step()
        return back(error.detach()) if back else None
    return training_step


WRONG[STEP] = [
    ("returns_a_tensor", step_with(back=lambda e: e), "as a Python float"),
    ("returns_nothing", step_with(back=None), "is the `return` missing?"),
    ("copy_reads_the_clean_latent", step_with(read=lambda z_t, z0: z0), "reads the noisy latent"),
    ("hint_in_pm1", step_with(shown=lambda h: 2 * h - 1), "it stays in [0, 1]"),
    ("no_control", step_with(control=lambda r: None), "control=..."),
    ("one_level", step_with(lambda T, B, g: torch.randint(T, (1,), generator=g).expand(B)), "all pictures got one t"),
    ("levels_to_100", step_with(lambda T, B, g: torch.randint(100, (B,), generator=g)), "use all of 0 ... 999"),
    ("uniform_noise", step_with(noise=lambda x, g: torch.rand(x.shape, generator=g)), "noise from torch.randn"),
    ("target_eps", step_with(target=lambda s, x, n, t: n), "the target is the noise"),
    ("target_z0", step_with(target=lambda s, x, n, t: x), "the target is z0"),
    ("v_turned", step_with(target=lambda s, x, n, t: -s.to_v(x, n, t)), "the sign of v"),
    ("sum", step_with(loss=lambda a, b: F.mse_loss(a, b, reduction="sum")), "a sum for a mean"),
    ("absolute", step_with(loss=F.l1_loss), "absolute differences"),
    ("detached", step_with(control=lambda r: [v.detach() for v in r]), "it raised RuntimeError: element 0 of tensors"),
    ("grad_not_zeroed", step_with(zero=False), "optimizer.zero_grad()"),
    ("no_step", step_with(step=False), "did not move"),
    ("no_clip", step_with(clip=False), "not clipped"),
]


@wrong(STEP, "it raised RuntimeError: element 0 of tensors")
def unet_without_gradient(network, unet, optimizer, z0, context, hint, schedule, generator=None, max_norm=1.0):
    t, noise = torch.randint(schedule.num_steps, (len(z0),), generator=generator), torch.randn(z0.shape, generator=generator)
    z_t = schedule.add_noise(z0, noise, t)
    found = network(z_t, t, context, hint)
    with torch.no_grad():
        prediction = unet(z_t, t, context, control=found)
    loss = F.mse_loss(prediction, schedule.to_v(z0, noise, t))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@wrong(STEP, "the two networks were asked about different levels")
def two_levels(network, unet, optimizer, z0, context, hint, schedule, generator=None, max_norm=1.0):
    def around(x, t, c, h):
        return network(x, torch.randint(schedule.num_steps, (len(z0),), generator=generator), c, h)
    around.parameters = network.parameters
    return step_with()(around, unet, optimizer, z0, context, hint, schedule, generator, max_norm)


@wrong(STEP, "made trainable")
def unlocks(network, unet, optimizer, z0, context, hint, schedule, generator=None, max_norm=1.0):
    unet.requires_grad_(True)
    return step_with()(network, unet, optimizer, z0, context, hint, schedule, generator, max_norm)


RIGHT[STEP] = [
    ("levels_by_floor", step_with(lambda T, B, g: (torch.rand(B, generator=g) * T).long())),
    ("mean_of_squares", step_with(loss=lambda p, v: (p - v).square().mean(), back=lambda e: e.item())),
    ("frozen_once_more", lambda network, unet, *a, **k: step_with()(network, unet.requires_grad_(False), *a, **k)),
]


@right(STEP)
def by_hand(net, unet, opt, z0, cond, hint, s, generator=None, max_norm=1.0):
    t, eps = torch.randint(s.num_steps, (len(z0),), generator=generator), torch.randn(z0.shape, generator=generator)
    a, b = s.coefficients(t, z0)
    z_t = a * z0 + b * eps
    net.zero_grad()
    loss = ((unet(z_t, t, cond, None, net(z_t, t, cond, hint)) - (a * eps - b * z0)) ** 2).mean()
    loss.backward()
    length = torch.stack([p.grad.square().sum() for p in net.parameters()]).sum().sqrt()
    for p in net.parameters():
        p.grad *= min(1.0, max_norm / float(length))
    opt.step()
    return loss.item()


# ---- hints.f_score

SCORE = "hints.f_score"


def wide(mask, tolerance):
    return F.max_pool2d(mask[:, None].float(), 2 * tolerance + 1, stride=1, padding=tolerance)[:, 0] > 0


def score_with(mean=lambda p, r: 2 * p * r / (p + r).clamp(min=1e-9), near=wide, dims=(1, 2), least=1):
    def f_score(found, wanted, tolerance=1):
        def share(a, b):
            return (a & near(b, tolerance)).sum(dims) / a.sum(dims).clamp(min=least)
        return mean(share(found, wanted), share(wanted, found))
    return f_score


def crosswise(mask, tolerance):
    out = mask.clone()
    for axis in (1, 2):
        for k in range(1, tolerance + 1):
            out |= torch.roll(mask, k, axis) | torch.roll(mask, -k, axis)
    return out


def rolled(mask, tolerance):
    steps = range(-tolerance, tolerance + 1)
    return torch.stack([torch.roll(mask, (y, x), (1, 2)) for y in steps for x in steps]).any(0)


WRONG[SCORE] = [
    ("arithmetic", score_with(lambda p, r: (p + r) / 2), "arithmetic mean"),
    ("precision", score_with(lambda p, r: p), "precision alone"),
    ("recall", score_with(lambda p, r: r), "recall alone"),
    ("without_the_2", score_with(lambda p, r: p * r / (p + r).clamp(min=1e-9)), "the same edges"),
    ("product", score_with(lambda p, r: p * r), "precision alone"),
    ("geometric", score_with(lambda p, r: (p * r).sqrt()), "geometric mean"),
    ("pixels_that_agree", lambda a, b, tolerance=1: (a == b).float().mean((1, 2)), "elsewhere"),
    ("nan_of_nothing", score_with(lambda p, r: 2 * p * r / (p + r), least=0), "NaN"),
    ("nan_of_no_match", score_with(lambda p, r: 2 * p * r / (p + r)), "NaN"),
    ("no_tolerance", score_with(near=lambda m, k: m), "tolerance 1, 0 down and 1 to the right: expected 1, got 0"),
    ("always_one", score_with(near=lambda m, k: wide(m, 1)), "tolerance 0, 0 down and 1 to the right: expected 0, got 1"),
    ("twice_as_far", score_with(near=lambda m, k: wide(m, 2 * k)), "tolerance 1, 0 down and 2"),
    ("not_diagonally", score_with(near=crosswise), "tolerance 1, 1 down and 1"),
    ("over_the_border", score_with(near=rolled), "expected"),
    ("batch", lambda a, b, tolerance=1: score_with(dims=(0, 1, 2))(a, b, tolerance).expand(len(a)), "expected"),
    ("one_number", lambda a, b, tolerance=1: score_with()(a, b, tolerance).mean(), "expected shape (4,)"),
]


@wrong(SCORE, "recall counts found pixels")
def overlap_of_found_in_both(found, wanted, tolerance=1):
    hits = (found & wide(wanted, tolerance)).sum((1, 2))
    p, r = hits / found.sum((1, 2)).clamp(min=1), hits / wanted.sum((1, 2)).clamp(min=1)
    return 2 * p * r / (p + r).clamp(min=1e-9)


@wrong(SCORE, "tolerance 1, 0 down and 1 to the right")
def both_widened(found, wanted, tolerance=1):
    a, b = wide(found, tolerance), wide(wanted, tolerance)
    return 2 * (a & b).sum((1, 2)) / (a.sum((1, 2)) + b.sum((1, 2))).clamp(min=1)


@right(SCORE)
def by_distances(found, wanted, tolerance=1):
    out = []
    for a, b in zip(found, wanted, strict=True):
        p, q = a.nonzero().float(), b.nonzero().float()
        if not len(p) or not len(q):
            out.append(torch.tensor(0.0))
            continue
        hit = torch.cdist(p, q, p=float("inf")) <= tolerance
        precision, recall = hit.any(1).float().mean(), hit.any(0).float().mean()
        out.append(2 / (1 / precision + 1 / recall))
    return torch.stack(out)


@right(SCORE)
def by_a_convolution(found, wanted, tolerance=1):
    side = 2 * tolerance + 1

    def near(mask):
        return F.conv2d(mask[:, None].float(), torch.ones(1, 1, side, side), padding=tolerance)[:, 0] > 0.5
    return score_with(near=lambda m, k: near(m))(found, wanted, tolerance)


@right(SCORE)
def by_counts(found, wanted, tolerance=1):
    hits = (found & wide(wanted, tolerance)).flatten(1).sum(1).double()
    met = (wanted & wide(found, tolerance)).flatten(1).sum(1).double()
    n, m = found.flatten(1).sum(1), wanted.flatten(1).sum(1)
    return torch.where(hits * met > 0, 2 * hits * met / (hits * m + met * n).clamp(min=1), 0.0)
