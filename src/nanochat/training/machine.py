"""The machine that a run finds itself on: device, threads, precision, memory, and how fast it can multiply."""

import dataclasses
import functools
import math
import platform
import subprocess
import time

import torch

from nanochat.common import si
from nanochat.host import allowed_processors, bfloat16_pays, free_memory, matmul_rate, read_text
from nanochat.model.accounting import activation_bytes_per_token, training_state_bytes
from nanochat.model.configuration import NanoChatConfig

# Dense bf16 products with fp32 sums, in FLOP/s, from NVIDIA's and AMD's data sheets (which print twice as much where
# they count on sparsity). The first name that occurs in the device's own name counts.
DATA_SHEETS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
}
# Share of the peak that training reaches, for the time expected of a run. The original reaches 41 % at depth 12 and
# 50 % at depth 24 on 8 H100; two cores of an AMD EPYC reach 35 % at depth 2 and 42 % at depth 4 (docs/log.md).
EXPECTED_UTILIZATION = {"cuda": 0.40, "mps": 0.30, "cpu": 0.40}
MOST_MICRO_BATCH_TOKENS = {"cuda": 2**16, "mps": 2**14, "cpu": 2**13}  # beyond it no faster, only larger
MEMORY_SHARE = {"cuda": 0.85, "mps": 0.6, "cpu": 0.5}  # of what is free: others live on a CPU's memory too
PROBE_SECONDS = 0.5

_best_rates: dict[tuple[str, str], float] = {}  # measured in this process, by device and dtype


@dataclasses.dataclass(frozen=True)
class Peak:
    """How many floating-point operations per second matrix products can reach, and who says so."""

    flops: float
    source: str  # "data sheet" or "measured"

    def __str__(self) -> str:
        return f"{si(self.flops)}FLOP/s ({self.source})"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What training runs on.

    Attributes:
        device: "cuda", "mps" or "cpu".
        name: of the accelerator, or of the processor.
        threads: that PyTorch computes with on the CPU.
        memory: free for training, in bytes.
        dtype: "bfloat16" where its products are clearly faster here, else "float32".
    """

    device: str
    name: str
    threads: int
    memory: int
    dtype: str

    @classmethod
    def detect(cls) -> "Machine":
        """The machine of this process; PyTorch's threads are cut to the processors that it is allowed to use."""
        torch.set_num_threads(min(torch.get_num_threads(), allowed_processors()))
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        name = torch.cuda.get_device_name() if device == "cuda" else _processor_name()
        dtype = "bfloat16" if bfloat16_pays(device) else "float32"
        return cls(device, name, torch.get_num_threads(), free_memory(device), dtype)

    def peak(self, dtype: str, again: bool = False) -> Peak:
        """The peak of matrix products in `dtype`: from a data sheet where the device is known, else measured.

        It is measured once; `again` measures a little more and keeps the best, for somebody else's work on the
        machine may have slowed the first products.
        """
        known = next((flops for name, flops in DATA_SHEETS.items() if name in self.name), None)
        if self.device == "cuda" and dtype == "bfloat16" and known:
            return Peak(known, "data sheet")
        return Peak(measured_peak(self.device, dtype, again), "measured")

    def describe(self, dtype: str) -> str:
        """One line for people: what it computes with, in which precision, how fast at best."""
        device = f"{self.threads} thread{'s' * (self.threads > 1)} of {self.name}"
        return f"{device if self.device == 'cpu' else self.name}, {dtype}, peak {self.peak(dtype)}"

    def training_bytes(self, config: NanoChatConfig, seq_len: int, micro_batch_tokens: int, dtype: str) -> int:
        """Memory that training takes at most on this machine, in bytes (an estimate from above)."""
        per_token = self._activation_bytes_per_token(config, seq_len, dtype)
        return training_state_bytes(config) + micro_batch_tokens * per_token

    def micro_batch_tokens(self, config: NanoChatConfig, seq_len: int, batch_tokens: int, dtype: str) -> int:
        """The largest micro-batch that fits: whole rows that share the batch out evenly, at least one row."""
        room = MEMORY_SHARE[self.device] * self.memory - training_state_bytes(config)
        fitting = room / self._activation_bytes_per_token(config, seq_len, dtype)
        most_rows = max(1, int(min(fitting, MOST_MICRO_BATCH_TOKENS[self.device]) // seq_len))
        rows = batch_tokens // seq_len
        return math.ceil(rows / math.ceil(rows / most_rows)) * seq_len

    def _activation_bytes_per_token(self, config: NanoChatConfig, seq_len: int, dtype: str) -> int:
        plain_attention = self.device == "cpu" and seq_len <= 1024  # as the loop chooses it
        return activation_bytes_per_token(config, seq_len, dtype == "bfloat16", plain_attention)


@functools.cache
def this_machine() -> Machine:
    """The machine of this process, looked at once."""
    return Machine.detect()


def measured_peak(device: str, dtype: str, again: bool = False) -> float:
    """The best rate of square matrix products so far, in FLOP/s; measured if it never was, or `again`."""
    best = _best_rates.get((device, dtype), 0.0)
    if not best or again:
        seconds = PROBE_SECONDS / 8 if again else PROBE_SECONDS
        best = max(best, _best_rate(device, getattr(torch, dtype), seconds))
        _best_rates[device, dtype] = best
    return best


def _best_rate(device: str, dtype: torch.dtype, seconds: float) -> float:
    """The best over matrices of 512 rows and more, as large as about so many seconds allow."""
    begun, best, size = time.perf_counter(), 0.0, 512
    while size <= 8192 and time.perf_counter() - begun < seconds / 2:
        best = max(best, matmul_rate(device, dtype, size, seconds / 6))
        size *= 2
    return best


def _processor_name() -> str:
    names = [line for line in read_text("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    if names:
        return names[0].partition(":")[2].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return platform.processor() or platform.machine()
