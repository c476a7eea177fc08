"""64 streaming clients against `nanochat serve`, beside the bare engine and `transformers serve`.

    python benchmarks/serve.py                   # two minutes of load, the bare engine on the same requests, memory
    python benchmarks/serve.py --peer            # and Transformers' server
    python benchmarks/serve.py --seconds 10 --memory-requests 200     # a quick look; no result is kept

Every client sends its next request as soon as the last answer is complete. Prompts are 8 to 128 random words of
about three tokens; answers are greedy, of 64 tokens at most. Clients, server and, after them, the engine share the same
cores. A request failed if its status is not 200 or its stream does not end well; it was mixed up if its text is not the
one that the bare engine gives to the same prompt. Memory is watched from when the cache of keys and values is full. The
peer's tokens are counted as if every answer had all 64.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvloop
from contenders import SHAPE, our_model, tokenizer
from harness import machine, report

CLIENTS, NEW_TOKENS = 64, 64
SHORTEST, LONGEST = 8, 128  # words of a prompt, three tokens each
PEER_REQUESTS = 2 * CLIENTS
TARGETS = {"of the bare engine": 0.9, "growth of memory": 0.05, "times the peer": 5.0}
HOST = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of load")
    parser.add_argument("--memory-requests", type=int, default=2000)
    parser.add_argument("--peer", action="store_true", help="measure Transformers' server too")
    parser.add_argument("--bare", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare_engine(*arguments.bare)
        return
    facts = machine()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "benchmark" / "chat"
        save_random_model(model)
        results = {"ours": measure_ours(model, arguments.seconds, arguments.memory_requests)}
        results["bare"] = compare_with_bare(model, results["ours"])
        if arguments.peer:
            results["peer"] = measure_peer(model)
    for result in results.values():
        result.pop("texts", None)
    shown = card(results)
    if arguments.seconds >= 60:
        report("serve", {"shape": SHAPE, "machine": facts, "results": results}, shown)
    else:
        print(shown)


def save_random_model(folder: Path) -> None:
    """Write the model of the other inference benchmarks, in bf16."""
    import torch

    from nanochat.checkpoints.folder import save_model

    save_model(our_model(SHAPE).to(torch.bfloat16), tokenizer(SHAPE["vocab_size"]), folder)


def question(number: int, longest: int = LONGEST) -> str:
    """The text of a request: the same for the same number, of mixed lengths, no two with a common beginning."""
    draw = random.Random(number)
    words = ("".join(draw.choices("etaoinshrdlu", k=6)) for _ in range(draw.randint(SHORTEST, longest)))
    return " ".join(words)


def measure_ours(model: Path, seconds: float, memory_requests: int) -> dict[str, Any]:
    """Load for so many seconds, then many short requests while the memory is watched."""
    command = [sys.executable, "-m", "nanochat", "serve", str(model), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout
    try:
        found = re.search(rf"http://{HOST}:(\d+)/", server.stdout.readline())
        assert found, "the server did not start"
        port = int(found[1])
        uvloop.run(load(port, requests(0, 2 * CLIENTS, short=True)))  # warm
        result = uvloop.run(load(port, requests(1000, 10**5), time.monotonic() + seconds))
        for start in range(10**5, 2 * 10**5, 512):  # the system counts a cache's memory as it is first used
            if figure(port, "pages_cached") > 0.95 * figure(port, "pages_total") or memory_requests < 2000:
                break
            uvloop.run(load(port, requests(start, 512)))
        before = resident(server.pid)
        after = uvloop.run(load(port, requests(10**6, memory_requests, short=True)))
        result["memory_mb"] = before / 1e6
        result["memory_growth"] = resident(server.pid) / before - 1
        result["failed"] += after["failed"]
        assert figure(port, "running") == 0, "an answer is still running"
        return result
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def measure_peer(model: Path) -> dict[str, Any]:
    """Two requests of each client against Transformers' server."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--continuous-batching"]
    command += ["--port", str(port), "--host", HOST, "--device", "cpu"]
    server = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        wait_for(port, server)
        warm = uvloop.run(load(port, requests(0, 4, short=True, model=str(model))))
        assert not warm["failed"], "the peer refuses the requests"
        return uvloop.run(load(port, requests(1000, PEER_REQUESTS, model=str(model))))
    finally:
        server.terminate()
        server.wait(60)


def requests(first: int, count: int, short: bool = False, model: str | None = None) -> Iterator[tuple[int, bytes]]:
    """Numbered requests, as they go over the wire."""
    for number in range(first, first + count):
        text = question(number, SHORTEST if short else LONGEST)
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "stream": True, "temperature": 0}
        body |= {"max_tokens": 4 if short else NEW_TOKENS, **({"model": model} if model else {})}
        content = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
        yield number, f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


