"""What every benchmark shares: facts about the machine, its measured peak, and how results are shown and kept.

A benchmark ends with `report(name, results, card)`: a card for people, one line of JSON last on standard output, and
both, with the machine's facts, in `benchmarks/results/<date>-<name>.json`.
"""

import datetime
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"
LOAD_AT_START = os.getloadavg()[0]  # others' work on this machine, before the benchmark adds its own


def machine() -> dict[str, Any]:
    """Facts that a figure depends on: processor, cores, memory, versions, load average at the start."""
    facts = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_start": round(LOAD_AT_START, 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def peak_matmul(dtype: torch.dtype) -> float:
    """The most FLOP/s that a product of two square matrices of `dtype` reaches here: the best of sizes and repeats."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = (4096, 8192, 16384) if device == "cuda" else (512, 1024, 2048)
    return max(_matmul_flops(size, dtype, device) for size in sizes)


def report(name: str, results: dict[str, Any], card: str) -> None:
    """Print the card and then one line of JSON, and keep that line as `results/<date>-<name>.json`."""
    date = datetime.date.today().isoformat()
    record = {"benchmark": name, "date": date, "machine": machine(), **results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{date}-{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(card.rstrip())
    print(json.dumps(record))


def _matmul_flops(size: int, dtype: torch.dtype, device: str) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = []
    begun = time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - begun < 0.5:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
