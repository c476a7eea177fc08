import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from nanochat.inference import cache
from nanochat.inference.cache import RoomyLayer


@given(
    st.lists(st.integers(1, 40) | st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True), max_size=12),
    st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_it_holds_what_transformers_own_layer_holds(steps: list[int | list[int]], spare: int) -> None:
    """A number appends so many columns, a list keeps those rows (as far as there are so many)."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = RoomyLayer(), DynamicLayer()
    rows = 3
    normal, cache.SPARE = cache.SPARE, spare
    try:
        for step in steps:
            if isinstance(step, int):
                new = torch.randn(2, rows, 2, step, 4, generator=generator)
                for mine, other in zip(ours.update(*new), theirs.update(*new)):
                    assert torch.equal(mine, other)
            elif ours.is_initialized:
                kept = torch.tensor([row for row in step if row < rows] or [0])
                rows = len(kept)
                ours.batch_select_indices(kept)
                theirs.batch_select_indices(kept)
                assert torch.equal(ours.keys, theirs.keys)
                assert torch.equal(ours.values, theirs.values)
            assert ours.get_seq_length() == theirs.get_seq_length()
            assert ours.get_mask_sizes(3) == theirs.get_mask_sizes(3)
    finally:
        cache.SPARE = normal


def test_it_does_not_copy_the_past_at_every_token() -> None:
    layer = RoomyLayer()
    layer.update(torch.zeros(1, 1, 10, 4), torch.zeros(1, 1, 10, 4))
    places = set()
    for _ in range(cache.SPARE):
        keys, _ = layer.update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
        places.add(keys.data_ptr())
    assert len(places) == 1
