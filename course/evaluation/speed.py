"""`course bench speed`: ours beside diffusers, in turns, on the same weights, threads and inputs, and the floor beside both.

A row is believed only if both answer the same (`error`, relative to the largest value). diffusers is timed in both memory layouts
and the faster one counts. The floor is what the multiplications need at the machine's measured matrix rate, or the weights at
its measured bandwidth, whichever is longer: see `machine`.
"""

import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from course import presets
from course.errors import UsageError
from course.evaluation import beside
from course.evaluation.machine import Machine
from course.memo import can_pack, remembering
from course.pipeline import SHIPPED, StableDiffusion
from course.training import flops, loop
from course.training.engine import BF16_PEAKS

SIZES = ("course", "sd15", "sdxl")
PROMPT = "a small red ring left of a large blue square"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
EQUAL = {"float32": 1e-4, "bfloat16": 0.15}                     # in half precision, over fifty steps, rounding adds up
# the gate and the aim of the ratio in rows with this in their names, by size
GATES = {"cpu": {"compiled": {"course": (1.0, None), "sd15": (1.0, None)},
                 "U-Net forward": {"course": (1.3, 1.6), "sd15": (1.0, 1.05)}, "training step": {"course": (1.15, 1.4)},
                 "50 steps": {"course": (1.15, 1.35)}},
         "gpu": {"U-Net forward, compiled": {"sd15": (1.05, 1.2)}}}


@dataclass(frozen=True)
class Case:
    """One row to be: `ours` and `theirs` (by layout) take no arguments and answer with a tensor."""

    name: str
    batch: int
    ours: Callable[[], Tensor]
    theirs: dict[str, Callable[[], Tensor]]
    flops: float = 0.0
    bytes: float = 0.0
    note: str = ""
    inside: Callable = nullcontext         # makes the context in which all of it is called


def run(machine: Machine, size: str = "course", rounds: int = 10, only: str | None = None, compile: bool = False,
        progress: Callable[[float], None] = lambda done: None) -> list[dict]:
    """All rows, or those with `only` in their name."""
    if size not in SIZES:
        raise UsageError(f"unknown size {size!r}, expected one of {', '.join(SIZES)}")
    beside.library()
    made = Subject(size, machine)
    rows, cases = [], [(name, make) for name, make in made.cases(compile) if only is None or only in name]
    if not cases:
        raise UsageError(f"no row of size {size} has {only!r} in its name; they are "
                         f"{', '.join(name for name, _ in made.cases(compile))}")
    for i, (_, make) in enumerate(cases):
        rows.append(measure(make(), machine, size, rounds))
        progress((i + 1) / len(cases))
    return rows


def measure(case: Case, machine: Machine, size: str, rounds: int) -> dict:
    """Do both answer the same, and then who is faster?"""
    with case.inside():
        expected = next(iter(case.theirs.values()))().float()
        error = ((case.ours().float() - expected).abs().max() / expected.abs().max()).item()
        seconds = in_turns({"ours": case.ours, **case.theirs}, rounds, machine.device)
    layout = min(case.theirs, key=lambda name: statistics.median(seconds[name]))
    mine, other = statistics.median(seconds["ours"]), statistics.median(seconds[layout])
    pairs = [b / a for a, b in zip(seconds["ours"], seconds[layout], strict=True)]
    floor = machine.floor(case.flops, case.bytes)
    gate, aim = gate_of(case, machine, size)
    return {"name": case.name, "size": size, "batch": case.batch, "ours_ms": 1000 * mine, "theirs_ms": 1000 * other,
            "their_layout": layout, "ratio": other / mine, "ratio_low": min(pairs), "ratio_high": max(pairs), "rounds": rounds,
            "floor_ms": 1000 * floor, "of_floor": floor / mine, "gflop": case.flops / 1e9, "mfu": mfu(case, machine, mine),
            "error": error,
            "equal": error <= EQUAL[machine.dtype], "gate": gate, "aim": aim, "note": case.note}


def gate_of(case: Case, machine: Machine, size: str) -> tuple[float | None, float | None]:
    """(gate, aim) of the ratio; they are meant for one picture, guided or not, and for a training batch."""
    if case.batch == 1 or "training" in case.name or "compiled" in case.name:
        for name, gates in GATES["cpu" if machine.device == "cpu" else "gpu"].items():
            if name in case.name:
                return gates.get(size, (None, None))
    return None, None


def mfu(case: Case, machine: Machine, seconds: float) -> float | None:
    """The share of the peak on the maker's data sheet; None on a CPU, and for a GPU that we do not know."""
    peak = next((peak for known, peak in BF16_PEAKS.items() if machine.device.startswith("cuda") and known in machine.name), None)
    return peak and case.flops / seconds / peak


