"""What a recipe means before anything runs: size, work, memory, time and cost on this machine."""

from nanochat.common import dollars, duration, si
from nanochat.model.accounting import cost, flops_per_token, parameter_counts, training_seconds, training_state_bytes
from nanochat.model.configuration import NanoChatConfig
from nanochat.training.machine import EXPECTED_UTILIZATION, Machine
from nanochat.training.recipe import Recipe

# For comparison with what others report, not a price of ours: 8 H100 at 40 % of 989 TFLOP/s each, at $3 an hour each.
REFERENCE = "8 x H100 at 40 % of peak, $3 per GPU-hour"
REFERENCE_FLOPS, REFERENCE_UTILIZATION, REFERENCE_PRICE = 8 * 989e12, 0.40, 8 * 3.0


def expected_seconds(recipe: Recipe, config: NanoChatConfig, machine: Machine, processes: int = 1) -> float:
    """Time that the steps will take on so many devices if they reach the share of peak that is usual on such ones."""
    peak = processes * machine.peak(recipe.dtype).flops
    return training_seconds(recipe.flops(config), peak, EXPECTED_UTILIZATION[machine.device])


def machine_line(recipe: Recipe, config: NanoChatConfig, machine: Machine, processes: int = 1) -> str:
    """What was chosen for this machine and how long it will take, in one line; each process has a device of its own."""
    together = f"{processes} processes, each with " if processes > 1 else ""
    return (
        f"{together}{machine.describe(recipe.dtype)}, micro-batches of {recipe.micro_batch_tokens:,} tokens, about "
        f"{duration(expected_seconds(recipe, config, machine, processes))}"
    )


def recipe_card(recipe: Recipe, config: NanoChatConfig, machine: Machine, price_per_hour: float | None = None) -> str:
    """The whole recipe for people, one line for each matter; `price_per_hour` is of the machine, in dollars."""
    counts = parameter_counts(config)
    tokens, flops = recipe.steps * recipe.batch_tokens, recipe.flops(config)
    utilization = EXPECTED_UTILIZATION[machine.device]
    seconds = expected_seconds(recipe, config, machine)
    state = training_state_bytes(config)
    memory = machine.training_bytes(config, recipe.seq_len, recipe.micro_batch_tokens, recipe.dtype)
    reference_seconds = training_seconds(flops, REFERENCE_FLOPS, REFERENCE_UTILIZATION)
    reference = f"{REFERENCE}: {duration(reference_seconds)}, {dollars(cost(reference_seconds, REFERENCE_PRICE))}"
    price = "give --price-per-hour" if price_per_hour is None else dollars(cost(seconds, price_per_hour))
    micro_batches = -(-recipe.batch_tokens // recipe.micro_batch_tokens)
    lines = {
        "model": f"{recipe.depth} layers, width {recipe.hidden_size}, {recipe.num_attention_heads} heads, context "
        f"{recipe.seq_len:,}, vocabulary {recipe.vocab_size:,}",
        "parameters": f"{si(counts['total'])}: embedding {si(counts['embedding'])}, blocks {si(counts['matrices'])}, "
        f"head {si(counts['head'])}",
        "tokens": f"{tokens:,}, {tokens / counts['total']:.1f} per parameter",
        "steps": f"{recipe.steps:,} of {recipe.batch_tokens:,} tokens ({recipe.batch_size:,} rows of "
        f"{recipe.seq_len:,}), in {micro_batches:,} micro-batch{'es' * (micro_batches > 1)} of "
        f"{min(recipe.micro_batch_tokens, recipe.batch_tokens):,} tokens",
        "rates": f"Muon {recipe.matrix_lr:g} for the blocks, AdamW {recipe.embedding_lr:.3g} for the embedding and "
        f"{recipe.head_lr:.3g} for the head, weight decay {recipe.weight_decay:g}",
        "schedule": f"{recipe.warmup_steps} steps of warm-up, constant, the last {100 * recipe.decay_fraction:g} % "
        f"to {100 * recipe.final_lr_fraction:g} %; seed {recipe.seed}",
        "work": f"{flops:.2e} FLOPs, {si(flops_per_token(config, recipe.seq_len))}FLOPs per token",
        "machine": machine.describe(recipe.dtype),
        "memory": f"at most about {si(memory)}B ({si(state)}B for weights, gradients and optimizer); "
        f"{si(machine.memory)}B free",
        "time": f"about {duration(seconds)} for the steps, at {100 * utilization:g} % of the peak as is usual on such "
        "a device",
        "cost": price,
        "for reference": reference,
    }
    if memory > machine.memory:
        lines["memory"] += ": it may not fit; fewer --depth or --seq-len take less"
    return "\n".join(f"{name:15}{text}" for name, text in lines.items())
