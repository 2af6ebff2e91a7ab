"""Frames between the grader and a sandboxed kernel: one line of JSON and the raw bytes of the tensors, nothing that runs code.

    | 4 bytes: length of the JSON | 8 bytes: length of the tensors | JSON | tensors, one after the other |

Both lengths are read first and refused where they are too large, so that whoever is on the other side cannot fill our memory.
"""

import json
import math
import socket
import struct
import time

import torch
from torch import Tensor

HEAD = struct.Struct(">IQ")
JSON_LIMIT, TENSOR_LIMIT = 8 << 20, 512 << 20                   # bytes a frame
DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128)}


class Interrupted(BaseException):
    """The other side is gone, too slow, or does not keep to the protocol. No `except Exception` of a check may swallow it."""

    def __init__(self, status: str, why: str):
        super().__init__(why)
        self.status = status


class Channel:
    """A connected socket with a deadline."""

    def __init__(self, connection: socket.socket, seconds: float = math.inf):
        self.connection, self.deadline = connection, time.monotonic() + seconds

    def send(self, message: dict, tensors: list[Tensor]) -> None:
        raw = [_bytes(t) for t in tensors]
        text = json.dumps(message).encode()
        try:
            self._wait()
            self.connection.sendall(b"".join([HEAD.pack(len(text), sum(map(len, raw))), text, *raw]))
        except TimeoutError:
            raise Interrupted("timeout", "the time is up") from None
        except OSError as error:
            raise Interrupted("killed", f"the kernel is gone ({error})") from None

    def receive(self) -> tuple[dict, memoryview]:
        text, rest = HEAD.unpack(self._read(HEAD.size))
        if text > JSON_LIMIT or rest > TENSOR_LIMIT:
            raise Interrupted("killed", f"an answer of {(text + rest) >> 20} MB")
        body = self._read(text)
        raw = memoryview(self._read(rest))
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Interrupted("killed", f"an answer that is no JSON ({error})") from None
        if not isinstance(message, dict):
            raise Interrupted("killed", "an answer of the wrong kind")
        return message, raw

    def _read(self, count: int) -> bytearray:
        data, view, have = bytearray(count), None, 0
        view = memoryview(data)
        while have < count:
            try:
                self._wait()
                got = self.connection.recv_into(view[have:])
            except TimeoutError:
                raise Interrupted("timeout", "the time is up") from None
            except OSError as error:
                raise Interrupted("killed", f"the kernel is gone ({error})") from None
            if got == 0:
                raise Interrupted("killed", "the kernel is gone")
            have += got
        return data

    def _wait(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(None if left == math.inf else left)


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)       # one value may have stride 0
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def put(tensor: Tensor, tensors: list[Tensor]) -> list:
    """[dtype, shape], and the tensor in line for the raw part."""
    tensors.append(tensor)
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


class Reader:
    """Takes the tensors of a frame out of its raw part, in the order of the JSON."""

    def __init__(self, raw: memoryview):
        self.raw, self.at = raw, 0

    def take(self, description) -> Tensor:
        """A tensor of its own. Raises Interrupted for a dtype, a shape or a length that does not fit."""
        try:
            name, shape = description
            dtype, count = DTYPES[name], math.prod(shape)
            if len(shape) > 16 or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError("shape")
            size = count * dtype.itemsize
            part = self.raw[self.at: self.at + size]
            if len(part) != size:
                raise ValueError("length")
        except (KeyError, TypeError, ValueError) as error:
            raise Interrupted("killed", f"a tensor that is none ({error})") from None
        self.at += size
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(bytearray(part), dtype=torch.uint8).view(dtype).reshape(shape).clone()
