"""What each weight format costs in quality: bits per byte, skill scores, agreement of greedy answers with fp32.

    python benchmarks/quality.py runs/demo                                  # a run of the demo
    python benchmarks/quality.py runs/books --data standardebooks.jsonl     # held-out text of another corpus

Bits per byte are the base model's, on whole held-out documents, a document at a time; the scores and answers are the
chat model's on held-out questions of the Primer. Everything goes through the engine, as a user's prompts do.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from harness import machine, report

from nanochat.data.sources import read_documents
from nanochat.evaluation.skills import evaluate_skills
from nanochat.inference import Engine
from nanochat.native.packing import FORMATS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, with the models base and chat")
    parser.add_argument("--data", default="primer", help="the corpus whose held-out documents are read")
    parser.add_argument("--bytes", type=int, default=500_000, help="of held-out text")
    parser.add_argument("--questions", type=int, default=50, help="of each skill")
    arguments = parser.parse_args()
    facts = machine()
    texts = held_out(arguments.data, arguments.bytes)
    results: dict[str, Any] = {}
    answers: dict[str, list[list[int]]] = {}
    for format in FORMATS:
        base = Engine.from_pretrained(arguments.run / "base", format)
        skills = evaluate_skills(Engine.from_pretrained(arguments.run / "chat", format), arguments.questions)
        answers[format] = [answer.result.token_ids for its in skills.answers.values() for answer in its]
        results[format] = {
            "bits_per_byte": bits_per_byte(base, texts),
            "skills": skills.scores,
            "skill_average": skills.average,
            **agreement(answers[format], answers["fp32"]),
        }
    size = sum(len(text.encode()) for text in texts)
    card = [
        f"{arguments.run}: {size:,} bytes of held-out text, {len(answers['fp32'])} held-out questions",
        "format  bits per byte  (over fp32)  skills  answers as in fp32  tokens up to the first other one",
    ]
    for format, result in results.items():
        excess = result["bits_per_byte"] / results["fp32"]["bits_per_byte"] - 1
        card.append(
            f"{format:6}  {result['bits_per_byte']:13.4f}  {excess:+11.2%}  {result['skill_average']:6.3f}  "
            f"{result['same_answers']:18.1%}  {result['same_tokens']:32.1%}"
        )
    settings = {"run": str(arguments.run), "data": arguments.data, "bytes": size, "questions": arguments.questions}
    report("quality", {**settings, "machine": facts, "results": results}, "\n".join(card))


def held_out(data: str, size: int) -> list[str]:
    """Held-out documents of about so many bytes."""
    texts: list[str] = []
    for text in read_documents(data, "val"):
        texts.append(text)
        size -= len(text.encode())
        if size <= 0:
            break
    return texts


def bits_per_byte(engine: Engine, texts: list[str]) -> float:
    """Sum of bits over all tokens of the texts / their bytes. Texts beyond the context are read in pieces."""
    bos, pieces = engine.tokenizer.bos_token_id, []
    for ids in engine.tokenizer.encode_ordinary_batch(texts):
        step = engine.context_length - 1
        pieces += [[bos, *ids[start : start + step]] for start in range(0, len(ids), step)]
    nats = -sum(engine.logprobs(piece).double().sum().item() for piece in pieces)
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def agreement(answers: list[list[int]], reference: list[list[int]]) -> dict[str, float]:
    """Share of answers that are the same, and share of the reference's tokens before the first difference."""
    common = [
        next((n for n, (a, b) in enumerate(zip(answer, theirs)) if a != b), min(len(answer), len(theirs)))
        for answer, theirs in zip(answers, reference, strict=True)
    ]
    return {
        "same_answers": sum(map(list.__eq__, answers, reference)) / len(reference),
        "same_tokens": sum(common) / sum(map(len, reference)),
    }


if __name__ == "__main__":
    main()
