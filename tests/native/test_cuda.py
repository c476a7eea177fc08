"""The kernels of the CUDA decoder against the model and the sampler they stand for.

On a GPU they run as they are; elsewhere in Triton's interpreter, slowly and the same but for speed and captured graphs.
"""

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from nanochat.model.configuration import NanoChatConfig
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.model.native import cuda_decoder
from nanochat.native.cuda import GREEDY, MOST_ROWS, CudaDecoder, Matrix
from nanochat.native.packing import rounded_weight

PAGES = 40
TOLERANCE = {"fp32": 1e-4, "bf16": 0.06, "int8": 0.06, "int4": 0.06}  # of logits from -15 to 15


def random_model(**changes: Any) -> NanoChatForCausalLM:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "max_position_embeddings": 320, "vocab_size": 265}
    model = NanoChatForCausalLM(NanoChatConfig(**{**sizes, **heads, **changes}))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model.eval().to(DEVICE)


@torch.no_grad()
def expected_logits(model: NanoChatForCausalLM, format: str, tokens: list[int]) -> Tensor:
    """What the model with weights in a format says after all of `tokens`."""
    twin = NanoChatForCausalLM(model.config).to(DEVICE).eval()
    twin.load_state_dict(model.state_dict())
    for name, parameter in twin.named_parameters():
        if "embed" not in name:
            parameter.copy_(rounded_weight(parameter, format))
    return twin(torch.tensor([tokens], device=DEVICE)).logits[0, -1]


