"""Particles and clusters of a row on a GPU, and the bridge that joins two ranges of them."""

# Kernels are written in Triton's language, which has no types to annotate.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from wsr.kernels.cuda_grid import (
    LIMB,
    MASK,
    either,
    excess_of,
    normalized,
    not_less,
    not_positive,
)


@triton.jit
def rank_of(k, mask, ranks):
    """Return how many weights of the row lie before particle k."""
    return k.to(tl.int64) if ranks is None else tl.load(ranks + k, mask, 0).to(tl.int64)


@triton.jit
def mass_of(k, mask, ranks):
    """Return how many weights particle k is."""
    return tl.where(mask, rank_of(k + 1, mask, ranks) - rank_of(k, mask, ranks), 0)


@triton.jit
def rest_of(k, mask, blocks):
    """Return what the weights of a block sum to beyond x times their number; 0 of others."""
    items, rests = blocks
    item = tl.load(items + k, mask, 0)
    return tl.load(rests + (-1 - item), mask & (item < 0), 0.0)


@triton.jit
def velocity_of(first, last, d):
    """Return the velocity for lambd = 1 of the cluster of the weights of ranks first to last."""
    return (d - first - last).to(tl.float64) / tl.maximum(d - 1, 1).to(tl.float64)


@triton.jit
def conditions_of(x, n, strengths):
    """Return whether the row and its strengths are valid, and lambd, l1 and rho: 0 if not."""
    lambd, l1, rho = tl.load(strengths), tl.load(strengths + 1), tl.load(strengths + 2)
    least, largest = tl.load(x).to(tl.float64), tl.load(x + n - 1).to(tl.float64)
    # A NaN is sorted to an end, and fails both comparisons.
    infinity = float("inf")
    valid = (least > -infinity) & (largest < infinity)
    valid = valid & (lambd >= 0) & (lambd < infinity) & (l1 >= 0) & (l1 < infinity)
    return valid, tl.where(valid, lambd, 0.0), tl.where(valid, l1, 0.0), rho


@triton.jit
def unit_of(x, n, d, lambd):
    """Return 1, or 1/2 where end points could overflow, as in wsr.particles."""
    ends = tl.maximum(tl.abs(tl.load(x)), tl.abs(tl.load(x + n - 1))).to(tl.float64)
    fastest = tl.where(d > 1, lambd, 0.0)
    return tl.where(tl.maximum(ends, fastest) > 1, 0.5, 1.0)


@triton.jit
def free_end_points(x, k, n, d, ranks, blocks, strengths):
    """Return where the particles k of a row would stand if they passed each other, in units.

    Of a block it is the mean.
    """
    valid, lambd, _, _ = conditions_of(x, n, strengths)
    unit = unit_of(x, n, d, lambd)
    values = tl.load(x + k, k < n, 0).to(tl.float64)
    if blocks is not None:
        mass = tl.maximum(mass_of(k, k < n, ranks), 1)
        values += rest_of(k, k < n, blocks) / mass.to(tl.float64)
    values = tl.where(valid, values, 0.0)
    shift = lambd * velocity_of(rank_of(k, k < n, ranks), rank_of(k + 1, k < n, ranks), d)
    return values * unit + shift * unit


@triton.jit
def cluster_of(k, mask, link, tiles, T: tl.constexpr):
    """Return the bounds of the cluster of particle k: begin, and one past its last member."""
    tile = k // T
    start = tile * T
    first = start + tl.minimum(tl.load(link + k, mask, 0).to(k.dtype), k - start)
    last = start + tl.load(link + first, mask, 0).to(k.dtype)
    if tiles is not None:
        lo, hi, edge_first, edge_last = tiles
        behind = k >= tl.load(hi + tile, mask, 0)
        crosses = mask & (behind | (k < tl.load(lo + tile, mask, 0)))
        border = tile + behind.to(tile.dtype)
        first = tl.where(crosses, tl.load(edge_first + border, crosses, 0).to(k.dtype), first)
        last = tl.where(crosses, tl.load(edge_last + border, crosses, 0).to(k.dtype), last)
    return first, last


@triton.jit
def sum_before(k, mask, sums, ranks, T: tl.constexpr):
    """Return the sum of everything before particle k in two limbs, and its mass."""
    high, low, tile_high, tile_low = sums
    inside = mask & (k > 0)
    high_sum = tl.load(high + k - 1, inside, 0)
    low_sum = tl.load(low + k - 1, inside, 0).to(tl.int64)
    if tile_high is not None:
        tile = (k - 1) // T
        inside = inside & (tile > 0)
        high_sum += tl.load(tile_high + tile - 1, inside, 0)
        low_sum += tl.load(tile_low + tile - 1, inside, 0)
    return high_sum, low_sum, rank_of(k, mask, ranks)


