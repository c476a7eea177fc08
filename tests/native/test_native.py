"""The kernels are built once, found again, and done without where they can't be."""

import os
import subprocess
import sys

import pytest
import torch

from nanochat import native
from nanochat.native import Kernels, kernels

needs_kernels = pytest.mark.skipif(kernels() is None, reason="there is no C compiler")


@pytest.fixture
def fresh():
    """Forgets what was built or not, before and after."""
    kernels.cache_clear()
    yield
    kernels.cache_clear()


@needs_kernels
def test_built_once_and_found_again(tmp_path, monkeypatch, fresh):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert isinstance(kernels(), Kernels)
    [library] = (tmp_path / "nanochat").iterdir()
    written = library.stat().st_mtime_ns
    kernels.cache_clear()
    assert isinstance(kernels(), Kernels)
    assert library.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "environment",
    [{"NANOCHAT_NATIVE": "0"}, {"PATH": ""}, {"CC": "false", "PATH": "/nowhere"}, {"XDG_CACHE_HOME": "/dev/null"}],
)
def test_done_without(environment, monkeypatch, fresh):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert kernels() is None


def test_a_compiler_that_fails_is_done_without(tmp_path, monkeypatch, fresh):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] || exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert kernels() is None
    assert not list((tmp_path / "cache" / "nanochat").iterdir())


@needs_kernels
def test_two_processes_build_at_once(tmp_path):
    code = "from nanochat.native import kernels; assert kernels() is not None"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(60) for process in started] == [0, 0]


@needs_kernels
def test_the_process_rounds_tiny_numbers_as_before():
    """A library linked with -ffast-math would make the whole process flush them to zero."""
    kernels()
    assert (torch.tensor([1e-40]) * 1).item() != 0


@needs_kernels
def test_only_contiguous_tensors_are_taken():
    run = native.kernels()
    x = torch.ones(4, 4).T[:, :2]
    with pytest.raises(AssertionError):
        run("relu_squared", torch.float32, x, torch.empty(8), 8)
