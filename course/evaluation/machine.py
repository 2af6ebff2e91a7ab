"""What a machine can do at most: multiplications a second, and bytes a second, measured. Every floor is made of these two."""

import os
import platform
import time
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Machine:
    device: str
    name: str
    threads: int
    torch: str
    dtype: str
    flops: float                           # a second: the best of matrix products of three sizes and of a convolution
    bandwidth: float                       # bytes a second, read and written, of a copy too large for any cache
    load: float                            # programs that wanted a processor in the last minute; idle: below 0.3

    def floor(self, flops: float, bytes: float = 0.0) -> float:
        """Seconds below which nobody can be."""
        return max(flops / self.flops, bytes / self.bandwidth)

    def as_dict(self) -> dict:
        return asdict(self)


def measure(device: str = "cpu", dtype: torch.dtype = torch.float32, seconds: float = 0.5) -> Machine:
    """Measure the machine: best of several tries, since a ceiling is wanted."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name()
    sizes = (4096, 8192) if device.startswith("cuda") else (256, 512, 1024)
    rates = [2 * n**3 / _best(_product(n, device, dtype), device, seconds) for n in sizes]
    side = 128 if device.startswith("cuda") else 32
    rates.append(2 * 9 * 128 * 128 * side**2 / _best(_convolution(128, side, device, dtype), device, seconds))
    numbers = torch.empty(2**28 if device.startswith("cuda") else 2**25, device=device)
    into = torch.empty_like(numbers)
    bandwidth = 2 * 4 * numbers.numel() / _best(lambda: into.copy_(numbers), device, seconds)
    return Machine(device, name, torch.get_num_threads(), torch.__version__, str(dtype).removeprefix("torch."), max(rates),
                   bandwidth, load)


def _product(n: int, device: str, dtype: torch.dtype):
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def _convolution(channels: int, side: int, device: str, dtype: torch.dtype):
    x = torch.randn(1, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, w, padding=1)


@torch.no_grad()
def _best(function, device: str, seconds: float) -> float:
    """The shortest time of one call, in seconds, among all that fit into `seconds`; at least five."""
    best, begun, calls = float("inf"), time.perf_counter(), 0
    while calls < 5 or time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        function()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best, calls = min(best, time.perf_counter() - before), calls + 1
    return best


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
