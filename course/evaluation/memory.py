"""How many bytes a computation holds at once: counted, without a machine that has them, or measured under a cap.

Counted: every tensor is a shape without numbers (PyTorch's FakeTensorMode: the meta device, but the same kernels are chosen as
on a CPU), and each piece of memory is noted when it comes and when nobody refers to it any more. What a device adds is not in
it: the allocator's rounding and fragments, the workspace of a convolution, the driver's own.
"""

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from course import presets
from course.errors import TrainingError
from course.evaluation.cost import root

CAP = 8e9                                  # bytes of a consumer's card with 8 GiB; the driver and a screen take the rest


class Living(TorchDispatchMode):
    """with Living() as living: ...; `.peak` is the most bytes of tensors that were alive at once, weights included."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.hold, result)
        return result

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()                     # views share one
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.let_go, key, size)

    def let_go(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def counted(build: Callable[[], Callable[[], None]], calls: int = 1) -> int:
    """Bytes alive at once while `build()` makes a function, and while that is called; all of it with shapes only."""
    with FakeTensorMode(), Living() as living:
        function = build()
        for _ in range(calls):
            function()
        del function
        return living.peak


def training(net: nn.Module, *given) -> Callable[[], None]:
    """A function that takes one step of training (forward, backward, AdamW) towards zero."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss = net(*given).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return step


def built(make: Callable[[], nn.Module], dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """`make()` with weights of `dtype` from the start: made in float32 and halved, it would be largest before its first use."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return make().eval()
    finally:
        torch.set_default_dtype(before)


def picture(device: str = "cpu", dtype: torch.dtype = torch.float16, side: int = 512) -> Callable[[], None]:
    """A function that makes one picture as Stable Diffusion 1.5 does: text, guided steps, decoder; weights at random.

    All networks stay where they are, and nothing is offloaded or cut into tiles. Two steps: the others hold no more.
    """
    net, encoder, vae = (built(lambda name=name: presets.build(name), dtype, device) for name in ("sd15", "clip-l", "vae-sd"))
    factor = presets.VAES["vae-sd"].factor

    @torch.no_grad()
    def draw() -> None:
        context = encoder(torch.zeros(2, 77, dtype=torch.long, device=device))                          # (2,77,768)
        z = torch.zeros(1, 4, side // factor, side // factor, dtype=dtype, device=device)
        for t in (981.0, 1.0):
            without, with_ = net(torch.cat([z, z]), t, context).chunk(2)
            z = z - 0.01 * (without + 7.5 * (with_ - without))                                          # (1,4,h,w)
        vae.decode(z)
    return draw


def weights(*names: str, size: int = 2) -> int:
    """Bytes of the weights of some presets, `size` bytes each."""
    with torch.device("meta"):
        return size * sum(p.numel() for name in names for p in presets.build(name).parameters())


def under_cap(cap: float = CAP) -> dict:
    """`picture` on a GPU that may not hold more than `cap` bytes, in a process of its own.

    {"peak": bytes, "reserved": bytes} of the allocator; "peak" is None where memory ran out. Raises TrainingError for all else.
    """
    done = subprocess.run([sys.executable, "-m", "course.evaluation.memory", str(cap)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": root()})
    if done.returncode:
        raise TrainingError(f"could not draw under a cap of {cap:.3g} bytes: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)


def _draw_under(cap: float) -> dict:
    share = cap / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
    try:
        picture("cuda")()
    except torch.cuda.OutOfMemoryError:
        return {"peak": None, "reserved": torch.cuda.max_memory_reserved()}
    return {"peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}


if __name__ == "__main__":
    print(json.dumps(_draw_under(float(sys.argv[1]))))
