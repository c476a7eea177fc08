"""How learning rates and momentum change over the steps of a run."""


def learning_rate_factor(
    step: int, steps: int, warmup_steps: int, decay_fraction: float, final_lr_fraction: float
) -> float:
    """Linear warm-up, constant, linear decay over the last `decay_fraction` of the steps; 0 < factor <= 1."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    decay_steps = max(1, round(decay_fraction * steps))
    left = min(1.0, (steps - step) / decay_steps)
    return warmup * (final_lr_fraction + (1 - final_lr_fraction) * left)


def muon_momentum(step: int) -> float:
    """0.85 rising to 0.95 over the first 300 steps: early gradients change direction quickly."""
    return 0.85 + 0.10 * min(1.0, step / 300)