async def load(port: int, wanted: Iterator[tuple[int, bytes]], until: float | None = None) -> dict[str, Any]:
    """Send requests with all clients; none after `until`. Answers are only kept meanwhile, and read afterwards."""
    raw: dict[int, bytes] = {}
    first_token: list[float] = []
    ends: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for number, request in wanted:
            begun = time.monotonic()
            if until is not None and begun > until:
                break
            writer.write(request)
            answer = bytearray()
            waiting = True
            while not answer.endswith(b"0\r\n\r\n"):
                data = await reader.read(65536)
                answer += data
                if not data or not answer.startswith(b"HTTP/1.1 200"[: len(answer)]):
                    break
                if waiting and b'"content":"' in answer.replace(b'"content":""', b"").replace(b": ", b":"):
                    waiting = False
                    first_token.append(time.monotonic() - begun)
            raw[number] = bytes(answer)
            ends.append(time.monotonic())
            if not answer.endswith(b"0\r\n\r\n"):  # failed
                writer.close()
                reader, writer = await asyncio.open_connection(HOST, port)
        writer.close()

    begun = time.monotonic()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    seconds = max(ends) - begun
    texts = {number: text_of(answer) for number, answer in raw.items()}
    good = [number for number, text in texts.items() if text is not None]
    return {
        "requests": len(raw),
        "failed": len(raw) - len(good),
        "seconds": seconds,
        "tokens_per_second_at_most": len(good) * NEW_TOKENS / seconds,
        "first_token_p50": statistics.median(first_token),
        "first_token_p99": sorted(first_token)[int(len(first_token) * 0.99)],
        "texts": texts,
    }


def text_of(answer: bytes) -> str | None:
    """The text in a streamed response; None if it is not complete."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0] or not body.endswith(b"0\r\n\r\n"):
        return None
    stream = bytearray()
    while body:  # HTTP's chunks
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        stream += body[:length]
        body = body[length + 2 :]
    events = [line[5:].strip() for line in stream.split(b"\n") if line.startswith(b"data:")]
    chunks = [json.loads(event) for event in events if event != b"[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    if not any(choice.get("finish_reason") in ("stop", "length") for choice in choices):
        return None
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def compare_with_bare(model: Path, ours: dict[str, Any]) -> dict[str, Any]:
    """Have the bare engine answer the same requests, in a process of its own; compare every text."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(sorted(ours["texts"]), file)
        file.flush()
        command = [sys.executable, __file__, "--bare", str(model), file.name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    bare: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    texts = bare.pop("texts")
    ours["mixed_up"] = sum(text is not None and text != texts[str(number)] for number, text in ours["texts"].items())
    ours["tokens_per_second"] = bare["tokens"] / ours["seconds"]  # the same requests: the same tokens
    return bare


def bare_engine(model: Path, numbers: Path) -> None:
    """Answer the requests with so many at a time as there were clients; print speed and texts."""
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line does
    from nanochat.inference import Engine, SamplingParams

    engine = Engine.from_pretrained(model)
    params = SamplingParams(max_new_tokens=NEW_TOKENS)
    engine.generate([[{"role": "user", "content": question(n)}] for n in range(CLIENTS)], params)  # warm
    waiting = iter(json.loads(numbers.read_text()))
    running: dict[int, Any] = {}
    texts: dict[int, str] = {}
    tokens = 0
    begun = time.monotonic()
    while True:
        for number in waiting:
            running[number] = engine.add([{"role": "user", "content": question(number)}], params)
            if len(running) == CLIENTS:
                break
        if not running:
            break
        engine.step()
        for number in [number for number, request in running.items() if request.finished]:
            (result,) = running.pop(number).results()
            texts[number] = result.text
            tokens += len(result.token_ids)
    seconds = time.monotonic() - begun
    shown = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "engine": engine.describe()}
    print(json.dumps({**shown, "texts": texts}))


def card(results: dict[str, Any]) -> str:
    """The results for people."""
    ours, bare = results["ours"], results["bare"]
    lines = [
        f"{CLIENTS} streaming clients, prompts of {SHORTEST} to {LONGEST} words, up to {NEW_TOKENS} new tokens; "
        f"{SHAPE['layers']} layers x {SHAPE['hidden_size']}, vocabulary {SHAPE['vocab_size']}, {bare['engine']}",
        f"served       {ours['tokens_per_second']:8,.0f} tokens/s, {ours['requests']} requests",
        f"bare engine  {bare['tokens_per_second']:8,.0f} tokens/s on the same requests",
        f"  served / bare {ours['tokens_per_second'] / bare['tokens_per_second']:.3f} "
        f"(target {TARGETS['of the bare engine']})",
        f"  failed {ours['failed']}, mixed up {ours['mixed_up']} (targets 0)",
        f"  time to first token: p50 {ours['first_token_p50']:.2f} s, p99 {ours['first_token_p99']:.2f} s",
        f"  memory {ours['memory_mb']:,.0f} MB, growth {ours['memory_growth']:+.2%} "
        f"(target below {TARGETS['growth of memory']:.0%})",
    ]
    if peer := results.get("peer"):
        speed = peer["tokens_per_second_at_most"]
        lines += [
            f"transformers serve --continuous-batching: at most {speed:,.0f} tokens/s, {peer['requests']} requests, "
            f"{peer['failed']} failed; time to first token p50 {peer['first_token_p50']:.2f} s",
            f"  ours / theirs {ours['tokens_per_second'] / speed:.1f} (target {TARGETS['times the peer']})",
        ]
    return "\n".join(lines)


def figure(port: int, name: str) -> float:
    """One of the engine's figures, from the server's metrics."""
    text = httpx.get(f"http://{HOST}:{port}/metrics", timeout=60).text
    return float(re.findall(rf"^nanochat_engine_{name} (\S+)", text, re.MULTILINE)[0])


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, server: "subprocess.Popen[Any]") -> None:
    """Wait until a server answers."""
    for _ in range(300):
        assert server.poll() is None, "the peer ended"
        try:
            if httpx.get(f"http://{HOST}:{port}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise TimeoutError("the peer did not come up")


if __name__ == "__main__":
    main()
