"""The device that a process computes on: which, in what precision, through what compiled code, and when it is full."""

import ctypes
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from segsweep.core import environment
from segsweep.core.errors import ConfigError

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
"""What torch's CPU allocator, CUDA's driver, cuDNN and cuBLAS say in a RuntimeError."""
T = TypeVar("T")
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


def bound(device: torch.device, turns: Iterable[T]) -> Iterator[T]:
    """The same `turns`, and while each is worked on, each of the threads that share a step's work on a processor of its
    own, where there are as many of both.

    They wait for one another by spinning, and where another process keeps the machine busy two of them came to wait on
    one processor, each in the other's time: an epoch took up to seven times as long (benchmarks/LOG.md). Between two
    turns they are free, as is what is started there; what a turn starts has the first thread's processor. Numbers do
    not hang on it. With OMP_PROC_BIND in the environment the library does as that says, and this nothing."""
    for turn in turns:  # which may change their number
        threads, processors = torch.get_num_threads(), _processors()
        own = device.type == "cpu" and 1 < threads == len(processors) and "OMP_PROC_BIND" not in os.environ
        if own:
            _place(threads, [{each} for each in processors])
        try:
            yield turn
        finally:
            if own:
                _place(threads, [{*processors}] * threads)


def _processors() -> list[int]:
    """That this thread may run on; none where a system cannot tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _place(threads: int, places: list[set[int]]) -> None:
    """Have each thread of this thread's team in torch's OpenMP, whichever that is, move itself to its place."""
    with suppress(OSError, AttributeError):  # a torch with another one, or with none
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        number = library.omp_get_thread_num

        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def move(_: Any) -> None:
            with suppress(OSError):  # a processor that was taken away
                os.sched_setaffinity(0, places[number()])

        library.GOMP_parallel(move, None, threads, 0)


def pick_precision(asked: str, device: torch.device) -> str:
    """`auto` is bf16 where the device computes in it, else fp32."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if environment.cpu_has_bf16() else "fp32"


def compiled(model: torch.nn.Module, sizes: Collection[int], **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """`model` with torch.compile for batches of these `sizes`; an epoch's smaller last one goes through the network as
    it is. Compiled too, it would have every later batch and job run a graph for any number of samples. options:
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
