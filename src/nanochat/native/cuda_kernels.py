"""A decoding step on a GPU in Triton: five kernels a layer, and one that chooses the tokens.

At one token a step does next to no arithmetic: what counts is that the memory never waits. So norms, rotations,
squares and sums are done by the kernel that reads or writes the numbers anyway. For a single row (`EARLY`), a kernel
starts while the one before it still runs (programmatic dependent launch, from Hopper on): its weights are on their way
when its input is ready.

Shapes: R rows (sequences, one new token each), C hidden size, H query and K key/value heads of size D, V vocabulary.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

PAGE: tl.constexpr = tl.constexpr(16)
GROUP: tl.constexpr = tl.constexpr(32)  # weights that share a scale
STORE: tl.constexpr = tl.constexpr(0)  # what `project` does with its products
ADD: tl.constexpr = tl.constexpr(1)
SQUARE: tl.constexpr = tl.constexpr(2)
CAP: tl.constexpr = tl.constexpr(3)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _others_may_start(EARLY: tl.constexpr):
    if EARLY:
        gdc_launch_dependents()


@triton.jit
def _wait_for_input(EARLY: tl.constexpr):
    if EARLY:
        gdc_wait()


@triton.jit
def embed(tokens, chosen, embedding, stream, copy, eps, C: tl.constexpr, BLOCK: tl.constexpr):
    """The normed embedding of each row's token, (R, C) fp32, and a copy as the products want it.

    A token of -1 - p is the one chosen at place p.
    """
    row = tl.program_id(0)
    token = tl.load(tokens + row)
    token = tl.where(token < 0, tl.load(chosen + tl.maximum(-1 - token, 0)), token)
    token = tl.maximum(token, 0).to(tl.int64)  # a choice that failed is noticed later
    c = tl.arange(0, BLOCK)
    x = tl.load(embedding + token * C + c, mask=c < C, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x) / C + eps)
    tl.store(stream + row * C + c, x, mask=c < C)
    tl.store(copy + row * C + c, x, mask=c < C)


@triton.jit
def _load_weights(
    weights, scales, n, start, N, K: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """A tile of weights as they are stored, and its scales (or anything, for floats).

    Floats and 8 bits: (BLOCK_N, BLOCK_K). 4 bits: bytes (BLOCK_N, BLOCK_K / 2), of whose numbers the low one is that of
    the group's first half, the high one that of its second.
    """
    inside = (n < N)[:, None]
    row = n.to(tl.int64)[:, None]
    if BITS == 4:
        k = start // 2 + tl.arange(0, BLOCK_K // 2)[None, :]
        tile = tl.load(weights + row * (K // 2) + k, mask=inside & (k < K // 2), other=0)
    else:
        k = start + tl.arange(0, BLOCK_K)[None, :]
        tile = tl.load(weights + row * K + k, mask=inside & (k < K), other=0)
    if BITS == 16:
        return tile, tile
    else:
        g = start // GROUP + tl.arange(0, BLOCK_K // GROUP)[None, :]
        return tile, tl.load(scales + row * (K // GROUP) + g, mask=inside & (g < K // GROUP), other=0.0)


@triton.jit
def _half_index(BLOCK_K: tl.constexpr):
    """Where the low numbers of a tile's bytes stand among its inputs; the high ones stand 16 further."""
    byte = tl.arange(0, BLOCK_K // 2)
    return byte // (GROUP // 2) * GROUP + byte % (GROUP // 2)


@triton.jit
def _low(tile):
    return (tile & 15).to(tl.float32) - 8.0


@triton.jit
def _high(tile):
    return (tile >> 4).to(tl.float32) - 8.0


@triton.jit
def _finish(y, old, out, copy, at, inside, cap, MODE: tl.constexpr):
    """What becomes of the products `y`; `old` is what was in `out`."""
    if MODE == ADD:
        y += old
        tl.store(copy + at, y, mask=inside)
    if MODE == SQUARE:
        y = tl.maximum(y, 0.0)
        y = y * y
    if MODE == CAP:
        if cap > 0:
            y = cap * (1.0 - 2.0 / (tl.exp(2.0 * y / cap) + 1.0))  # tanh
    tl.store(out + at, y, mask=inside)


@triton.jit
def project_one(
    x, weights, scales, out, copy, N, eps, cap, K: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr,
    MODE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out (N) = weights (N, K) @ norm(x (K)) for a single row, finished by MODE."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    _others_may_start(EARLY)
    tiles = ()
    for start in tl.static_range(0, K, BLOCK_K):
        tiles += (_load_weights(weights, scales, n, start, N, K, BITS, BLOCK_N, BLOCK_K),)
    _wait_for_input(EARLY)
    # The input is read as often as there are outputs, in tiles like those of the weights: so every thread has what it
    # needs, and none waits for another before the sums.
    zeros = tl.zeros((BLOCK_N, 1), tl.int32)
    old = tl.load(out + n, mask=n < N, other=0.0) if MODE == ADD else 0.0
    if BITS == 16:
        sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    else:
        sums = tl.zeros((BLOCK_N, BLOCK_K // GROUP), tl.float32)
    squared = tl.zeros((BLOCK_N, BLOCK_K // 2 if BITS == 4 else BLOCK_K), tl.float32)
    for part in tl.static_range(0, (K + BLOCK_K - 1) // BLOCK_K):
        tile, scale = tiles[part]
        if BITS == 4:
            k = zeros + part * BLOCK_K + _half_index(BLOCK_K)[None, :]
            first = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
            second = tl.load(x + k + GROUP // 2, mask=k + GROUP // 2 < K, other=0.0).to(tl.float32)
            products = _low(tile) * first + _high(tile) * second
            if NORM:
                squared += first * first + second * second
        else:
            k = zeros + part * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
            values = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
            products = tile.to(tl.float32) * values
            if NORM:
                squared += values * values
        if BITS == 16:
            sums += products
        else:
            groups = tl.reshape(products, (BLOCK_N, BLOCK_K // GROUP, GROUP * BITS // 8))
            sums += tl.sum(groups, axis=2) * scale.to(tl.float32)
    total = tl.sum(sums, axis=1)
    if NORM:
        total *= tl.rsqrt(tl.sum(squared, axis=1) / K + eps)
    _finish(total, old, out, copy, n, n < N, cap, MODE)


@triton.jit
def project(
    x, weights, scales, out, copy, parts, arrivals, rows, N, eps, cap, K: tl.constexpr, BITS: tl.constexpr,
    NORM: tl.constexpr, MODE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """out (rows, N) = norm(x (rows, K)) @ weights (N, K).T, multiplied in TYPE, finished by MODE; rows up to BLOCK_R.

    SPLITS programs share the sums of a block of outputs; the last of them to arrive puts their parts together.
    """
    block, split = tl.program_id(0), tl.program_id(1)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    HALF: tl.constexpr = BLOCK_K // 2 if BITS == 4 else BLOCK_K
    squares = tl.zeros((BLOCK_R, HALF), tl.float32)
    row = (r < rows)[:, None]
    SPAN: tl.constexpr = ((K + BLOCK_K - 1) // BLOCK_K + SPLITS - 1) // SPLITS * BLOCK_K
    for start in range(split * SPAN, tl.minimum(K, split * SPAN + SPAN), BLOCK_K):
        tile, scale = _load_weights(weights, scales, n, start, N, K, BITS, BLOCK_N, BLOCK_K)
        if BITS == 4:
            half = (start + _half_index(BLOCK_K))[None, :]
            at = x + r[:, None] * K + half
            first = tl.load(at, mask=row & (half < K), other=0.0)
            second = tl.load(at + GROUP // 2, mask=row & (half + GROUP // 2 < K), other=0.0)
            if NORM:
                squares += first.to(tl.float32) * first.to(tl.float32) + second.to(tl.float32) * second.to(tl.float32)
            by = tl.broadcast_to(scale[:, :, None], (BLOCK_N, BLOCK_K // GROUP, GROUP // 2))
            by = tl.reshape(by, (BLOCK_N, BLOCK_K // 2)).to(tl.float32)
            total = tl.dot(first.to(TYPE), tl.trans((_low(tile) * by).to(TYPE)), total)
            total = tl.dot(second.to(TYPE), tl.trans((_high(tile) * by).to(TYPE)), total)
        else:
            k = (start + tl.arange(0, BLOCK_K))[None, :]
            values = tl.load(x + r[:, None] * K + k, mask=row & (k < K), other=0.0)
            if NORM:
                squares += values.to(tl.float32) * values.to(tl.float32)
            if BITS == 8:
                by = tl.broadcast_to(scale[:, :, None], (BLOCK_N, BLOCK_K // GROUP, GROUP))
                by = tl.reshape(by, (BLOCK_N, BLOCK_K)).to(tl.float32)
                tile = tile.to(tl.float32) * by
            total = tl.dot(values.to(TYPE), tl.trans(tile.to(TYPE)), total, input_precision="ieee")
    if NORM:
        total *= tl.rsqrt(tl.sum(squares, axis=1) / K + eps)[:, None]
    at = r[:, None] * N + n[None, :]
    inside = row & (n < N)[None, :]
    if SPLITS == 1:
        old = tl.load(out + at, mask=inside, other=0.0) if MODE == ADD else 0.0
        _finish(total, old, out, copy, at, inside, cap, MODE)
    else:
        piece = r[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        first = parts + block * SPLITS * BLOCK_R * BLOCK_N
        tl.store(first + split * BLOCK_R * BLOCK_N + piece, total)
        tl.debug_barrier()
        if tl.atomic_add(arrivals + block, 1) == SPLITS - 1:
            whole = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
            for s in tl.static_range(SPLITS):  # in the same order each time
                whole += tl.load(first + s * BLOCK_R * BLOCK_N + piece, cache_modifier=".cg")
            old = tl.load(out + at, mask=inside, other=0.0) if MODE == ADD else 0.0
            _finish(whole, old, out, copy, at, inside, cap, MODE)
            tl.store(arrivals + block, 0)


@triton.jit
def _turned(first, second, cos, sin, eps, D: tl.constexpr):
    """The halves of heads (..., D / 2), rotated by minus theta and normed."""
    turned_first = first * cos + second * sin
    turned_second = second * cos - first * sin
    scale = tl.rsqrt(tl.sum(turned_first * turned_first + turned_second * turned_second) / D + eps)
    return turned_first * scale, turned_second * scale


@triton.jit
def _load_cache(keys, values, table, start, end, kv, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """Keys, in halves (BLOCK, D / 2), and values (BLOCK, D) of the positions from `start`, those from `end` on zero."""
    t = start + tl.arange(0, BLOCK)
    inside = t < end
    page = tl.load(table + t // PAGE, mask=inside, other=0).to(tl.int64)
    at = (((page * K + kv) * PAGE + t % PAGE) * D)[:, None]
    inside = inside[:, None]
    i, d = tl.arange(0, D // 2)[None, :], tl.arange(0, D)[None, :]
    first = tl.load(keys + at + i, mask=inside, other=0.0)
    second = tl.load(keys + at + D // 2 + i, mask=inside, other=0.0)
    return first, second, tl.load(values + at + d, mask=inside, other=0.0)


@triton.jit
def attend(
    qkv, keys, values, tables, lengths, cosines, sines, out, parts, maxima, weights, arrivals, width, eps, scale,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    LEAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Attention of one query head of one row: out (R, H, D). The new token's key and value are kept in its page.

    Keys and values lie in (pages, K, 16, D). Up to SPLITS programs share a sequence, with LEAST positions or more
    each; the last of them to arrive puts their parts together.
    """
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _others_may_start(EARLY)
    kv = head // (H // K)
    length = tl.load(lengths + row)
    position = length - 1
    span = tl.maximum(tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK, LEAST)
    used = tl.cdiv(length, span)
    table = tables + row * width
    begin = split * span
    end = tl.minimum(begin + span, position)
    i, d = tl.arange(0, D // 2), tl.arange(0, D)
    old1, old2, old = _load_cache(keys, values, table, begin, end, kv, K, D, BLOCK)  # don't depend on the input
    cos, sin = tl.load(cosines + position * (D // 2) + i), tl.load(sines + position * (D // 2) + i)
    new_page = tl.load(table + position // PAGE).to(tl.int64)
    _wait_for_input(EARLY)
    if split < used:
        base = qkv + row * (H + 2 * K) * D
        query = base + head * D + i
        q1, q2 = _turned(tl.load(query).to(tl.float32), tl.load(query + D // 2).to(tl.float32), cos, sin, eps, D)
        q1, q2 = q1 * (scale * LOG2_E), q2 * (scale * LOG2_E)
        # The new token: its key and value, as later steps will read them.
        key = base + (H + kv) * D + i
        k1, k2 = _turned(tl.load(key).to(tl.float32), tl.load(key + D // 2).to(tl.float32), cos, sin, eps, D)
        kept = keys.dtype.element_ty
        k1, k2 = k1.to(kept), k2.to(kept)
        v = tl.load(base + (H + K + kv) * D + d).to(kept)
        last = split == used - 1
        slot = ((new_page * K + kv) * PAGE + position % PAGE) * D
        if last & (head % (H // K) == 0):
            tl.store(keys + slot + i, k1)
            tl.store(keys + slot + D // 2 + i, k2)
            tl.store(values + slot + d, v)
        most = tl.where(last, tl.sum(q1 * k1.to(tl.float32) + q2 * k2.to(tl.float32)), float("-inf"))
        total = tl.where(last, 1.0, 0.0)
        result = tl.where(last, v.to(tl.float32), 0.0)
        # The tokens before it.
        for start in range(begin, end, BLOCK):
            scores = tl.sum(old1.to(tl.float32) * q1[None, :] + old2.to(tl.float32) * q2[None, :], axis=1)
            scores = tl.where(start + tl.arange(0, BLOCK) < end, scores, float("-inf"))
            higher = tl.maximum(most, tl.max(scores))
            shrink, shares = tl.exp2(most - higher), tl.exp2(scores - higher)
            result = result * shrink + tl.sum(shares[:, None] * old.to(tl.float32), axis=0)
            total = total * shrink + tl.sum(shares)
            most = higher
            old1, old2, old = _load_cache(keys, values, table, start + BLOCK, end, kv, K, D, BLOCK)
        if used == 1:
            tl.store(out + (row * H + head) * D + d, result / total)
        else:
            place = (row * H + head) * SPLITS
            tl.store(parts + (place + split) * D + d, result)
            tl.store(maxima + place + split, most)
            tl.store(weights + place + split, total)
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + row * H + head, 1)
            if arrived == used - 1:
                s = tl.arange(0, SPLITS)
                there = s < used
                tops = tl.load(maxima + place + s, mask=there, other=float("-inf"), cache_modifier=".cg")
                totals = tl.load(weights + place + s, mask=there, other=0.0, cache_modifier=".cg")
                shares = tl.exp2(tops - tl.max(tops))
                at = (place + s)[:, None] * D + d[None, :]
                all_parts = tl.load(parts + at, mask=there[:, None], other=0.0, cache_modifier=".cg")
                whole = tl.sum(shares[:, None] * all_parts, axis=0) / tl.sum(shares * totals)
                tl.store(out + (row * H + head) * D + d, whole)
                tl.store(arrivals + row * H + head, 0)


@triton.jit
def keep(qkv, keys, values, positions, slots, cosines, sines, eps, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr):
    """Of many tokens at once: rotate and norm queries and keys where they lie, (N, (H + 2K) D), and keep keys and
    values in the cache, each token's at its slot (16 times the page, plus the place in it).
    """
    token, head = tl.program_id(0), tl.program_id(1)
    position, slot = tl.load(positions + token), tl.load(slots + token).to(tl.int64)
    i, d = tl.arange(0, D // 2), tl.arange(0, D)
    place = qkv + (token.to(tl.int64) * (H + 2 * K) + head) * D
    at = slot // PAGE * K * PAGE * D + slot % PAGE * D
    if head < H + K:
        cos, sin = tl.load(cosines + position * (D // 2) + i), tl.load(sines + position * (D // 2) + i)
        first, second = tl.load(place + i).to(tl.float32), tl.load(place + D // 2 + i).to(tl.float32)
        first, second = _turned(first, second, cos, sin, eps, D)
        tl.store(place + i, first)
        tl.store(place + D // 2 + i, second)
        if head >= H:
            to = keys + at + (head - H) * PAGE * D + i
            tl.store(to, first)
            tl.store(to + D // 2, second)
    else:
        tl.store(values + at + (head - H - K) * PAGE * D + d, tl.load(place + d))


@triton.jit
def _scores(logits, forbidden, start, V, BLOCK: tl.constexpr):
    ids = start + tl.arange(0, BLOCK)
    scores = tl.load(logits + ids, mask=ids < V, other=float("-inf"))
    no = tl.load(forbidden + ids, mask=ids < V, other=1)
    return ids, tl.where(no != 0, float("-inf"), scores)


@triton.jit
def _ordered(scores):
    """Unsigned numbers in the order of the fp32 scores."""
    bits = scores.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)


@triton.jit
def _weighed(scores, at, count, least, highest, inverse):
    """The scores at some places as `_ordered`, and what they weigh in a draw: nothing below `least`."""
    score = tl.load(scores + at, mask=at < count, other=float("-inf"))
    order = _ordered(score)
    return order, tl.where(order >= least, tl.exp((score - highest) * inverse), 0.0)


@triton.jit
def _bound(scores, count, target, least, highest, inverse, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The largest bound such that the `count` scores at or above it are `target` in number, or weigh so much; as
    `_ordered`. Found four bits at a time, from the highest on. Scores below `least` don't weigh anything.
    """
    j = tl.arange(0, 16).to(tl.uint32)
    bound = tl.full((), 0, tl.uint32)
    for done in tl.static_range(0, 32, 4):
        bounds = bound + (j << (28 - done))
        mass = tl.zeros((BLOCK, 16), tl.float32)
        for start in range(0, count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            order, weight = _weighed(scores, at, count, least, highest, inverse)
            if COUNT:
                weight = tl.where(at < count, 1.0, 0.0)
            mass += tl.where(order[:, None] >= bounds[None, :], weight[:, None], 0.0)
        reached = tl.sum(mass, axis=0) >= target
        bound += (tl.max(tl.where(reached, j.to(tl.int32), 0)).to(tl.uint32)) << (28 - done)
    return bound


@triton.jit
def _mass(scores, count, least, highest, inverse, BLOCK: tl.constexpr):
    """What the scores from `least` on weigh, in fp64."""
    sums = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        _, weight = _weighed(scores, at, count, least, highest, inverse)
        sums += weight.to(tl.float64)
    return tl.sum(sums)


@triton.jit
def sample(
    logits, forbidden, asked, chosen, few_scores, few_ids, V, BLOCK: tl.constexpr, SMALL: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Choose a token for each row of logits (R, V) as `inference.sampler.choose` does; -1 if they are not finite.

    `asked` (R, 5) fp64: temperature, top-k (0: all), top-p (1: all), min-p (0: all), and a draw from [0, 1). The tokens
    that can be chosen at all are mostly few: they are put together in `few_scores` and `few_ids`, (R, max(V, BLOCK)).
    """
    row = tl.program_id(0).to(tl.int64)
    _others_may_start(EARLY)
    wishes = asked + row * 5
    temperature, top_k = tl.load(wishes).to(tl.float32), tl.load(wishes + 1).to(tl.int32)
    top_p, min_p = tl.load(wishes + 2).to(tl.float32), tl.load(wishes + 3).to(tl.float32)
    draw = tl.load(wishes + 4)
    _wait_for_input(EARLY)
    logits += row * V
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    broken = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, V, BLOCK):
        ids, scores = _scores(logits, forbidden, start, V, BLOCK)
        broken |= (scores != scores).to(tl.int32)
        better = scores > best
        best, where = tl.where(better, scores, best), tl.where(better, ids, where)
    highest = tl.max(best)
    token = tl.min(tl.where(best == highest, where, V))
    token = tl.where((tl.max(broken) > 0) | (tl.abs(highest) == float("inf")), -1, token)
    if (token >= 0) & (temperature > 0):
        inverse = 1.0 / temperature
        few_scores += row * tl.maximum(V, BLOCK)
        few_ids += row * tl.maximum(V, BLOCK)
        # A bound below which nothing can be chosen.
        all_ranks = (top_k == 0) | (top_k >= V)
        least = tl.full((), 1, tl.uint32)
        whole = tl.zeros((), tl.float32)
        if (top_k > 0) & (top_k < BLOCK):  # so many of the lanes' best are at or above the bound, and perhaps others
            tl.store(few_scores + lane, best)
            tl.debug_barrier()
            least = _bound(few_scores, BLOCK, top_k, least, highest, inverse, True, SMALL)
            tl.debug_barrier()
        elif (top_p < 1) & all_ranks:  # tokens that weigh less than this have less than 1 - top_p together
            sums = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, V, BLOCK):
                ids, scores = _scores(logits, forbidden, start, V, BLOCK)
                sums += tl.exp((scores - highest) * inverse)
            whole = tl.sum(sums)
            least = _ordered(highest + temperature * tl.log((1 - top_p) / V * whole))
        if (min_p > 0) & (top_p == 1):
            least = tl.maximum(least, _ordered(highest + tl.log(min_p) * temperature))
        least = tl.minimum(least, _ordered(highest))  # the likeliest stays, whatever rounding says
        count = tl.zeros((), tl.int32)
        for start in range(0, V, BLOCK):
            ids, scores = _scores(logits, forbidden, start, V, BLOCK)
            stays = ((_ordered(scores) >= least) & (scores > float("-inf"))).to(tl.int32)
            staying = tl.sum(stays)
            if staying > 0:
                at = count + tl.cumsum(stays) - 1
                tl.store(few_scores + at, scores, mask=stays > 0)
                tl.store(few_ids + at, ids, mask=stays > 0)
            count += staying
        tl.debug_barrier()
        # The bound itself.
        if (top_k > 0) & (top_k < count):
            least = tl.maximum(least, _bound(few_scores, count, top_k, least, highest, inverse, True, SMALL))
        if top_p < 1:
            target = (top_p * _mass(few_scores, count, least, highest, inverse, SMALL)).to(tl.float32)
            target = tl.where(whole > 0, top_p * whole, target)
            least = tl.maximum(least, _bound(few_scores, count, target, least, highest, inverse, False, SMALL))
        if min_p > 0:
            least = tl.maximum(least, _ordered(highest + tl.log(min_p) * temperature))
        least = tl.minimum(least, _ordered(highest))
        # The first token, in the order of ids, at which the weights so far reach the draw.
        threshold = (1.0 - draw) * _mass(few_scores, count, least, highest, inverse, SMALL)
        before = tl.full((), 0.0, tl.float64)
        token = tl.full((), -1, tl.int32)  # not found yet
        last = tl.full((), -1, tl.int32)  # with some weight
        for start in range(0, count, SMALL):
            at = start + tl.arange(0, SMALL)
            _, share = _weighed(few_scores, at, count, least, highest, inverse)
            share = share.to(tl.float64)
            inside = tl.sum(share)
            last = tl.maximum(last, tl.max(tl.where(share > 0, at, -1)))
            if (token < 0) & (before + inside >= threshold):
                reached = before + tl.cumsum(share) >= threshold
                token = tl.minimum(tl.min(tl.where(reached, at, count)), last)
            before += inside
        token = tl.load(few_ids + tl.where(token < 0, last, token))
    tl.store(chosen + row, token)
