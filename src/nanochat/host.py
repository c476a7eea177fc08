"""What the host gives this process: processors, memory, and how fast matrices are multiplied."""

import functools
import math
import os
import time
from pathlib import Path

import torch


def allowed_processors() -> int:
    """Processors that this process may use: its affinity, and the quota of its container if it has one."""
    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota, period = (read_text("/sys/fs/cgroup/cpu.max") or "max 100000").split()
    return processors if quota == "max" else max(1, min(processors, math.ceil(int(quota) / int(period))))


def free_memory(device: str) -> int:
    """Bytes that could be had on a device ("cuda", "mps", "cpu") now, within the container's limit if it has one."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device == "mps":
        return torch.mps.recommended_max_memory()
    available = [line for line in read_text("/proc/meminfo").splitlines() if line.startswith("MemAvailable:")]
    if not available:  # not Linux: half of what there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    free = int(available[0].split()[1]) * 1024
    limit, used = read_text("/sys/fs/cgroup/memory.max"), read_text("/sys/fs/cgroup/memory.current")
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


@functools.cache
def bfloat16_pays(device: str) -> bool:
    """Whether matrix products in bf16 are clearly faster than in fp32 (on a CPU: a probe, once in a process)."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "mps":
        return False  # half as much memory, but no faster
    # In turn, so that whatever else takes the processors for some milliseconds doesn't decide how a whole run computes.
    rates = dict.fromkeys((torch.bfloat16, torch.float32), 0.0)
    begun, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - begun < 0.05:
        rounds += 1
        for dtype in rates:
            rates[dtype] = max(rates[dtype], matmul_rate(device, dtype, 256, 0.002))
    return rates[torch.bfloat16] > 1.4 * rates[torch.float32]


def matmul_rate(device: str, dtype: torch.dtype, size: int, seconds: float) -> float:
    """FLOP/s of the quickest of several products of `size` x `size` matrices; at least three are tried."""
    a = torch.linspace(-1, 1, size * size, device=device).view(size, size).to(dtype)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        a @ a
        if device != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])  # the first one sets things up


def read_text(path: str) -> str:
    """What a file says, stripped; nothing where it can't be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
