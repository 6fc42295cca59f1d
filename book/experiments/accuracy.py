"""How far is the prox from exact arithmetic?

Every algorithm is compared with an oracle that shares no code with ``wsr``: integers of as many
digits as it takes, pooled one by one.  Errors are counted in units in the last place (ulp) of the
dtype.  Two ways that look natural, prefix sums in float32 and in float64, are compared as well.
"""

import functools
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import wsr
from experiments.records import Record, Row, parser

Array = NDArray[Any]

DIGIT = 32
MASK = 2**DIGIT - 1
FRACTION_DIGITS = 4  # of a mean, behind the unit of the sums
WIDEST = 900  # binary places that an input may span, so that no scaled float64 underflows

SEED = 4
LEAST_SIZE = 1000
MIDDLE_SIZE = 100_000
SIZES = (LEAST_SIZE, 10_000, MIDDLE_SIZE, 1_000_000, 10_000_000)
HUGE = 100_000_000  # on a GPU, where the oracle, on one core of the CPU, takes most of the time
SIZES_ON_GPU = (LEAST_SIZE, MIDDLE_SIZE, 10_000_000, HUGE)
QUICK_SIZE = 100
# The largest size of each method; `affordable` knows the exceptions.
LARGEST = {
    "float32 prefix sums": 10_000_000,
    "float64 prefix sums": 10_000_000,
    "pool_adjacent_violators": 1_000_000,
    "end_collisions": 1_000_000,
    "imminent_collisions": MIDDLE_SIZE,
    "search_collisions": 1_000_000,
    "bridges": 1_000_000,
    "auto": HUGE,
}
PREFIX_SUMS = {"float32 prefix sums": torch.float32, "float64 prefix sums": torch.float64}
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


# Inputs


def gaussian(d: int, rng: np.random.Generator) -> Array:
    """Return weights as at the start of a training."""
    return 0.02 * rng.standard_normal(d)


def levels(values: Array, number: int) -> Array:
    """Return the values rounded to equally spaced levels from the least to the greatest."""
    least, step = values.min(), np.ptp(values) / (number - 1)
    return np.asarray(least + np.round((values - least) / step) * step)


