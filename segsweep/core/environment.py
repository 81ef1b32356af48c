"""Facts of the machine and the program that a record carries, and this job's peak memory."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils import flop_counter

PACKAGES = ("segsweep", "torch", "numpy", "hydra-core", "omegaconf", "optuna", "mlflow")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Of glibc's malloc.h."""


@lru_cache
def spare_dynamo() -> None:
    """Keep torch from importing its compiler, a second's work, when an optimizer is made or makes a step, or operations
    are counted.

    torch wraps these functions so that the compiler leaves them out where it traces; here it never traces them. The
    wrapper of a step also turns gradients on for `differentiable`, which is for steps that are differentiated."""
    optimizer = torch.optim.Optimizer
    for kind in vars(torch.optim).values():
        plain_step = getattr(getattr(kind, "step", None), "__wrapped__", None)
        if plain_step and issubclass(kind, optimizer):
            kind.step = torch.no_grad()(plain_step)
    wrapped: Any = [optimizer.add_param_group, optimizer.state_dict, optimizer.load_state_dict, optimizer.zero_grad]
    for function in (*wrapped, flop_counter._FlopCounterMode.__torch_dispatch__):
        if plain := getattr(function, "__wrapped__", None):
            plain.__dynamo_disable = plain


def facts(device: torch.device, modules: Iterable[str], home: Path) -> dict[str, Any]:
    """device, and `program`."""
    return {"device": device_name(device)} | program(modules, home)


def program(modules: Iterable[str], home: Path) -> dict[str, Any]:
    """versions (those of the packages that `modules` are in, too, and this program's own commit beside its version) and
    the git commit of the checkout that `home` lies in (None outside one; `+` marks uncommitted changes)."""
    found = dict(versions(*packages(modules)))
    if (own := commit(Path(__file__).parent)) and home != Path(__file__).resolve().parents[1]:
        found["segsweep commit"] = own
    return {"versions": found, "commit": commit(home)}


def packages(modules: Iterable[str]) -> list[str]:
    """That `modules` are in, less Python's own."""
    return sorted({module.partition(".")[0] for module in modules} - sys.stdlib_module_names)


@lru_cache
def versions(*others: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *others):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # scikit-learn is imported as sklearn
            if isinstance(version := getattr(sys.modules.get(package), "__version__", None), str):
                found[package] = version
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


@lru_cache
def commit(folder: Path) -> str | None:
    """Of the checkout that holds `folder`. git runs with nothing of the environment that could name it commands, and
    with none of those that a repository's own settings name."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE")
    clean = {key: os.environ[key] for key in kept if key in os.environ} | {"GIT_CONFIG_NOSYSTEM": "1"}

    def git(*words: str) -> str:
        told = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, env=clean)
        return told.stdout.strip()

    try:
        filters = git("config", "--name-only", "--get-regexp", r"^filter\..*\.(clean|process|required)$").splitlines()
        if any("=" in name for name in filters):  # `-c` could not name it
            return None
        off = [f"{name}={'false' if name.endswith('.required') else ''}" for name in filters]
        off += ["core.fsmonitor=false", f"core.hooksPath={os.devnull}"]
        plain = [word for setting in off for word in ("-c", setting)]
        return git(*plain, "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12") or None
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {_cpuinfo('model name') or platform.machine()}, {torch.get_num_threads()} threads"


@lru_cache
def _cpuinfo(field: str) -> str | None:
    try:
        found = re.search(rf"^{field}\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found.group(1).strip() if found else None


@lru_cache
def memory() -> int:
    """Bytes that this machine has, or that its container may take."""
    limits = [int(text) for text in _limits("memory.max") if text != "max"]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


@lru_cache
def cores() -> int:
    """Cores that this process may run on, or that its container may take the time of; at least 1."""
    limits = [int(quota) // int(period) for quota, period in map(str.split, _limits("cpu.max")) if quota != "max"]
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([given, *limits]))


def _limits(name: str, groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[str]:
    """What `name` holds in this process's control group (version 2) and in each above it."""
    found = []
    with contextlib.suppress(OSError):  # not Linux
        path = next((line[3:] for line in own.read_text().splitlines() if line.startswith("0::")), "/")
        group = groups / path.lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError):
                found.append((folder / name).read_text().strip())
    return found


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AVX512-BF16 or AMX); emulated bf16 is slower than fp32."""
    flags = (_cpuinfo("flags") or "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def keep_memory() -> None:
    """Let this process's allocator keep what a training step frees for the next one (glibc; elsewhere nothing).

    By default glibc takes each large tensor from the system anew, whose pages are then zeroed one by one, and the
    threads wait for one another there: a tenth of a step's time on two cores (benchmarks/LOG.md)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            ctypes.CDLL(None).mallopt(option, value)


def give_memory_back() -> None:
    """Return to the system what `keep_memory` has kept and nothing uses."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Start this job's own peak: jobs share a process, and the largest before would hide it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    give_memory_back()
    with contextlib.suppress(OSError):  # not Linux: the peak is that of the process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a CUDA device; on a CPU the process's largest resident set since `reset_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