@triton.jit
def sum_between(begin, end):
    """Return the sum between two places in three limbs, two of them not negative, and the mass."""
    high, low = normalized(end[0] - begin[0], end[1] - begin[1])
    return high >> LIMB, high & MASK, low, end[2] - begin[2]


@triton.jit
def _together(a, b):
    high, low = normalized(a[1] + b[1], a[2] + b[2])
    return a[0] + b[0] + (high >> LIMB), high & MASK, low, a[3] + b[3]


@triton.jit
def bridges(
    base, width, n, link, sums, tiles, ranks, T: tl.constexpr, M: tl.constexpr, P: tl.constexpr
):
    """Join M pairs of neighbouring ranges of ``width`` particles each, the first from base on.

    Returns where the new clusters begin and end, shape (M, 1, 1), both in the middle where none
    arises.  The search is that of wsr.collisions.bridging, with P probes a side.  Every pair of
    probes decides one of its two.  So if some probe on the left is decided by none of its pairs,
    those decide all probes on the right: after each step all probes of one side at least are
    decided, and what is left open of n particles there is n // (P + 1) at most.
    """
    middle = base + (2 * tl.arange(0, M)[:, None, None] + 1) * width
    inside = middle < n
    high_a, _ = cluster_of(middle - 1, inside, link, tiles, T)
    _, low_b = cluster_of(middle, inside, link, tiles, T)
    at_middle = sum_before(middle, inside, sums, ranks, T)
    border_a = sum_between(sum_before(high_a, inside, sums, ranks, T), at_middle)
    border_b = sum_between(at_middle, sum_before(low_b, inside, sums, ranks, T))
    meet = inside & not_less(border_a, border_b)
    # Undecided are the particles low_a <= k < high_a on the left and low_b <= k < high_b on the
    # right: none if the two clusters at the border do not meet.
    low_a = tl.where(meet, middle - width, high_a)
    high_b = tl.where(meet, tl.minimum(middle + width, n), low_b)
    step_a = tl.arange(0, P)[None, :, None] + 1
    step_b = tl.arange(0, P)[None, None, :] + 1
    undecided = tl.max(meet.to(tl.int32))
    while undecided > 0:
        open_a, open_b = low_a < high_a, low_b < high_b
        mask = open_a | open_b
        # Of a side that is decided, the outermost cluster that merges stands in for the probes.
        probe_a = tl.where(open_a, low_a + step_a * (high_a - low_a) // (P + 1), high_a)
        probe_b = tl.where(open_b, low_b + step_b * (high_b - low_b) // (P + 1), low_b - 1)
        first_a, last_a = cluster_of(probe_a, mask, link, tiles, T)
        first_b, last_b = cluster_of(probe_b, mask, link, tiles, T)
        at_first = sum_before(first_a, mask, sums, ranks, T)
        at_last = sum_before(last_b, mask, sums, ranks, T)
        a = sum_between(at_first, sum_before(last_a, mask, sums, ranks, T))
        b = sum_between(sum_before(first_b, mask, sums, ranks, T), at_last)
        left, right = sum_between(at_first, at_middle), sum_between(at_middle, at_last)
        # Once a side is decided, a probe is held against the mean that it would have with it.
        joint = _together(left, right)
        crossed = not_less(either(open_a, a, joint), either(open_b, b, joint))
        weighed = not_positive(excess_of(left, a), excess_of(right, b))
        excess_is_less = tl.where(open_b, tl.where(open_a, weighed, ~crossed), crossed)
        a_merges, a_stays = crossed & excess_is_less, ~crossed & ~excess_is_less
        b_merges, b_stays = crossed & ~excess_is_less, ~crossed & excess_is_less
        low_a = _reduced(tl.where(a_stays & open_a, last_a, low_a), True)
        high_a = _reduced(tl.where(a_merges & open_a, first_a, high_a), False)
        low_b = _reduced(tl.where(b_merges & open_b, last_b, low_b), True)
        high_b = _reduced(tl.where(b_stays & open_b, first_b, high_b), False)
        undecided = tl.max(((low_a < high_a) | (low_b < high_b)).to(tl.int32))
    return tl.where(meet, high_a, middle), tl.where(meet, low_b, middle)


@triton.jit
def _reduced(values, GREATEST: tl.constexpr):
    """Return the greatest or the least over the pairs of probes, shape (M, 1, 1)."""
    if GREATEST:
        return tl.max(tl.max(values, 2, keep_dims=True), 1, keep_dims=True)
    return tl.min(tl.min(values, 2, keep_dims=True), 1, keep_dims=True)
