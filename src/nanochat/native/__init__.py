"""Kernels in C for the CPU: built at first use where there is a C compiler, else done without. And: is there Triton?"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.common import atomic_file

_HERE = Path(__file__).parent
# What vectorising sums needs of -ffast-math: the whole of it would change how the process rounds tiny numbers.
LOOSE = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"]
FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
SUFFIX = {torch.bfloat16: "_bfloat16", torch.float32: "_float32"}


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed, in which the kernels for GPUs are written."""
    return importlib.util.find_spec("triton") is not None


class Kernels:
    """The functions of `kernels.c`, called by name with tensors, whole numbers and fractions.

    Each comes in two types; which one is called goes by `dtype`, bfloat16 or float32. Tensors must be contiguous and on
    the CPU; `None` is a null pointer. They run on PyTorch's own OpenMP threads, `torch.get_num_threads()` of them.
    """

    def __init__(self, library: ctypes.CDLL):
        self._library = library

    def __call__(self, name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
        """Call a kernel.

        Raises:
            MemoryError: if it found none for its scratch space.
        """
        if getattr(self._library, name + SUFFIX[dtype])(*map(_as_c, arguments)) == -1:
            raise MemoryError(f"no memory for the scratch space of {name}")


def _as_c(argument: Tensor | int | float | None) -> Any:
    if isinstance(argument, Tensor):
        assert argument.is_contiguous() and argument.device.type == "cpu"
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_void_p() if argument is None else ctypes.c_int64(argument)


@functools.cache
def kernels() -> Kernels | None:
    """The kernels of training, built for this machine if they are not there yet; None where `library` is None."""
    built = library("kernels.c", "typed.h", flags=LOOSE)
    return Kernels(built) if built else None


def library(source: str, *headers: str, flags: Sequence[str]) -> ctypes.CDLL | None:
    """A C file of this folder, built for this machine if it is not there yet; None without a C compiler that can.

    It is kept in `$XDG_CACHE_HOME/nanochat` (`~/.cache/nanochat`), under a name that depends on the source,
    the compiler and the processor. `NANOCHAT_NATIVE=0` does without.
    """
    if os.environ.get("NANOCHAT_NATIVE") == "0":
        return None
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_built(compiler, [_HERE / name for name in (source, *headers)], [*FLAGS, *flags])))
    except (OSError, subprocess.SubprocessError):  # no OpenMP, no place to write, a compiler that is none
        return None


def _built(compiler: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    parts = [source.read_bytes() for source in sources]
    key = hashlib.blake2b(b"\0".join([*parts, version, _processor(), shlex.join(flags).encode()]), digest_size=8)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanochat"
    built = cache / f"{sources[0].stem}-{key.hexdigest()}.so"
    if not built.exists():
        with atomic_file(built) as temporary:
            command = [compiler, *flags, str(sources[0]), "-o", str(temporary), "-lm"]
            subprocess.run(command, capture_output=True, check=True, timeout=120)
    return built


def _processor() -> bytes:
    """What `-march=native` goes by: the flags of /proc/cpuinfo, where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"model name", b"Features"))}))
