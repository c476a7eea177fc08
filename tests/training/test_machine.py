"""What is found out about the machine, and what is chosen for it."""

import itertools

import pytest
import torch

from nanochat import host
from nanochat.model.accounting import training_state_bytes
from nanochat.training import machine as machine_module
from nanochat.training.machine import DATA_SHEETS, Machine, measured_peak, this_machine
from nanochat.training.recipe import Recipe

GIB = 2**30


def machine(**values):
    defaults = {"device": "cpu", "name": "A Processor", "threads": 2, "memory": 16 * GIB, "dtype": "float32"}
    return Machine(**(defaults | values))


@pytest.fixture
def no_probe(monkeypatch):
    monkeypatch.setattr(machine_module, "measured_peak", lambda device, dtype, again: 123e9)


def test_this_machine_is_whole():
    assert this_machine() is this_machine()
    found = Machine.detect()
    assert found.device in ("cuda", "mps", "cpu") and found.name
    assert 1 <= found.threads == torch.get_num_threads()
    assert found.memory > 2**26
    assert found.dtype in ("bfloat16", "float32")


def test_the_measured_peak_is_a_rate_that_a_product_can_reach():
    import time

    peak = measured_peak("cpu", "float32")
    a, times = torch.rand(512, 512), []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    assert 0.2 * peak < 2 * 512**3 / min(times) < 5 * peak


def test_the_best_of_all_measurements_is_the_peak(monkeypatch):
    """The first one may have been slowed by others' work: a share above 100 % of the peak would follow."""
    rates = iter([200e9, 500e9, 300e9])
    monkeypatch.setattr(machine_module, "_best_rates", {})
    monkeypatch.setattr(machine_module, "_best_rate", lambda *arguments: next(rates))
    here = machine()
    peaks = [here.peak("float32", again).flops for again in (False, False, True, True, False)]
    assert peaks == [200e9, 200e9, 500e9, 500e9, 500e9]


def test_the_probe_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    host.matmul_rate("cpu", torch.float32, 64, 0.0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A40", 149.7), ("NVIDIA L4", 121), ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181), ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA B200", 2250),
    ],
)  # fmt: skip
def test_known_accelerators_have_the_peak_of_their_data_sheet(no_probe, name, tflops):
    peak = machine(device="cuda", name=name).peak("bfloat16")
    assert peak.flops == tflops * 1e12 and peak.source == "data sheet"


@pytest.mark.parametrize("values", [{"device": "cuda", "name": "Some Card"}, {"name": "Core L4 H100"}, {}])
def test_where_no_data_sheet_is_known_the_peak_is_measured(no_probe, values):
    peak = machine(**values).peak("bfloat16")
    assert peak.flops == 123e9 and str(peak) == "123 GFLOP/s (measured)"


def test_the_data_sheet_is_of_bfloat16_only(no_probe):
    assert machine(device="cuda", name="NVIDIA A100").peak("float32").source == "measured"


def test_no_name_in_the_table_hides_a_longer_one():
    for first, second in itertools.combinations(DATA_SHEETS, 2):
        assert first not in second, f"{second} would be taken for {first}"


def test_the_line_names_threads_precision_and_peak(no_probe):
    assert machine().describe("bfloat16") == "2 threads of A Processor, bfloat16, peak 123 GFLOP/s (measured)"
    assert machine(threads=1).describe("float32").startswith("1 thread of A Processor, float32")
    assert machine(device="cuda", name="NVIDIA L4").describe("bfloat16") == (
        "NVIDIA L4, bfloat16, peak 121 TFLOP/s (data sheet)"
    )


# ------------------------------------------------------------------------------------------------- micro-batch


def test_the_recipe_takes_precision_and_micro_batch_from_the_machine():
    made = Recipe.from_depth(12, 32768, machine(device="cuda", dtype="bfloat16", memory=80 * GIB))
    assert made.dtype == "bfloat16" and made.micro_batch_tokens > 8192
    assert Recipe.from_depth(12, 32768, machine(dtype="float32")).dtype == "float32"
    chosen = Recipe.from_depth(12, 32768, machine(), dtype="bfloat16", micro_batch_tokens=77)
    assert (chosen.dtype, chosen.micro_batch_tokens) == ("bfloat16", 77)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("depth", [2, 6, 12, 20])
def test_the_micro_batch_fits_into_the_memory(device, depth):
    sizes = []
    for memory in (8, 16, 24, 80, 141):
        here = machine(device=device, memory=memory * GIB)
        made = Recipe.from_depth(depth, 32768, here, dtype="bfloat16")
        tokens = made.micro_batch_tokens
        assert tokens % made.seq_len == 0 and made.seq_len <= tokens <= made.batch_tokens
        if tokens > made.seq_len:
            assert here.training_bytes(made.config(), made.seq_len, tokens, "bfloat16") < here.memory
        sizes.append(tokens)
    assert sizes == sorted(sizes)  # more memory, never smaller
    if device == "cpu":
        assert max(sizes) <= 8192


def test_a_model_too_large_for_the_memory_gets_one_row():
    made = Recipe.from_depth(32, 65536, machine(memory=4 * GIB))
    assert made.micro_batch_tokens == made.seq_len
    assert training_state_bytes(made.config()) > 4 * GIB


@pytest.mark.parametrize("rows", range(1, 70))
def test_micro_batches_share_the_batch_out_evenly(rows):
    here, config = machine(), Recipe.from_depth(2, 500, dtype="float32", micro_batch_tokens=1).config()
    micro_rows = here.micro_batch_tokens(config, 256, rows * 256, "float32") // 256
    parts = [min(micro_rows, rows - start) for start in range(0, rows, micro_rows)]
    assert max(parts) <= 32 and len(parts) == -(-rows // 32)
    assert max(parts) - min(parts) < len(parts)


# ------------------------------------------------------------------------------------------------- threads, memory


@pytest.mark.parametrize(("quota", "processors"), [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2),
                                                   ("10000 100000", 1), ("9900000 100000", 64), ("", 64)])  # fmt: skip
def test_processors_are_those_that_the_container_allows(monkeypatch, quota, processors):
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: range(64), raising=False)
    monkeypatch.setattr(host, "read_text", lambda path: quota)
    assert host.allowed_processors() == processors


@pytest.mark.parametrize(("limit", "free"), [("max", 8 * GIB), (str(3 * GIB), 2 * GIB), (str(99 * GIB), 8 * GIB)])
def test_memory_is_what_is_available_within_the_container(monkeypatch, limit, free):
    files = {"/proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {8 * 2**20} kB", "/sys/fs/cgroup/memory.max": limit,
             "/sys/fs/cgroup/memory.current": str(GIB)}  # fmt: skip
    monkeypatch.setattr(host, "read_text", files.__getitem__)
    assert host.free_memory("cpu") == free


def test_elsewhere_than_on_linux_half_of_the_memory_counts(monkeypatch):
    monkeypatch.setattr(host, "read_text", lambda path: "")
    assert host.free_memory("cpu") > 2**26
