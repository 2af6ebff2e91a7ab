"""Answers to the exercises of chapter 04: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import nn

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- vq.nearest

NEAREST = "vq.nearest"


def nearest_with(score=lambda norm, product: norm - 2 * product, choose=torch.argmin,
                 rows=lambda z: z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]), norm=lambda e: e.square().sum(1)):
    def nearest(z, codebook):
        flat = rows(z)
        return choose(score(norm(codebook), flat @ codebook.T), dim=1).reshape(len(z), *z.shape[2:])
    return nearest


WRONG[NEAREST] = [
    ("argmax", nearest_with(choose=torch.argmax), "these are the farthest codes"),
    ("no_norm", nearest_with(lambda n, p: -2 * p), "the squared norm of the codes is missing"),
    ("product_once", nearest_with(lambda n, p: n - p), "the product is taken once"),
    ("product_added", nearest_with(lambda n, p: n + 2 * p), "the product is added"),
    ("norm_not_squared", nearest_with(norm=lambda e: e.norm(dim=1)), "enters unsquared"),
    ("flattened_without_permute", nearest_with(rows=lambda z: z.reshape(-1, z.shape[1])), "move the channels to the end"),
    ("rows_and_columns", nearest_with(rows=lambda z: z.permute(0, 3, 2, 1).reshape(-1, z.shape[1])), "rows and columns"),
    ("batch_last", nearest_with(rows=lambda z: z.permute(2, 3, 0, 1).reshape(-1, z.shape[1])), "mixed up"),
    ("returns_distances", lambda z, e: torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), e).min(1).values.view(
        len(z), *z.shape[2:]), "an integer dtype"),
    ("not_folded_back", lambda z, e: torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), e).argmin(1), "expected shape (2, 4, 5)"),
    ("one_hot", lambda z, e: F.one_hot(nearest_with()(z, e), len(e)), "expected shape (2, 4, 5)"),
    ("counts_from_one", lambda z, e: nearest_with()(z, e) + 1, "expected 0"),
]


@wrong(NEAREST, "are mapped to another code")
def first_sixteen_codes(z, codebook):
    return nearest_with()(z, codebook[:16])


@wrong(NEAREST, "was changed in place")
def centres_in_place(z, codebook):
    out = nearest_with()(z, codebook)
    codebook -= codebook.mean(0)
    return out


@right(NEAREST)
def by_cdist(z, codebook):
    return torch.cdist(rearrange(z, "b c h w -> (b h w) c"), codebook).argmin(1).view(z.shape[0], z.shape[2], z.shape[3])


@right(NEAREST)
def by_broadcasting(z, e):
    return (z[:, None] - e[None, :, :, None, None]).pow(2).sum(2).argmin(1)


@right(NEAREST)
def by_einsum(z, codebook):
    likeness = einsum(z, codebook, "b c h w, k c -> b k h w") - codebook.pow(2).sum(1)[:, None, None] / 2
    return likeness.max(1).indices


@right(NEAREST)
def by_loops_in_numpy(z, codebook):
    z, codebook = z.numpy(), codebook.numpy()
    out = np.empty((z.shape[0], *z.shape[2:]), dtype=np.int64)
    for b, i, j in np.ndindex(*out.shape):
        out[b, i, j] = np.argmin([np.sum((z[b, :, i, j] - code) ** 2) for code in codebook])
    return torch.from_numpy(out)


# ---- vq.quantize

QUANTIZE = "vq.quantize"


def look_up(codebook, indices):
    return codebook[indices].permute(0, 3, 1, 2)


def quantize_with(join=lambda z, codes: z + (codes - z).detach(), look=look_up, second=lambda codes: codes):
    def quantize(z, codebook, indices):
        codes = look(codebook, indices)
        return join(z, codes), second(codes)
    return quantize


WRONG[QUANTIZE] = [
    ("no_straight_through", quantize_with(lambda z, e: e), "no gradient reaches z"),
    ("all_detached", quantize_with(lambda z, e: (z + e - z).detach()), "no gradient reaches z"),
    ("detach_on_the_wrong_side", quantize_with(lambda z, e: e + (z - e).detach()), "nothing is quantised"),
    ("half_detached", quantize_with(lambda z, e: z + e - z.detach()), "reaches the codebook through z_q"),
    ("wrong_sign", quantize_with(lambda z, e: z + (z - e).detach()), "wrong sign"),
    ("added", quantize_with(lambda z, e: z + e.detach()), "z and the code are added"),
    ("gradient_reversed", quantize_with(lambda z, e: e.detach() - (z - z.detach())), "with the wrong sign"),
    ("gradient_twice", quantize_with(lambda z, e: 2 * z + (e - 2 * z).detach()), "arrives twice"),
    ("codes_detached", quantize_with(second=lambda e: e.detach()), "cut off from the codebook"),
    ("reshaped", quantize_with(look=lambda c, i: c[i].reshape(len(i), -1, *i.shape[1:])), "permute it"),
    ("channels_last", quantize_with(lambda z, e: z, look=lambda c, i: c[i]), "move the channels back"),
    ("transposed", quantize_with(look=lambda c, i: c[i].permute(0, 3, 2, 1)), "permute(0, 3, 1, 2)"),
    ("one_value", lambda z, e, i: z + (look_up(e, i) - z).detach(), "expected (z_q, codes)"),
]


@wrong(QUANTIZE, "codes: codes is z itself")
def codes_is_z(z, codebook, indices):
    return z + (look_up(codebook, indices) - z).detach(), z


@wrong(QUANTIZE, "was changed in place")
def writes_into_z(z, codebook, indices):
    codes = look_up(codebook, indices)
    if not z.requires_grad and not codes.requires_grad:
        z.copy_(codes)
        return z, codes
    return quantize_with()(z, codebook, indices)


@right(QUANTIZE)
def by_embedding(z, codebook, indices):
    codes = rearrange(F.embedding(indices, codebook), "b h w c -> b c h w")
    return codes.detach() + z - z.detach(), codes


@right(QUANTIZE)
def by_one_hot(z, codebook, indices):
    codes = torch.einsum("bhwk,kc->bchw", F.one_hot(indices, len(codebook)).to(codebook), codebook)
    with torch.no_grad():
        gap = codes - z
    return z + gap, codes


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, codes):
        return codes.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@right(QUANTIZE)
def by_a_function_of_its_own(z, codebook, indices):
    codes = codebook.index_select(0, indices.flatten()).unflatten(0, indices.shape).movedim(-1, 1)
    return Through.apply(z, codes), codes


# ---- vq.codebook_loss

LOSS = "vq.codebook_loss"


def loss_with(mean=torch.mean, code_term=lambda z, e: e - z.detach(), z_term=lambda z, e: z - e.detach(),
              weights=lambda beta, legacy: (beta, 1) if legacy else (1, beta), power=torch.square):
    def codebook_loss(z, codes, beta=0.25, legacy=False):
        of_code, of_z = weights(beta, legacy)
        return of_code * mean(power(code_term(z, codes))) + of_z * mean(power(z_term(z, codes)))
    return codebook_loss


WRONG[LOSS] = [
    ("sum", loss_with(mean=torch.sum), "this is the sum of the squares"),
    ("sum_over_channels", loss_with(mean=lambda x: x.sum(1).mean()), "summed over the channels"),
    ("no_beta", loss_with(weights=lambda beta, legacy: (1, 1)), "beta is missing"),
    ("codebook_only", loss_with(weights=lambda beta, legacy: (1, 0)), "codebook's alone"),
    ("commitment_only", loss_with(weights=lambda beta, legacy: (0, beta)), "commitment alone"),
    ("l1", loss_with(power=torch.abs), "square it"),
    ("subtracted", loss_with(weights=lambda beta, legacy: (1, -beta)), "both terms are added"),
    ("exchanged", loss_with(weights=lambda beta, legacy: (1, beta) if legacy else (beta, 1)), "beta is on the wrong term"),
    ("no_detach", loss_with(code_term=lambda z, e: e - z, z_term=lambda z, e: z - e), "both terms move both"),
    ("both_detach_z", loss_with(z_term=lambda z, e: (z - e).detach()), "no gradient reaches z"),
    ("all_detached_codes", loss_with(code_term=lambda z, e: (z - e).detach()), "no gradient reaches the codes"),
    ("legacy_ignored", loss_with(weights=lambda beta, legacy: (1, beta)), "beta is on the wrong term"),
    ("beta_fixed", loss_with(weights=lambda beta, legacy: (0.25, 1) if legacy else (1, 0.25)), "expected"),
    ("per_position", lambda z, e, beta=0.25, legacy=False: (z - e).square().mean(1), "expected shape ()"),
    ("returns_both", lambda z, e, beta=0.25, legacy=False: (F.mse_loss(e, z), F.mse_loss(z, e)), "got a tuple"),
]


@wrong(LOSS, "was changed in place")
def subtracts_in_place(z, codes, beta=0.25, legacy=False):
    value = loss_with()(z, codes, beta, legacy)
    if not z.requires_grad:
        z -= codes
    return value


@right(LOSS)
def by_mse_loss(z, codes, beta=0.25, legacy=False):
    goes_to_z, goes_to_code = F.mse_loss(codes, z.detach()), F.mse_loss(z, codes.detach())
    if legacy:
        return goes_to_code + beta * goes_to_z
    return goes_to_z + beta * goes_to_code


@right(LOSS)
def by_the_norm(z, e, beta=0.25, legacy=False):
    a, b = (beta, 1.0) if legacy else (1.0, beta)
    return (a * (e - z.detach()).norm() ** 2 + b * (z - e.detach()).norm() ** 2) / z.numel()


@right(LOSS)
def by_scaled_gradients(z, codes, beta=0.25, legacy=False):
    n = z.numel()
    first = einsum(codes - z.data, codes - z.data, "b c h w, b c h w ->") / n
    second = einsum(z - codes.data, z - codes.data, "b c h w, b c h w ->") / n
    return beta * first + second if legacy else first + beta * second


# ---- vq.ema_update

EMA = "vq.ema_update"


def sums(codebook, flat, indices):
    return F.one_hot(indices, len(codebook)).to(flat).T @ flat


def ema_with(used=lambda K, i: torch.bincount(i, minlength=K).float(), summed=sums, old=lambda d: d, new=lambda d: 1 - d,
             place=lambda book, count, total, *batch: torch.where((count > 1e-6)[:, None],
                                                                  total / count.clamp(min=1e-8)[:, None], book)):
    def ema_update(codebook, count, total, flat, indices, decay=0.99):
        n, s = used(len(codebook), indices), summed(codebook, flat, indices)
        count, total = old(decay) * count + new(decay) * n, old(decay) * total + new(decay) * s
        return place(codebook, count, total, n, s, decay), count, total
    return ema_update


def overwritten(codebook, flat, indices):
    total = torch.zeros_like(codebook)
    for row, k in zip(flat, indices, strict=True):
        total[k] = row
    return total


def batch_mean(book, count, total, n, s, decay):
    return torch.where((n > 0)[:, None], s / n.clamp(min=1)[:, None], book)


WRONG[EMA] = [
    ("decay_swapped", ema_with(old=lambda d: 1 - d, new=lambda d: d), "decay belongs to the old count"),
    ("no_factor", ema_with(new=lambda d: 1), "1 - decay in front of the new count is missing"),
    ("forgets", ema_with(old=lambda d: 0, new=lambda d: 1), "the old count is forgotten"),
    ("never_decays", ema_with(old=lambda d: 1, new=lambda d: 1), "the old count does not decay"),
    ("counts_once", ema_with(used=lambda K, i: torch.zeros(K).index_fill(0, i, 1.0)), "counted once"),
    ("sum_overwritten", ema_with(summed=overwritten), "only one was added"),
    ("mean_for_sum", ema_with(summed=lambda c, f, i: sums(c, f, i) / torch.bincount(i, minlength=len(c)).clamp(min=1)[:, None]),
     "this adds the mean"),
    ("codes_not_moved", ema_with(place=lambda book, *rest: book), "the codebook has not changed"),
    ("batch_mean", ema_with(place=batch_mean), "this is the mean of this batch"),
    ("total_for_mean", ema_with(place=lambda book, count, total, *rest: total), "divide it by the count"),
    ("mixes_codes", ema_with(place=lambda book, count, total, n, s, d: d * book + (1 - d) * s / n.clamp(min=1)[:, None]),
     "0 for codes that nobody chose"),
    ("divides_by_zero", ema_with(place=lambda book, count, total, *rest: total / count[:, None]), "0 / 0"),
    ("unused_become_zero", ema_with(place=lambda book, count, total, *rest: total / (count[:, None] + 1e-8)), "has moved"),
    ("only_the_book", lambda *a: ema_with()(*a)[0], "expected (codebook, count, total)"),
]


@wrong(EMA, "was changed in place")
def in_place_counts(codebook, count, total, flat, indices, decay=0.99):
    n, s = torch.bincount(indices, minlength=len(codebook)).float(), sums(codebook, flat, indices)
    count.lerp_(n, 1 - decay)
    total.lerp_(s, 1 - decay)
    return torch.where((count > 1e-6)[:, None], total / count.clamp(min=1e-8)[:, None], codebook), count, total


@right(EMA)
def by_index_add(codebook, count, total, flat, indices, decay=0.99):
    count, total, codebook = count * decay, total * decay, codebook.clone()
    count.index_add_(0, indices, torch.full((len(flat),), 1 - decay))
    total.index_add_(0, indices, (1 - decay) * flat)
    alive = count > 0
    codebook[alive] = total[alive] / count[alive].unsqueeze(1)
    return codebook, count, total


@right(EMA)
def code_by_code(codebook, count, total, flat, indices, decay=0.99):
    books, counts, totals = [], [], []
    for k in range(codebook.shape[0]):
        mine = flat[indices == k]
        counts.append(decay * count[k] + (1 - decay) * len(mine))
        totals.append(decay * total[k] + (1 - decay) * mine.sum(0))
        books.append(totals[-1] / counts[-1] if counts[-1] > 0 else codebook[k])
    return torch.stack(books), torch.stack(counts), torch.stack(totals)


@right(EMA)
def by_lerp_and_scatter(book, count, total, flat, indices, decay=0.99):
    fresh = torch.zeros_like(total).scatter_add(0, indices[:, None].expand_as(flat), flat)
    count = torch.lerp(count, torch.zeros_like(count).scatter_add(0, indices, torch.ones(len(flat))), 1 - decay)
    total = torch.lerp(total, fresh, 1 - decay)
    ratio = torch.nan_to_num(total / count[:, None], nan=0.0, posinf=0.0, neginf=0.0)
    return ratio + (count == 0)[:, None] * book, count, total


# ---- vq.usage

USAGE = "vq.usage"


def usage_with(entropy=lambda p: -float(torch.special.xlogy(p, p).sum()), power=math.exp,
               used=lambda p, i: float((p > 0).float().mean()), shares=lambda n: n / n.sum()):
    def usage(indices, num_codes):
        p = shares(torch.bincount(indices.flatten(), minlength=num_codes).double())
        return {"perplexity": power(entropy(p)), "used": used(p, indices)}
    return usage


def bits(p):
    return -float((p[p > 0] * p[p > 0].log2()).sum())


WRONG[USAGE] = [
    ("nats", usage_with(power=lambda h: h), "entropy in nats"),
    ("bits", usage_with(entropy=bits, power=lambda h: h), "entropy in bits"),
    ("exp_of_bits", usage_with(entropy=bits), "different bases"),
    ("two_to_nats", usage_with(power=lambda h: 2**h), "different bases"),
    ("sign", usage_with(power=lambda h: math.exp(-h)), "minus sign"),
    ("nan", usage_with(entropy=lambda p: -float((p * p.log()).sum())), "perplexity is NaN"),
    ("of_counts", usage_with(shares=lambda n: n), "the entropy is taken of counts"),
    ("mean", usage_with(entropy=lambda p: -float(torch.special.xlogy(p, p).mean())), "averaged, not summed"),
    ("simpson", usage_with(entropy=lambda p: -math.log(float(p.square().sum()))), "1 / sum of p^2"),
    ("number_used", usage_with(used=lambda p, i: float((p > 0).sum())), "divide by num_codes"),
    ("per_position", usage_with(used=lambda p, i: len(i.unique()) / i.numel()), "divides by the number of positions"),
    ("dead_share", usage_with(used=lambda p, i: float((p == 0).float().mean())), "do not occur"),
    ("minlength_forgotten", lambda i, K: usage_with()(i, 1), "divides by the largest index"),
    ("a_tuple", lambda i, K: tuple(usage_with()(i, K).values()), "expected a dict"),
    ("perplexity_share", usage_with(used=lambda p, i: math.exp(-float(torch.special.xlogy(p, p).sum())) / len(p)),
     "count the codes that occur at all"),
]


@right(USAGE)
def by_counter(indices, num_codes):
    found = Counter(indices.flatten().tolist())
    entropy = -sum(n / indices.numel() * math.log(n / indices.numel()) for n in found.values())
    return {"perplexity": math.exp(entropy), "used": len(found) / num_codes}


@right(USAGE)
def by_unique_in_bits(indices, num_codes):
    _, counts = indices.unique(return_counts=True)
    p = counts / counts.sum()
    return {"perplexity": 2 ** -(p * p.log2()).sum(), "used": torch.tensor(len(counts) / num_codes)}


@right(USAGE)
def by_one_hot_mean(indices, num_codes):
    p = F.one_hot(indices.reshape(-1), num_codes).double().mean(0)
    return {"used": float(p.bool().sum()) / num_codes, "perplexity": float(torch.distributions.Categorical(p).entropy().exp())}


# ---- vq.restart

RESTART = "vq.restart"


def distance(flat, codebook):
    return torch.cdist(flat, codebook).min(1).values


def restart_with(dead=lambda count, threshold, due: count < threshold * due, start=lambda due, threshold: due,
                 rows=lambda flat, codebook, n: flat[distance(flat, codebook).topk(n).indices], share=lambda N, K: N / K,
                 crop=True):
    def restart(codebook, count, flat, threshold=0.01):
        due = share(len(flat), len(codebook))
        who = dead(count, threshold, due).nonzero().flatten()
        who = who[: len(flat)] if crop else who
        codebook, fresh = codebook.clone(), count.clone()
        codebook[who] = rows(flat, codebook, len(who))
        fresh[who] = start(due, threshold)
        return codebook, fresh
    return restart


WRONG[RESTART] = [
    ("busy_ones", restart_with(lambda n, t, due: n > t * due), "the busiest codes were moved"),
    ("no_due", restart_with(lambda n, t, due: n < t), "compare with threshold * due"),
    ("everybody", restart_with(lambda n, t, due: n >= 0), "all codes were moved"),
    ("exact_zero_only", restart_with(lambda n, t, due: n == 0), "no code has moved"),
    ("all_to_the_worst", restart_with(rows=lambda f, c, n: f[distance(f, c).argmax()].expand(n, -1)), "went to the same row"),
    ("to_the_best", restart_with(rows=lambda f, c, n: f[distance(f, c).topk(n, largest=False).indices]), "the largest errors"),
    ("first_rows", restart_with(rows=lambda f, c, n: f[:n]), "largest distance to their nearest code"),
    ("largest_values", restart_with(rows=lambda f, c, n: f[torch.cdist(f, c).max(1).values.topk(n).indices]),
     "largest distance to their nearest code"),
    ("noise", restart_with(rows=lambda f, c, n: torch.randn(n, f.shape[1])), "should be rows of flat"),
    ("count_kept", lambda c, n, f, t=0.01: (restart_with()(c, n, f, t)[0], n.clone()), "still low"),
    ("count_zero", restart_with(start=lambda due, t: 0.0), "start at 0"),
    ("count_one", restart_with(start=lambda due, t: 1.0), "start at 1"),
    ("all_counts", lambda c, n, f, t=0.01: (restart_with()(c, n, f, t)[0], torch.full_like(n, len(f) / len(c))),
     "all counts were reset"),
    ("too_few_rows", restart_with(crop=False), "RuntimeError"),
    ("book_only", lambda *a: restart_with()(*a)[0], "expected (codebook, count)"),
]


@wrong(RESTART, "was changed in place")
def in_place(codebook, count, flat, threshold=0.01):
    new, fresh = restart_with()(codebook, count, flat, threshold)
    codebook.copy_(new)
    return codebook, fresh


@right(RESTART)
def by_sorting(codebook, count, flat, threshold=0.01):
    worst = distance(flat, codebook).argsort(descending=True).tolist()
    book, fresh, due = list(codebook), count.tolist(), flat.shape[0] / codebook.shape[0]
    for k, n in enumerate(count.tolist()):
        if n < threshold * due and worst:
            book[k], fresh[k] = flat[worst.pop(0)], due
    return torch.stack(book), torch.tensor(fresh)


@right(RESTART)
def by_masks(codebook, count, flat, threshold=0.01):
    due = len(flat) / len(codebook)
    dead = count < threshold * due
    dead = dead & (dead.cumsum(0) <= len(flat))
    errors = (flat[:, None] - codebook).square().sum(2).amin(1)
    book = codebook.masked_scatter(dead[:, None].expand_as(codebook), flat[errors.topk(int(dead.sum())).indices])
    return book, torch.where(dead, torch.tensor(due), count)


@right(RESTART)
def by_numpy(codebook, count, flat, threshold=0.01):
    c, f = codebook.numpy().copy(), flat.numpy()
    errors = np.min(((f[:, None] - c[None]) ** 2).sum(-1), axis=1)
    due = len(f) / len(c)
    dead = np.flatnonzero(count.numpy() < threshold * due)[: len(f)]
    c[dead] = f[np.argsort(-errors)[: len(dead)]]
    return torch.from_numpy(c), count.index_fill(0, torch.from_numpy(dead), due)


# ---- vq.VectorQuantizer

VQ = "vq.VectorQuantizer"


class Base(nn.Module):
    """A right answer with switches for what goes wrong."""

    start, learns, reads_training, passes_threshold, beta_read, name = "small", False, True, True, True, "embedding"
    through, both_terms, always_buffers = True, False, False

    def __init__(self, num_codes, dim, beta=0.25, ema_decay=None, restart_below=None):
        super().__init__()
        self.beta, self.decay, self.below = beta if self.beta_read else 0.25, ema_decay, restart_below
        book = nn.Embedding(num_codes, dim)
        if self.start == "small":
            book.weight.data = (torch.rand(num_codes, dim) * 2 - 1) / num_codes
        if self.start == "zero":
            book.weight.data.zero_()
        setattr(self, self.name, book)
        if ema_decay is not None or self.always_buffers:
            book.weight.requires_grad = self.learns or ema_decay is None
            self.register_buffer("count", torch.zeros(num_codes))
            self.register_buffer("total", torch.zeros(num_codes, dim))

    def forward(self, z):
        book = getattr(self, self.name).weight
        indices = nearest_with()(z, book.detach())
        z_q, codes = quantize_with()(z, book, indices)
        commitment = F.mse_loss(z, codes.detach())
        loss = self.beta * commitment
        if self.decay is None or self.both_terms:
            loss = loss + F.mse_loss(codes, z.detach())
        if self.decay is not None and (self.training or not self.reads_training):
            self.follow(z.detach().movedim(1, -1).flatten(0, 2), indices.flatten())
        return (z_q if self.through else codes), self.order(loss, z, codes), indices

    def order(self, loss, z, codes):
        return loss

    @torch.no_grad()
    def follow(self, flat, indices):
        book = getattr(self, self.name).weight
        new, count, total = ema_with()(book, self.count, self.total, flat, indices, self.decay)
        if self.below is not None and self.passes_threshold:
            new, count = restart_with()(new, count, flat, self.below)
            total = new * count[:, None]
        book.data, self.count, self.total = new, count, total


def vq_with(**switches):
    return type("VectorQuantizer", (Base,), switches)


def legacy_order(self, loss, z, codes):
    return loss_with()(z, codes, self.beta, True) if self.decay is None else loss


WRONG[VQ] = [
    ("other_name", vq_with(name="codebook"), "'embedding.weight' is missing"),
    ("buffers_without_ema", vq_with(always_buffers=True), "is saved too"),
    ("normal_start", vq_with(start="normal"), "nn.init.uniform_"),
    ("all_alike", vq_with(start="zero"), "all alike"),
    ("no_straight_through", vq_with(through=False), "straight through, not codes"),
    ("legacy", vq_with(order=legacy_order), "legacy order"),
    ("beta_ignored", vq_with(beta_read=False), "beta is not read"),
    ("loss_detached", vq_with(order=lambda self, loss, z, codes: loss.detach()), "does not require grad"),
    ("codebook_term_under_ema", vq_with(both_terms=True), "still in the loss"),
    ("optimiser_too", vq_with(learns=True), "requires_grad_(False)"),
    ("learns_in_eval", vq_with(reads_training=False), "changed in eval()"),
    ("never_follows", vq_with(follow=lambda self, flat, indices: None), "have not moved"),
    ("no_restarts", vq_with(passes_threshold=False), "pass restart_below on"),
    ("two_values", type("Two", (Base,), {"forward": lambda self, z: Base.forward(self, z)[:2]}),
     "expected (z_q, loss, indices)"),
    ("flat_indices", type("Flat", (Base,), {"forward": lambda self, z: (*Base.forward(self, z)[:2],
                                                                       Base.forward(self, z)[2].flatten())}),
     "expected shape (2, 4, 5)"),
]

RIGHT[VQ] = [("with_other_pieces", vq_with())]


@right(VQ)
class ByDistances(nn.Module):
    def __init__(self, num_codes, dim, beta=0.25, ema_decay=None, restart_below=None):
        super().__init__()
        self.embedding = nn.Embedding(num_codes, dim, _weight=torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))
        self.beta, self.ema_decay, self.restart_below = beta, ema_decay, restart_below
        if ema_decay is not None:
            self.embedding.requires_grad_(False)
            self.register_buffer("count", torch.zeros(num_codes))
            self.register_buffer("total", torch.zeros_like(self.embedding.weight))

    def forward(self, z):
        flat = rearrange(z, "b c h w -> (b h w) c")
        indices = torch.cdist(flat.detach(), self.embedding.weight.detach()).argmin(-1)
        chosen = self.embedding(indices)
        loss = self.beta * (flat - chosen.detach()).square().mean()
        if self.ema_decay is None:
            loss = loss + (chosen - flat.detach()).square().mean()
        elif self.training:
            with torch.no_grad():
                book, self.count, self.total = code_by_code(self.embedding.weight, self.count, self.total, flat.detach(),
                                                            indices, self.ema_decay)
                if self.restart_below:
                    book, self.count = by_sorting(book, self.count, flat, self.restart_below)
                    self.total = self.count[:, None] * book
                self.embedding.weight.copy_(book)
        out = Through.apply(flat, chosen)
        B, _, h, w = z.shape
        return rearrange(out, "(b h w) c -> b c h w", b=B, h=h), loss, indices.reshape(B, h, w)


@right(VQ)
class WithParameter(nn.Module):
    """The book as a bare parameter inside a small holder, the loss by a ternary."""

    class Book(nn.Module):
        def __init__(self, n, d):
            super().__init__()
            self.weight = nn.Parameter((2 * torch.rand(n, d) - 1) / n)

    def __init__(self, num_codes, dim, beta=0.25, ema_decay=None, restart_below=None):
        super().__init__()
        self.embedding, self.settings = self.Book(num_codes, dim), (beta, ema_decay, restart_below)
        for name, shape in (("count", (num_codes,)), ("total", (num_codes, dim))) if ema_decay is not None else ():
            self.register_buffer(name, torch.zeros(shape))
        self.embedding.weight.requires_grad_(ema_decay is None)

    def forward(self, z):
        beta, decay, below = self.settings
        indices = by_broadcasting(z.detach(), self.embedding.weight.detach())
        z_q, codes = by_embedding(z, self.embedding.weight, indices)
        if decay is not None and self.training:
            flat, book = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1]), self.embedding.weight.data
            book, self.count, self.total = by_index_add(book, self.count, self.total, flat, indices.flatten(), decay)
            if below is not None:
                book, self.count = by_masks(book, self.count, flat, below)
                self.total = book * self.count.unsqueeze(1)
            self.embedding.weight.data = book
        return z_q, by_mse_loss(z, codes, beta) if decay is None else beta * F.mse_loss(z, codes.detach()), indices