class Sequences:
    """Sequences with pages of their own, fed to a decoder step by step."""

    def __init__(self, decoder: CudaDecoder, lengths: list[int], vocab_size: int) -> None:
        rng = random.Random(0)
        pages = list(range(PAGES))
        rng.shuffle(pages)
        self.decoder = decoder
        self.tokens = [rng.choices(range(vocab_size), k=length) for length in lengths]
        self.tables = [[pages.pop() for _ in range(-(-length // 16))] for length in lengths]
        self.done = [0] * len(lengths)

    def step(self, counts: dict[int, int]) -> dict[int, Tensor]:
        """Feed so many tokens of some sequences, those with one first; the logits after the last of each."""
        order = sorted(counts, key=lambda n: counts[n] > 1)
        tokens, starts, rows = [], [0], []
        for n in order:
            tokens += self.tokens[n][self.done[n] : self.done[n] + counts[n]]
            self.done[n] += counts[n]
            starts.append(len(tokens))
            rows.append(len(tokens) - 1)
        lengths, tables = [self.done[n] for n in order], [self.tables[n] for n in order]
        places = self.decoder.step(tokens, starts, lengths, tables, rows)
        return {n: self.decoder.logits[place].clone() for n, place in zip(order, places)}


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("heads", [2, 4])
def test_ragged_steps_say_what_the_model_says(format: str, heads: int) -> None:
    model = random_model(num_key_value_heads=heads)
    decoder = cuda_decoder(model, format, PAGES, [])
    sequences = Sequences(decoder, [5, 18, 150], 265)

    def check(counts: dict[int, int]) -> None:
        for n, seen in sequences.step(counts).items():
            expected = expected_logits(model, format, sequences.tokens[n][: sequences.done[n]])
            off = (seen - expected).abs().max().item()
            assert off < TOLERANCE[format], f"sequence {n} after {sequences.done[n]} tokens is off by {off}"

    check({0: 2, 1: 15, 2: 140})  # prompts
    check({0: 1, 1: 1, 2: 1})  # rows of one token, past the first page and with helpers
    check({2: 1})  # a row alone
    check({0: 1, 2: 5})  # a row, and more of a known sequence
    check({1: 1, 2: 1})


def test_a_matrix_in_integers_is_the_rounded_weight() -> None:
    weight = torch.randn(48, 96, device=DEVICE)
    for format in ("int8", "int4"):
        matrix, expected = Matrix.of(weight, format), rounded_weight(weight, format)
        assert torch.allclose(matrix.dense().float(), expected, rtol=2**-8)


def test_a_token_chosen_on_the_device_is_the_input_of_the_next_step() -> None:
    model = random_model()
    decoder = cuda_decoder(model, "fp32", PAGES, [])
    prompt, table = [3, 1, 4], [7]
    [place] = decoder.step(prompt, [0, 3], [3], [table], [2], [GREEDY])
    assert place == MOST_ROWS
    for length in range(4, 8):
        [place] = decoder.step([-1 - place], [0, 1], [length], [table], [0], [GREEDY])
        assert place == 0
    tokens = list(prompt)
    for _ in range(5):
        tokens.append(int(expected_logits(model, "fp32", tokens).argmax()))
    assert int(decoder.chosen[0]) == tokens[-1]


def chosen_by(logits: Tensor, wish: tuple[float, ...], forbidden: list[int]) -> int:
    decoder = cuda_decoder(random_model(vocab_size=len(logits), num_hidden_layers=1), "fp32", 1, forbidden)
    decoder.logits[0] = logits
    decoder._tell(1, [0], [1], [[0]], [0], [wish])
    decoder._sample(0, 1)
    return int(decoder.chosen[0])


@pytest.mark.parametrize("seed", range(12 if DEVICE == "cpu" else 200))
def test_choices_are_those_of_the_sampler(seed: int) -> None:
    from nanochat.inference.sampler import distribution
    from nanochat.inference.sampling import SamplingParams

    rng = random.Random(seed)
    size = rng.choice([10, 100, 3000])
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 4
    logits[rng.randrange(size)] = -math.inf
    forbidden = rng.sample(range(size), 3)
    params = SamplingParams(
        temperature=rng.choice([0.2, 1.0, 3.0]),
        top_k=rng.choice([None, 1, 5, 2000]),
        top_p=rng.choice([None, 0.1, 0.9]),
        min_p=rng.choice([None, 0.1]),
    )
    draw = rng.random()
    allowed = logits.clone()
    allowed[forbidden] = -math.inf
    ids, weights = distribution(allowed.clone(), params)
    cumulative = weights.double().cumsum(0)
    at = int(torch.searchsorted(cumulative, (1 - draw) * cumulative[-1]))
    wish = (params.temperature, params.top_k or 0, params.top_p or 1.0, params.min_p or 0.0, draw)
    seen = chosen_by(logits.to(DEVICE), wish, forbidden)
    # By rounding, a draw at the very border of a token's share may fall to its neighbour.
    borders = cumulative[max(at - 1, 0) : at + 1] / cumulative[-1] - (1 - draw)
    assert seen == int(ids[at]) or borders.abs().min() < 1e-6
    assert chosen_by(logits.to(DEVICE), GREEDY, forbidden) == int(allowed.argmax())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_give_no_token(bad: float) -> None:
    logits = torch.zeros(40)
    logits[3] = bad
    assert chosen_by(logits.to(DEVICE), GREEDY, []) == -1
    assert chosen_by(torch.full((40,), -math.inf, device=DEVICE), (1.0, 0, 1.0, 0.0, 0.5), []) == -1
    logits[3] = 0
    assert chosen_by(logits.to(DEVICE), GREEDY, []) == 0


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs need a GPU")
@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4"])
def test_replayed_graphs_are_what_was_captured(format: str) -> None:
    """A replay gives, to the bit, what the same kernels give when they are started one by one."""
    model = random_model(max_position_embeddings=640)
    lengths = [1 + 13 * n % 60 for n in range(9)]
    for rows in (1, 3, 9):
        decoders = [cuda_decoder(model, format, PAGES, []) for _ in range(2)]
        decoders[1]._replay = lambda bucket, of=decoders[1]: lambda: of._run_rows(bucket)  # type: ignore[method-assign]
        of_both = []
        for decoder in decoders:
            sequences = Sequences(decoder, [length + 4 for length in lengths[:rows]], 265)
            sequences.step({n: length + 1 for n, length in enumerate(lengths[:rows])})
            of_both.append([sequences.step(dict.fromkeys(range(rows), 1)) for _ in range(3)])
        for replayed, eager in zip(*of_both):
            assert all(torch.equal(replayed[n], eager[n]) for n in range(rows))
