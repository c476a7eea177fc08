"""Packing: which conversations share a row."""

import numpy as np
from numpy.typing import NDArray


def pack(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The row of each item, by best-fit decreasing: the longest first, each into the fullest row it fits in.

    (n,) int64 lengths in 1..capacity give (n,) int64 rows, numbered from 0 without gaps; equal lengths keep their
    order. Never more than 11/9 of the fewest possible rows, plus four (Johnson et al., SIAM J. Comput. 3, 1974).
    """
    row_of = np.empty(len(lengths), np.int64)
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the places free in them
    some_free = 0  # bit i is set where open_rows[i] is not empty: finds the best fit without a search
    n_rows = 0
    order = np.argsort(-lengths, kind="stable")
    for item, length in zip(order.tolist(), lengths[order].tolist()):
        fitting = some_free >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1  # the lowest bit set
            row = open_rows[free].pop()
            if not open_rows[free]:
                some_free ^= 1 << free
        else:
            free, row = capacity, n_rows
            n_rows += 1
        row_of[item] = row
        if free > length:
            open_rows[free - length].append(row)
            some_free |= 1 << (free - length)
    return row_of
