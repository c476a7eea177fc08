"""llama.cpp as a peer: a Llama of about the same size with random weights, run through the C API of llama-cpp-python.

An optional peer: `pip install llama-cpp-python gguf` (extra `peers`; it is built from source, which takes minutes).
A Llama's MLP has three matrices for NanoChat's two, so its inner width is two thirds of ours, rounded up to whole
blocks of 32 numbers: 0.3 % more weights to read at 8 layers x 512.
"""

import ctypes
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

CONTEXT = 2304  # of each sequence


class LlamaPeer:
    """Answers batches of prompts greedily, all of them for the same number of new tokens."""

    def __init__(self, shape: dict[str, int], format: str, threads: int) -> None:
        _quiet()
        self.threads, self.vocab_size = threads, shape["vocab_size"]
        self._contexts: dict[int, Any] = {}  # by number of sequences
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bf16.gguf"
            write_llama(path, shape)
            if format != "bf16":
                path = _quantized(path, format)
            self._model = llama_cpp.llama_model_load_from_file(
                str(path).encode(), llama_cpp.llama_model_default_params()
            )

    def __call__(self, prompts: list[list[int]], new_tokens: int) -> None:
        context = self._context(len(prompts))
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        tokens = [(id, place, row) for row, prompt in enumerate(prompts) for place, id in enumerate(prompt)]
        lengths = [len(prompt) for prompt in prompts]
        chosen: dict[int, int] = {}
        for start in range(0, len(tokens), 2048):
            chosen |= self._run(context, tokens[start : start + 2048], lengths)
        for _ in range(new_tokens - 1):
            lengths = [length + 1 for length in lengths]
            chosen = self._run(context, [(chosen[row], lengths[row] - 1, row) for row in range(len(prompts))], lengths)

    def _run(self, context: Any, tokens: list[tuple[int, int, int]], lengths: list[int]) -> dict[int, int]:
        """Run (id, place, row) tokens; return the likeliest next token of every row whose last one is among them."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for n, (id, place, row) in enumerate(tokens):
            batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = id, place, 1, row
            batch.logits[n] = place == lengths[row] - 1
        assert llama_cpp.llama_decode(context, batch) == 0
        last = {row: n for n, (_, place, row) in enumerate(tokens) if place == lengths[row] - 1}
        logits = {row: llama_cpp.llama_get_logits_ith(context, n) for row, n in last.items()}
        chosen = {
            row: int(np.ctypeslib.as_array(values, (self.vocab_size,)).argmax()) for row, values in logits.items()
        }
        llama_cpp.llama_batch_free(batch)
        return chosen

    def _context(self, sequences: int) -> Any:
        if sequences not in self._contexts:
            params = llama_cpp.llama_context_default_params()
            params.n_ctx, params.n_seq_max, params.n_batch = CONTEXT * sequences, sequences, 2048
            params.n_threads = params.n_threads_batch = self.threads
            self._contexts[sequences] = llama_cpp.llama_init_from_model(self._model, params)
        return self._contexts[sequences]


def write_llama(path: Path, shape: dict[str, int]) -> None:
    """Write a Llama with random weights in bf16 as a GGUF file."""
    C, V, heads = shape["hidden_size"], shape["vocab_size"], shape["heads"]
    inner = -(-8 * C // 3 // 32) * 32
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(shape["layers"])
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(C)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(0)

    def add(name: str, *size: int) -> None:
        weight = random.standard_normal(size, np.float32) * 0.02 if len(size) == 2 else np.ones(size, np.float32)
        if len(size) == 1:
            writer.add_tensor(name, weight)
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    add("token_embd.weight", V, C)
    add("output.weight", V, C)
    add("output_norm.weight", C)
    for n in range(shape["layers"]):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{n}.{name}.weight", C, C)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{n}.{name}.weight", inner, C)
        add(f"blk.{n}.ffn_down.weight", C, inner)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{n}.{name}.weight", C)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _quantized(path: Path, format: str) -> Path:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{format.upper()}")
    params.pure = True  # every matrix in this format: by itself it would keep the output head in 6 bits
    params.nthread = 2
    out = path.with_name(f"{format}.gguf")
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(params)) == 0
    return out


@llama_cpp.llama_log_callback
def _silence(level: int, text: bytes, data: Any) -> None:
    """Say nothing."""


def _quiet() -> None:
    llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
