"""What a process keeps of the memory that a training step frees."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segsweep.core import environment

STEPS = """
import resource, torch
from segsweep.core import environment
MIB = 2**20

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // MIB

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(64 * MIB // 4) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{setting}
start = resident()
for _ in range(5):  # what is free has to suit what is asked for next: not at the first time
    faults()
print(faults(), resident() - start)
environment.give_memory_back()
print(resident() - start)
"""


@pytest.mark.skipif("glibc" not in environment.platform.libc_ver(), reason="of glibc's allocator")
@pytest.mark.parametrize("keeps", [True, False])
def test_a_step_finds_the_memory_that_the_one_before_it_freed(keeps):
    script = STEPS.format(setting="environment.keep_memory()" if keeps else "")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    faults, held, given_back = map(int, done.stdout.split())
    if keeps:
        assert faults < 100
        assert held > 250
    else:  # so that the test would see if the system did this by itself
        assert faults > 30_000
    assert given_back < 20


def test_training_on_a_cpu_asks_for_it(monkeypatch):
    from segsweep.core import device

    asked = []
    monkeypatch.setattr(device.environment, "keep_memory", lambda: asked.append(True))
    device.pick_device("cpu")
    assert asked == [True]


def test_it_is_left_alone_where_the_c_library_is_another(monkeypatch):
    class Other:
        def __getattr__(self, name):
            raise AttributeError(name)

    monkeypatch.setattr(environment.ctypes, "CDLL", lambda name: Other())
    environment.keep_memory()
    environment.give_memory_back()


def test_the_options_are_those_of_malloc_h():
    header = Path("/usr/include/malloc.h")
    if not header.exists():
        pytest.skip("no C headers")
    defined = dict(re.findall(r"#define (M_\w+)\s+(-\d+)", header.read_text()))
    for name in ("M_TRIM_THRESHOLD", "M_TOP_PAD", "M_MMAP_MAX"):
        assert int(defined[name]) == getattr(environment, name)


def test_git_runs_no_command_that_the_environment_or_a_repositorys_settings_name(tmp_path, monkeypatch):
    mark, repository = tmp_path / "mark", tmp_path / "repository"
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\ntouch {mark}\n")
    command.chmod(0o755)

    def git(*arguments: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(repository), *names, *arguments], check=True, capture_output=True)

    repository.mkdir()
    git("init")
    (repository / "file").write_text("1")
    git("add", "file")
    git("commit", "--message=first")
    git("config", "core.fsmonitor", str(command))
    git("config", "filter.bad.clean", str(command))
    git("config", "filter.bad.required", "true")
    (repository / ".git" / "info" / "attributes").write_text("* filter=bad\n")
    git("config", "core.hooksPath", str(tmp_path / "hooks"))
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "post-index-change").symlink_to(command)
    os.utime(repository / "file", (1, 1))  # git writes its index anew
    given = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": str(command)}
    for key, value in (given | {"GIT_DIR": str(tmp_path / "none")}).items():
        monkeypatch.setenv(key, value)
    found = environment.commit.__wrapped__(repository)
    assert found is not None
    assert re.fullmatch("[0-9a-f]{12}", found)
    assert not mark.exists()