def cascade(d: int) -> Array:
    """Return weights of which half are tied and the others join them one after another."""
    gap = 2e-3 / max(d - 1, 1)  # by which two neighbours approach each other, lambd = 1e-3
    return np.concatenate([np.zeros(d - d // 2), 1.25 * gap * np.arange(1, d // 2 + 1)])


def wide(d: int, dtype: torch.dtype, rng: np.random.Generator) -> Array:
    """Return weights of both signs, of all magnitudes from 1e-12 to 1e12 (float16: 1e-4 to 1e4)."""
    decades = 4 if dtype == torch.float16 else 12
    return np.asarray(rng.choice([-1.0, 1.0], d) * 10 ** rng.uniform(-decades, decades, d))


def draw(name: str, d: int, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Return d weights of the dtype and a strength lambd, in the same unit."""
    rng = np.random.default_rng([SEED, d, zlib.crc32(name.encode())])
    largest, lambd = torch.finfo(dtype).max, 1e-3
    match name:
        case "gaussian":
            values = gaussian(d, rng)
        case "one_cluster":
            values, lambd = gaussian(d, rng), 1.0
        case "half_shared":
            values, lambd = gaussian(d, rng), 1.349 * 0.02
        case "cascade":
            values = cascade(d)
        case "ties":
            values = levels(gaussian(d, rng), 256)
        case "sorted":
            values = np.sort(gaussian(d, rng))
        case "reversed":
            values = -np.sort(gaussian(d, rng))
        case "wide":
            values, lambd = wide(d, dtype, rng), 1.0
        case "heavy_tails":
            values = 0.02 * rng.standard_cauchy(d)
        case "all_equal":
            values = np.full(d, 0.1)
        case "all_zero":
            values = np.zeros(d)
        case "near_largest":
            values = largest * rng.uniform(0.5, 1, d) * rng.choice([-1.0, 1.0], d)
            lambd = largest / 4
        case _:
            raise ValueError(f"the inputs are {', '.join(INPUTS)}; got {name!r}")
    return torch.from_numpy(values.clip(-largest, largest)).to(dtype), lambd


INPUTS = (
    "gaussian",
    "one_cluster",
    "half_shared",
    "cascade",
    "ties",
    "sorted",
    "reversed",
    "wide",
    "heavy_tails",
    "all_equal",
    "all_zero",
    "near_largest",
)


# The oracle


@dataclass(frozen=True)
class Exact:
    """The exact prox of sorted weights.

    Attributes
    ----------
    sizes : Array
        Shape (clusters,), int64: how many particles each cluster has; touching ones count as one.
    high, low : Array
        Shape (clusters,), float64: the values are (high + low) * 2**exponent, to 2^-70 of each.
    exponent : int
        All weights and lambd are less than 2**exponent.
    """

    sizes: Array
    high: Array
    low: Array
    exponent: int


def exact_prox(x: Array, lambd: float) -> Exact:
    """Solve for sorted weights x, shape (d,), float64, in integers.

    In the unit of the lowest bit of any weight or of lambd, all of them are integers.  With prefix
    sums X_k of the weights, the free end points have (d - 1) times the prefix sums

        Z_k = (d - 1) X_k + lambd k (d - k),

    integers again.  The blocks [a, b) and [b, c) pool if (Z_b - Z_a)(c - b) >= (Z_c - Z_b)(b - a).

    Raises
    ------
    ValueError
        If there are 2^27 weights or more, or they and lambd span more than 900 binary places.
    """
    d = len(x)
    mantissas, exponents = np.frexp(np.append(x, lambd))
    occurring = exponents[mantissas != 0] if mantissas.any() else np.zeros(1, int)
    exponent, unit = int(occurring.max()), int(occurring.min()) - 53
    if d >= 2**27 or exponent - unit > WIDEST:
        raise ValueError(f"too many weights ({d}) or binary places ({exponent - unit})")
    integers = (mantissas * 2.0**53).astype(np.int64)
    places = np.where(integers == 0, 0, exponents - 53 - unit)
    digits = (exponent - unit + 2 * d.bit_length() + 2) // DIGIT + 2
    strength = np.zeros(digits, np.int64)
    _add(strength, integers[-1], places[-1])
    borders, sums = np.empty(d + 1, np.int64), np.empty((d + 1, digits), np.int64)
    count = _pool(integers[:-1], places[:-1], strength, borders, sums)
    high, low = np.empty(count), np.empty(count)
    _values(borders[: count + 1], sums, max(d - 1, 1), unit - exponent, high, low)
    return Exact(np.diff(borders[: count + 1]), high, low, exponent)


_compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(cache=True, nogil=True)


@_compiled
def _add(digits: Array, integer: int, place: int) -> None:
    """Add integer * 2**place; integers have up to 53 bits and a sign."""
    sign = -1 if integer < 0 else 1
    n, shift = place // DIGIT, place % DIGIT
    below = (abs(integer) & MASK) << shift
    above = (abs(integer) >> DIGIT) << shift
    digits[n] += sign * (below & MASK)
    digits[n + 1] += sign * ((below >> DIGIT) + (above & MASK))
    digits[n + 2] += sign * (above >> DIGIT)
    carry = 0
    for i in range(len(digits) - 1):
        total = digits[i] + carry
        digits[i] = total & MASK
        carry = total >> DIGIT
    digits[-1] += carry  # the first digit keeps the sign


@_compiled
def _pool(integers: Array, places: Array, strength: Array, borders: Array, sums: Array) -> int:
    """Write the borders of the clusters, and Z there; return how many clusters there are."""
    d, n = len(integers), len(strength)
    weights = np.zeros(n, np.int64)
    borders[0], sums[0] = 0, 0
    top = 0
    for end in range(1, d + 1):
        _add(weights, integers[end - 1], places[end - 1])
        new = top + 1
        carry, carry_strength = 0, 0
        for i in range(n):
            product = strength[i] * end + carry_strength
            carry_strength = product >> DIGIT
            total = (product & MASK) * (d - end) + weights[i] * max(d - 1, 1) + carry
            sums[new, i] = total & MASK if i < n - 1 else total
            carry = total >> DIGIT
        while top > 0:
            begin, middle = borders[top - 1], borders[top]
            carry = 0
            for i in range(n):
                left, right = sums[top, i] - sums[top - 1, i], sums[new, i] - sums[top, i]
                carry = (left * (end - middle) - right * (middle - begin) + carry) >> DIGIT
            if carry < 0:  # the sign of the whole difference
                break
            top -= 1
        top += 1
        borders[top], sums[top] = end, sums[new]
    return top


@_compiled
def _values(borders: Array, sums: Array, d_less_1: int, unit: int, high: Array, low: Array) -> None:
    """Divide: the mean of each cluster as a sum of two floats, in units of 2**-unit."""
    n = sums.shape[1]
    quotient = np.zeros(n + FRACTION_DIGITS, np.int64)
    for k in range(len(high)):
        size = borders[k + 1] - borders[k]
        negative = sums[k + 1, n - 1] < sums[k, n - 1]
        if sums[k + 1, n - 1] == sums[k, n - 1]:
            for i in range(n - 1):  # the last digit that differs decides
                if sums[k + 1, i] != sums[k, i]:
                    negative = sums[k + 1, i] < sums[k, i]
        quotient[:] = 0
        carry = 0
        for i in range(n):
            digit = sums[k + 1, i] - sums[k, i]
            total = (-digit if negative else digit) + carry
            quotient[i + FRACTION_DIGITS] = total & MASK
            carry = total >> DIGIT
        for divisor in (d_less_1, size):
            remainder = 0
            for i in range(len(quotient) - 1, -1, -1):
                total = (remainder << DIGIT) | quotient[i]
                quotient[i] = total // divisor
                remainder = total % divisor
        head, tail = 0.0, 0.0  # what comes first is always the larger: no rounding is lost
        for i in range(len(quotient) - 1, -1, -1):
            term = quotient[i] * 2.0 ** (DIGIT * (i - FRACTION_DIGITS) + unit)
            longer = head + term
            tail += term - (longer - head)
            head = longer
        nearest = head + tail
        tail -= nearest - head
        high[k], low[k] = (-nearest, -tail) if negative else (nearest, tail)


# The comparison


@dataclass(frozen=True)
class Problem:
    """One input: weights, what sorts them, and the exact solution."""

    w: Tensor
    lambd: float
    order: Tensor
    exact: Exact

    @classmethod
    def solve(cls, w: Tensor, lambd: float, device: str = "cpu") -> "Problem":
        """Sort on the device, solve exactly on the CPU."""
        x, order = (part.cpu() for part in w.to(device).sort())
        return cls(w, lambd, order, exact_prox(x.double().numpy(), lambd))

    @functools.cached_property
    def rounded(self) -> Tensor:
        """The exact values of the clusters, rounded to the dtype as PyTorch does."""
        values = np.ldexp(self.exact.high, self.exact.exponent)
        return torch.from_numpy(values).to(self.w.dtype)

    @functools.cached_property
    def steps(self) -> Array:
        """Where ``rounded`` increases from one cluster to the next."""
        increases: Array = (self.rounded.diff() > 0).numpy()
        return increases

    def compare(self, u: Tensor) -> Row:
        """Return how far the result u is from the exact solution.

        ``error``, ``value_ulp``, ``largest_ulp`` and ``bound`` are the largest errors: in units of
        w; in ulp of the value; in 2^-10 ulp of the largest weight; in units of the sum of both.
        ``distinct`` counts the values that occur, ``misrounded`` the results that are not an exact
        value rounded to nearest, ``split`` the neighbours of one cluster that differ, ``joined``
        those of two clusters that are equal although their rounded values are not, ``disordered``
        those in the wrong order.
        """
        exact, finfo = self.exact, torch.finfo(self.w.dtype)
        if not u.isfinite().all():
            return {"finite": False}
        scaled = np.ldexp(u.cpu()[self.order].double().numpy(), -exact.exponent)
        step = np.diff(scaled)
        crosses = np.zeros(len(step), np.bool_)  # from one cluster to the next
        crosses[exact.sizes.cumsum()[:-1] - 1] = True
        high, low = np.repeat(exact.high, exact.sizes), np.repeat(exact.low, exact.sizes)
        error = np.abs((scaled - high) - low)
        ulp = _ulp(high, exact.exponent, finfo)
        largest = self.w.double().abs().max().numpy()
        ulp_of_largest = _ulp(np.ldexp(largest, -exact.exponent), exact.exponent, finfo)
        return {
            "finite": True,
            "error": float(np.ldexp(error.max(), exact.exponent)),
            "value_ulp": float((error / ulp).max()),
            "largest_ulp": float(error.max() / ulp_of_largest * 1024),
            "bound": float((error / (ulp + ulp_of_largest / 1024)).max()),
            "distinct": int((step != 0).sum()) + 1,
            "misrounded": int((error > 0.5 * ulp).sum()),
            "split": int((step[~crosses] != 0).sum()),
            "joined": int(((step[crosses] == 0) & self.steps).sum()),
            "disordered": int((step < 0).sum()),
        }


def _ulp(scaled: Array, exponent: int, finfo: torch.finfo) -> Array:
    """Return the spacing of the dtype's numbers around scaled * 2**exponent, scaled likewise."""
    places = np.frexp(scaled)[1]
    smallest = math.frexp(finfo.smallest_normal)[1] - exponent
    bits = round(-math.log2(finfo.eps)) + 1
    places = np.where(np.asarray(scaled) == 0, smallest, np.maximum(places, smallest))
    spacing: Array = np.ldexp(1.0, places - bits)
    return spacing


# Natural, and wrong


def by_prefix_sums(w: Tensor, lambd: float, dtype: torch.dtype) -> Tensor:
    """Return the prox by pooling on prefix sums that are kept in a dtype, as is often done."""
    x, order = w.double().sort()
    z = (x - lambd * torch.linspace(-1, 1, len(x), dtype=torch.float64)).to(dtype)
    prefix = torch.cat([torch.zeros(1, dtype=dtype), z.cumsum(0)])
    values = torch.empty_like(z)
    _pool_floats(prefix.numpy(), values.numpy())
    return torch.empty_like(w).index_copy(0, order, values.to(w.dtype))


@_compiled
def _pool_floats(prefix: Array, values: Array) -> None:
    """Write the mean of every particle's cluster; all numbers are kept in the dtype of prefix."""
    begins = np.empty(len(values), np.int64)
    means = np.empty(len(values), values.dtype)  # as rounded to it
    top = -1
    for end in range(1, len(prefix)):
        begin = end - 1
        top += 1
        means[top] = prefix[end] - prefix[begin]
        while top > 0 and means[top - 1] >= means[top]:
            top -= 1
            begin = begins[top]
            means[top] = (prefix[end] - prefix[begin]) / (end - begin)
        begins[top] = begin
    for n in range(top + 1):
        last = begins[n + 1] if n < top else len(values)
        values[begins[n] : last] = means[n]


# The run


def affordable(method: str, name: str, d: int, clusters: int) -> bool:
    """Return whether a method gets through an input in seconds."""
    if method == "end_collisions":  # one scan a cluster
        return d <= LARGEST[method] and clusters * d <= 20_000_000
    if (method, name) == ("imminent_collisions", "cascade"):  # d / 2 rounds
        return d <= 10_000
    return d <= LARGEST[method]


def run(method: str, w: Tensor, lambd: float, device: str) -> Tensor:
    """Return the prox as the method finds it."""
    if method in PREFIX_SUMS:
        return by_prefix_sums(w, lambd, PREFIX_SUMS[method])
    return wsr.prox(w.to(device), lambd, algorithm=method).cpu()


def cases(sizes: tuple[int, ...]) -> Iterator[tuple[str, int, str]]:
    """Yield dtype, size, input: float32 at all sizes, the others up to the middle one."""
    for dtype in DTYPES:
        for d in sizes:
            if dtype == "float32" or d <= MIDDLE_SIZE:
                for name in INPUTS if d < HUGE else ("gaussian", "one_cluster", "cascade"):
                    yield dtype, d, name


def main(arguments: list[str] | None = None) -> None:
    """Compare every algorithm with the oracle on every input."""
    command = parser("Compare every algorithm with exact arithmetic on every input.")
    command.add_argument("--device", default="cpu", help="cpu or cuda")
    options = command.parse_args(arguments)
    on_gpu = options.device != "cpu"
    sizes = (QUICK_SIZE,) if options.quick else SIZES_ON_GPU if on_gpu else SIZES
    settings = {"sizes": sizes, "inputs": INPUTS, "largest": LARGEST, "seed": SEED}
    record = Record(
        "accuracy_cuda" if on_gpu else "accuracy",
        settings | {"device": options.device},
        options.results,
        command="python -m experiments.accuracy" + " --device cuda" * on_gpu,
    )
    for dtype, d, name in tqdm(list(cases(sizes)), unit="input"):
        key = {"dtype": dtype, "d": d, "input": name}
        # The prefix sums are there for contrast: on the CPU, from float32 to float32.
        methods = [
            m for m in LARGEST if m not in PREFIX_SUMS or (dtype == "float32" and not on_gpu)
        ]
        if record.has(**key, method=methods[-1]):  # all before it have run
            continue
        problem = Problem.solve(*draw(name, d, DTYPES[dtype]), options.device)
        clusters, best = len(problem.exact.sizes), int(problem.steps.sum()) + 1
        about = {"lambd": problem.lambd, "clusters": clusters, "distinct_exact": best}
        for method in methods:
            if affordable(method, name, d, clusters) and not record.has(**key, method=method):
                u = run(method, problem.w, problem.lambd, options.device)
                record.add(**key, method=method, **about, **problem.compare(u))
    print(record.finish())


if __name__ == "__main__":
    main()
