"""Where does prompt lookup pay? One stream with and without it, on a trained model.

    python benchmarks/lookup.py runs/demo    # a run of the demo, some minutes

Prompts: held-out questions of the Primer by skill, answered by the chat model, and beginnings of held-out documents,
continued by the base model as far as its context goes. With and without lookup in turn, the order alternating; the
answers are the same by construction, which is checked.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from harness import machine, report

from nanochat.data.primer import SKILLS, documents
from nanochat.inference import Engine, SamplingParams, scheduler

REPEATS = 3
CONTINUED = 20  # documents
BEGINNING = 60  # characters of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, with the models base and chat")
    parser.add_argument("--questions", type=int, default=20, help="of each skill")
    parser.add_argument("--quantize", default="bf16")
    arguments = parser.parse_args()
    facts = machine()
    base, chat = (Engine.from_pretrained(arguments.run / stage, arguments.quantize) for stage in ("base", "chat"))
    results: dict[str, dict[str, float]] = {}
    for name, skill in SKILLS.items():
        prompts = [question.conversation for question in skill.questions("val", arguments.questions, 1)]
        results[name] = compare(chat, prompts, SamplingParams(96))
    texts = (text for text in documents("val") if len(text) > 2 * BEGINNING)
    beginnings = [next(texts)[:BEGINNING] for _ in range(CONTINUED)]
    endless = SamplingParams(150, stop_token_ids=())
    results["documents, greedy"] = compare(base, beginnings, endless)
    sampled = SamplingParams(150, stop_token_ids=(), temperature=0.8, top_k=50, seed=0)
    results["documents, temperature 0.8"] = compare(base, beginnings, sampled)
    lines = [f"{'':28} tokens/s without  with   gain  tokens a step  tokens an answer  ({arguments.quantize})"]
    lines += [
        f"{name:28} {its['without']:16,.0f} {its['with']:5,.0f} {its['with'] / its['without']:5.2f} x "
        f"{its['tokens_a_step']:12.2f} {its['tokens_an_answer']:17.1f}"
        for name, its in results.items()
    ]
    report("lookup", {"machine": facts, "quantize": arguments.quantize, "results": results}, "\n".join(lines))


def compare(engine: Engine, prompts: list[Any], params: SamplingParams) -> dict[str, float]:
    """Tokens per second of decoding one prompt after the other, without and with lookup; medians."""
    usual = scheduler.MOST_DRAFTING
    speeds: dict[int, list[float]] = {0: [], usual: []}
    answers: dict[int, list[list[int]]] = {}
    steps = tokens = 0
    for repeat in range(REPEATS):
        for drafting in (0, usual) if repeat % 2 else (usual, 0):
            scheduler.MOST_DRAFTING = drafting
            seconds, count, said = 0.0, 0, []
            for prompt in prompts:
                request = engine.add(prompt, params)
                engine.step()  # the prompt
                begun, before = time.perf_counter(), request.completion_tokens
                while engine.has_work:
                    engine.step()
                    steps += drafting > 0
                seconds += time.perf_counter() - begun
                count += request.completion_tokens - before
                said.append(request.results()[0].token_ids)
            speeds[drafting].append(count / max(seconds, 1e-9))
            tokens += count * (drafting > 0)
            answers[drafting] = said
    scheduler.MOST_DRAFTING = usual
    assert answers[0] == answers[usual], "lookup changed an answer"
    return {
        "without": statistics.median(speeds[0]),
        "with": statistics.median(speeds[usual]),
        "tokens_a_step": tokens / max(steps, 1),
        "tokens_an_answer": sum(map(len, answers[0])) / len(prompts),
    }


if __name__ == "__main__":
    main()
