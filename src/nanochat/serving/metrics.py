"""What the server measures about itself, for Prometheus."""

from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nanochat.serving.wire import Speed, Usage

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
RATES = (1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)


class Metrics:
    """Counts and times, of this server alone: two in one process don't mix."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"nanochat_{name}", text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"nanochat_{name}", text, labels, registry=registry)

        self._requests = counter("requests", "HTTP requests", ("route", "status"))
        self._seconds = histogram("request_seconds", "From request to end of response", SECONDS, ("route",))
        self._first = histogram("time_to_first_token_seconds", "From request to first token", SECONDS)
        self._rate = histogram("tokens_per_second", "Of each answer, from its first token on", RATES)
        self._prompt = counter("prompt_tokens", "Tokens of prompts")
        self._cached = counter("cached_tokens", "Tokens of prompts that had been computed before")
        self._generated = counter("generated_tokens", "Tokens of answers")
        self._engine: dict[str, Gauge] = {}

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def observe(self, usage: Usage, speed: Speed) -> None:
        """Count the answers to one request."""
        self._prompt.inc(usage["prompt_tokens"])
        self._cached.inc(usage["prompt_tokens_details"]["cached_tokens"])
        self._generated.inc(usage["completion_tokens"])
        if speed["time_to_first_token"] is not None:
            self._first.observe(speed["time_to_first_token"])
        if speed["tokens_per_second"] is not None:
            self._rate.observe(speed["tokens_per_second"])

    def text(self, stats: Any) -> bytes:
        """Return all in Prometheus' text format, with the engine's `Stats` of this moment."""
        for name, value in asdict(stats).items():
            if name not in self._engine:
                self._engine[name] = Gauge(f"nanochat_engine_{name}", "Of the engine, now", registry=self._registry)
            self._engine[name].set(value)
        return generate_latest(self._registry)
