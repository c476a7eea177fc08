"""What the steps of a run amount to: tokens, operations, speed, and the share of the machine's peak."""

import math
import time

from nanochat.model.accounting import flops_per_token, utilization
from nanochat.model.configuration import NanoChatConfig
from nanochat.training.recipe import Recipe


class Meter:
    """Counts what `steps` of a recipe took, by the clock.

    Args:
        recipe: of the stage.
        config: of the model.
        peak_flops: FLOP/s that the machine can do at best; None if not known: no share of it is told.
        bytes_per_token: text bytes of a trained token on average; None: the bar shows the loss in nats only.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: NanoChatConfig,
        peak_flops: float | None = None,
        bytes_per_token: float | None = None,
    ):
        self.batch_tokens, self.peak_flops, self.bytes_per_token = recipe.batch_tokens, peak_flops, bytes_per_token
        self.flops_per_token = flops_per_token(config, recipe.seq_len)
        self._held_out: float | None = None
        self.restart()

    def restart(self) -> None:
        """Start the clock again, after a pause in which nothing was trained."""
        self._last, self._rate = time.monotonic(), 0.0

    def after(self, steps: int) -> dict[str, float]:
        """What to record once so many steps are done; to be called after each step.

        `tokens` and `flops` count from the first step of the stage, `tokens_per_second` is smoothed over the last ten
        steps or so, and `mfu` is that speed as a share of the peak.
        """
        now = time.monotonic()
        rate, self._last = self.batch_tokens / max(1e-9, now - self._last), now
        self._rate = rate if self._rate == 0 else 0.9 * self._rate + 0.1 * rate
        tokens = steps * self.batch_tokens
        values = {
            "tokens": tokens,
            "flops": tokens * self.flops_per_token,
            "tokens_per_second": round(self._rate, 1),
        }
        if self.peak_flops:
            values["mfu"] = round(utilization(self._rate * self.flops_per_token, 1.0, self.peak_flops), 4)
        return values

    def text(self, values: dict[str, float]) -> str:
        """The step's numbers for the live bar: loss, bits per byte, the last held-out ones, speed, share of peak."""
        parts = [f"loss {values['loss']:.3f}"]
        if self.bytes_per_token:
            # The loss counts control tokens too, which are no bytes: close to `bits_per_byte`, not equal.
            parts.append(f"{values['loss'] / math.log(2) / self.bytes_per_token:.3f} bits/byte")
        self._held_out = values.get("val_bpb", self._held_out)
        if self._held_out is not None:
            parts.append(f"held out {self._held_out:.3f}")
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
        if "mfu" in values:
            parts.append(f"{100 * values['mfu']:.0f} % of peak")
        return ", ".join(parts)
