"""The device that a process computes on: which, in what precision, through what compiled code, and when it is full."""

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch

from segsweep.core import environment
from segsweep.core.errors import ConfigError

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
"""What torch's CPU allocator, CUDA's driver, cuDNN and cuBLAS say in a RuntimeError."""
GRAPHS = 64
"""Shapes that torch compiles one function for, of all networks of a worker: its own limit is 8, then all is eager."""

_compiler = {"seconds": 0.0, "began": 0.0}
"""Of torch's compiler, which a process has one of: how long it has worked, and since when it works now."""


def pick_device(asked: str) -> torch.device:
    """`auto` is the CUDA device of this process where there is one."""
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={asked}: torch finds no CUDA device; use device=cpu or device=auto")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"device={asked}: there are {torch.cuda.device_count()} CUDA devices, cuda:0 is the first")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    else:
        environment.keep_memory()
    return device


def pick_precision(asked: str, device: torch.device) -> str:
    """`auto` is bf16 where the device computes in it, else fp32."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if environment.cpu_has_bf16() else "fp32"


def compiled(model: torch.nn.Module, sizes: Collection[int], **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """`model` with torch.compile for batches of these `sizes`; an epoch's smaller last one goes through the network as
    it is. Compiled too, it would have every later batch and job run a graph for any number of slices. options:
    torch.compile's."""
    torch._dynamo.config.recompile_limit = GRAPHS
    _time_compiler()
    made = torch.compile(model, dynamic=False, **options)
    return lambda x: made(x) if len(x) in sizes else model(x)


def compile_seconds() -> float:
    """That torch has compiled for in this process, for whatever `compiled` has made."""
    return _compiler["seconds"]


@cache
def _time_compiler() -> None:
    """Only the outermost of nested compilations calls back (torch/_dynamo/callback.py)."""
    from torch._dynamo.callback import on_compile_end, on_compile_start

    @on_compile_start
    def begin(*_: Any) -> None:
        _compiler["began"] = time.perf_counter()

    @on_compile_end
    def end(*_: Any) -> None:
        _compiler["seconds"] += time.perf_counter() - _compiler["began"]


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """What a forward pass runs under, made anew for each."""
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16")


def out_of_memory(error: BaseException) -> bool:
    """Whether the device or this machine had no memory left; a ValueError in the same words is a component's own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