def in_turns(functions: dict[str, Callable], rounds: int, device: str = "cpu", turn: float = 0.1) -> dict[str, list[float]]:
    """Seconds of a call, round by round. A turn is as many calls as fill `turn` seconds: what is fast stays in its caches, as
    it does in a real loop. Two rounds of warm-up."""
    calls, times = dict.fromkeys(functions, 1), {name: [] for name in functions}
    for i in range(rounds + 2):
        for name, function in functions.items():
            begun = time.perf_counter()
            for _ in range(calls[name]):
                function()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            spent = (time.perf_counter() - begun) / calls[name]
            if i < 2:
                calls[name] = max(1, round(turn / spent))
            else:
                times[name].append(spent)
    return times


class Subject:
    """The networks of one size, ours and theirs, and what is to be timed about them."""

    def __init__(self, size: str, machine: Machine):
        self.size, self.machine = size, machine
        self.device, self.dtype = machine.device, getattr(torch, machine.dtype)
        self.layout = "channels_last" if self.device.startswith("cuda") else "contiguous"       # U-Nets, as pipeline.to has it
        if size == "course":
            self.pipe = StableDiffusion.load("scenes64")       # trained, so that the oracle can judge what is approximate
            self.unet, self.vae, self.text = self.pipe.unet, self.pipe.vae, self.pipe.text_encoder
        else:
            names = ("sd15", "vae-sd", "clip-l") if size == "sd15" else ("sdxl-base", "vae-sdxl", None)
            self.unet, self.vae, self.text = (name and random_weights(name) for name in names)
        for network, layout in ((self.unet, self.layout), (self.vae, "contiguous"), (self.text, "contiguous")):
            if network is not None:
                network.to(self.device, self.dtype, memory_format=LAYOUTS[layout]).requires_grad_(False)
        self.side = {"course": 8, "sd15": 64, "sdxl": 128}[size]                        # of the latents
        self.batches = {"course": (1, 16), "sd15": (1,), "sdxl": (1,)}[size] if self.device == "cpu" else (1, 16)

    def cases(self, compile: bool) -> list[tuple[str, Callable[[], Case]]]:
        """(name, how to make it): networks are made only for rows that are wanted."""
        made = [(f"U-Net forward, batch {b}", lambda b=b: self.forward(b)) for b in self.batches]
        if compile:
            made.append(("U-Net forward, compiled", self.compiled))
        if self.size == "course" or self.device != "cpu":      # Adam's moments of 860 M weights need 17 GB for each of two
            made.append(("training step", self.training_step))
            if compile and self.device != "cpu":
                made.append(("training step, compiled", lambda: self.training_step(compile=True)))
        made += [("VAE encode", lambda: self.autoencoder(True)), ("VAE decode", lambda: self.autoencoder(False))]
        if self.text is not None:
            made.append(("text encoder", self.text_encoder))
        if self.size == "course":
            made += [(f"{steps} steps, guided, batch {b}", lambda steps=steps, b=b: self.loop(steps, b))
                     for steps in (20, 50) for b in self.batches]
        return made

    # ---- inputs

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)

    def asked(self, batch: int) -> tuple[Tensor, float, Tensor, dict | None]:
        """(x, t, context, added) for the U-Net."""
        c = self.unet.config
        added = None if c.added_dim is None else {
            "text_embeds": self.draw(batch, c.added_dim - 6 * c.size_embedding_dim), "time_ids": self.draw(batch, 6).abs() * 512}
        words = 77 if self.text is None else self.text.config.length
        return self.draw(batch, c.in_channels, self.side, self.side), 500.0, self.draw(batch, words, c.context_dim), added

    # ---- rows

    def their_unets(self) -> dict[str, nn.Module]:
        return self.both_layouts(beside.unet(self.unet), self.layout)

    def both_layouts(self, theirs: nn.Module, own: str) -> dict[str, nn.Module]:
        """Their network, which shares our weights in the layout `own`, and a copy in the other one."""
        other = next(name for name in LAYOUTS if name != own)
        return {own: theirs, other: copy.deepcopy(theirs).to(memory_format=LAYOUTS[other])}

    def forward(self, batch: int) -> Case:
        x, t, context, added = self.asked(batch)
        fresh = quiet(lambda: self.unet(x, t, context.clone(), added))                  # another context: no keys are remembered
        return Case(f"U-Net forward, batch {batch}", batch, fresh,
                    {name: quiet(lambda net=net: net(x, t, context, added_cond_kwargs=added).sample)
                     for name, net in self.their_unets().items()},
                    flops.forward(on_meta(self.unet), *meta(x, t, context, added)), weight_bytes(self.unet),
                    "large convolutions packed" if any(map(can_pack, self.unet.modules())) else "",
                    lambda: remembering([self.unet]))          # as every run has it

    def compiled(self) -> Case:
        """Both through torch.compile; what that costs once is in the note. On a GPU a guided step of one picture, two passes
        at once, as CUDA graphs: 1000 over its milliseconds are the iterations per second that others publish."""
        batch, mode = (1, None) if self.device == "cpu" else (2, "reduce-overhead")
        x, t, context, added = self.asked(batch)
        t = torch.tensor([t], device=self.device)              # a number would be compiled in
        plain, warm = self.forward(batch), {}
        theirs = self.their_unets()[self.layout]
        fast = {"ours": torch.compile(copy.deepcopy(self.unet), mode=mode), "theirs": torch.compile(theirs, mode=mode)}
        calls = {"ours": quiet(lambda: fast["ours"](x, t, context, added)),
                 "theirs": quiet(lambda: fast["theirs"](x, t, context, added_cond_kwargs=added).sample)}
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            warm[name] = time.perf_counter() - begun
        return Case("U-Net forward, compiled", batch, calls["ours"], {"compiled": calls["theirs"]}, plain.flops, plain.bytes,
                    f"warm-up {warm['ours']:.0f} s, theirs {warm['theirs']:.0f} s")

    def training_step(self, compile: bool = False) -> Case:
        """Forward, backward, clipping, fused AdamW, average of the weights: ours as loop.fit has it, theirs by EMAModel.

        Answers with some of the weights, so that `error` is of what was learned. compile: both U-Nets by torch.compile.
        """
        batch = 2048 if self.size == "course" and self.device != "cpu" else 16          # the others are for a GPU alone
        from diffusers.training_utils import EMAModel
        x, t, context, added = self.asked(batch)
        t = torch.linspace(0, 999, batch, device=self.device)
        config = loop.LoopConfig(batch_size=batch)

        def ours_and_average(model: nn.Module):
            average = {name: p.detach().clone() for name, p in model.named_parameters()}
            return lambda images: loop.update_average(average, model, config, images)

        def theirs_and_average(model: nn.Module):
            average = EMAModel(model.parameters(), decay=0.9999)
            return lambda images: average.step(model.parameters())

        def step_of(model: nn.Module, answer, averaged) -> Callable[[], Tensor]:
            model.train().requires_grad_(True)
            network = torch.compile(model) if compile else model
            optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
            average, images = averaged(model), 0

            def step() -> Tensor:
                nonlocal images
                images += batch
                optimiser.zero_grad()
                with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                    loss = (answer(network) - x).square().mean()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                average(images)
                return model.conv_in.weight.detach().clone()
            return step
        theirs = self.their_unets()
        if compile:
            theirs = {self.layout: theirs[self.layout]}        # another layout would be compiled for minutes
        full = {name: copy.deepcopy(net).float() for name, net in {"ours": self.unet, **theirs}.items()}
        count = sum(p.numel() for p in self.unet.parameters())
        steps = {name: step_of(net, lambda net: net(x, t, context, added_cond_kwargs=added).sample, theirs_and_average)
                 for name, net in full.items() if name != "ours"}
        # bytes: weights forward and back, gradients, Adam's two moments read and written, the average read and written
        return Case(f"training step{', compiled' if compile else ''}, batch {batch}", batch,
                    step_of(full["ours"], lambda net: net(x, t, context, added), ours_and_average), steps,
                    flops.training(on_meta(self.unet), *meta(x, t, context, added)), 13 * 4 * count)

    def autoencoder(self, encoding: bool) -> Case:
        stem, factor = self.vae.config.stem, self.vae.config.factor
        side = self.side * factor if self.device != "cpu" or self.size == "course" else 256          # 512 takes minutes
        layouts = self.both_layouts(beside.vae(self.vae), "contiguous")
        if encoding:
            x = self.draw(1, 3, side, side)
            return Case(f"VAE encode, {side} x {side}", 1, quiet(lambda: self.vae.encode(x).mean),
                        {name: quiet(lambda net=net: beside.encode(net, x, stem)) for name, net in layouts.items()},
                        flops.forward(nn_of(lambda v, x: v.encode(x).mean, on_meta(self.vae)), x.to("meta")),
                        weight_bytes(self.vae.encoder))
        z = self.draw(1, self.vae.config.latent_channels, side // factor, side // factor)
        return Case(f"VAE decode, {side} x {side}", 1, quiet(lambda: self.vae.decode(z)),
                    {name: quiet(lambda net=net: beside.decode(net, z, stem)) for name, net in layouts.items()},
                    flops.forward(nn_of(lambda v, z: v.decode(z), on_meta(self.vae)), z.to("meta")),
                    weight_bytes(self.vae.decoder))

    def text_encoder(self) -> Case:
        c = self.text.config
        ids = torch.randint(c.vocab_size, (2, c.length), generator=torch.Generator().manual_seed(0)).to(self.device)
        theirs = beside.text_encoder(self.text)
        return Case("text encoder, a prompt and none", 2, quiet(lambda: self.text(ids)),
                    {"contiguous": quiet(lambda: theirs(ids).last_hidden_state)},
                    flops.forward(on_meta(self.text), ids.to("meta")), weight_bytes(self.text) - c.vocab_size * c.width * 4)

    def loop(self, steps: int, batch: int) -> Case:
        """From words to x_0. Theirs is given the words encoded, and the first noise; ours does that itself."""
        ours, theirs = sampling(self.pipe, steps, batch, self.their_unets())
        x, t, context, added = self.asked(2 * batch)           # guided: two passes a picture
        return Case(f"{steps} steps, guided, batch {batch}", batch, ours, theirs,
                    steps * flops.forward(on_meta(self.unet), *meta(x, t, context, added)), steps * weight_bytes(self.unet))


def sampling(pipe, steps: int, batch: int, denoisers: dict[str, nn.Module]) -> tuple[Callable, dict[str, Callable]]:
    """(ours, theirs by layout): functions that draw `batch` latents, guided, in `steps` steps of DDIM."""
    prompts = [PROMPT] * batch
    with torch.no_grad():
        words, nothing = (pipe.encode_text(texts)["context"] for texts in (prompts, [""] * batch))
    shape = pipe.latent_shape(pipe.config.image_size, pipe.config.image_size)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(batch)]).to(words)
    theirs = {name: beside.pipeline(pipe, net) for name, net in denoisers.items()}
    return (lambda: pipe.latents(prompts, steps=steps, seed=0),
            {name: lambda them=them: them(prompt_embeds=words, negative_prompt_embeds=nothing, latents=noise,
                                          num_inference_steps=steps, guidance_scale=pipe.config.guidance_scale,
                                          height=pipe.config.image_size, width=pipe.config.image_size,
                                          output_type="latent").images for name, them in theirs.items()})


