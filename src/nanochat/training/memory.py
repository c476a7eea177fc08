"""Memory while training: keeping what is freed in the process, and telling when there is no more."""

import contextlib
import ctypes

import torch

# Parameters of glibc's mallopt, from <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Ask glibc to reuse large blocks instead of giving them back to the system; elsewhere this does nothing.

    A training step allocates and frees the same activations of some megabytes again and again. By default each of
    them is a new mapping, whose pages the kernel clears on first touch: about a third of the time of a small step
    (docs/log.md). This holds for the whole process.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**26)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a GPU or, in PyTorch's own words, on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