# ---- start-up: what a process of its own needs

def start_up(rounds: int = 3) -> list[dict]:
    """Seconds from the command to its end: the package, the command's help, what a script imports, a picture from cold."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "picture.png")
        ours = {"import course": ["-c", "import course"],
                "course --help": ["-m", "course", "--help"],
                "import the pipeline": ["-c", "from course.pipeline import StableDiffusion"],
                "first picture": ["-m", "course", "sample", PROMPT, "--out", out, "--device", "cpu", "--json"]}
        theirs = {"import the pipeline": ["-c", "from diffusers import StableDiffusionPipeline"]}
        bars = {"import course": 0.3, "first picture": 10.0}
        times = in_turns({(who, name): lambda command=command: _process(command)
                          for who, commands in (("ours", ours), ("theirs", theirs)) for name, command in commands.items()},
                         rounds, turn=0.0)
    return [{"name": name, "seconds": statistics.median(times["ours", name]), "allowed": bars.get(name),
             "theirs_seconds": statistics.median(times["theirs", name]) if name in theirs else None} for name in ours]


def _process(command: list[str]) -> None:
    subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=SHIPPED.parent.parent)


# ---- small helpers

def quiet(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Without gradients."""
    return torch.no_grad()(function)


def random_weights(name: str) -> nn.Module:
    """A preset with weights of a sane size everywhere: what starts at zero would hide mistakes, and make nothing faster."""
    with torch.device("meta"):
        module = presets.build(name)
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        width = p[0].numel() if p.ndim > 1 else 0
        p.data.normal_(generator=generator).mul_(width**-0.5 if width else 0.1).add_(0.0 if width else 0.5)
    return module.eval()


def on_meta(module: nn.Module) -> nn.Module:
    """The same shapes without any numbers, to count operations with."""
    with torch.device("meta"):
        return type(module)(module.config).to(next(module.parameters()).dtype)


def nn_of(function: Callable, *modules: nn.Module) -> Callable:
    return lambda *inputs: function(*modules, *inputs)


def meta(*inputs):
    """Tensors of the same shapes without any numbers; also within a dict."""
    return tuple({k: v.to("meta") for k, v in i.items()} if isinstance(i, dict) else i.to("meta") if isinstance(i, Tensor) else i
                 for i in inputs)


def weight_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
