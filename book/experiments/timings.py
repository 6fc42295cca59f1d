"""How long does the prox take, and how long do others take on the same weights?

``python -m experiments.timings``, run in ``book/``, writes ``results/timings.json``; with
``--device cuda``, ``results/timings_cuda.json``.  Panels of the record:

weights   the inputs, and how far the certificate lets the result be from the minimizer
single    one tensor, one group: every method, in rounds that alternate with the unit
batch     many short rows at once
memory    peak memory beyond input and output, in a fresh process per measurement
first     the first call in a fresh process, with an empty and with a filled cache of compiled code
training  a step of training with the prox over the same step without, on a GPU
choice    the ways between which ``auto`` chooses, on both sides of its thresholds

A result is compared with exact arithmetic before it is timed; a wrong one is not timed.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import wsr
from experiments.accuracy import DTYPES, Problem, draw
from experiments.data import load_digits
from experiments.records import Record, Row, parser
from wsr.kernels import cpu

SEED = 4
INPUTS = (
    "gaussian",
    "one_cluster",
    "half_shared",
    "cascade",
    "ties",
    "sorted",
    "reversed",
    "trained",
)
PEERS = ("scipy", "scikit-learn", "torchsort", "skglm")  # as PyPI knows them
LARGEST_FOR_ALL = 1_000_000  # above, methods other than auto are timed on one input only
LARGEST_FOR_EACH_INPUT = 10_000_000  # above, a few inputs have to do
CERTIFIED = 1_000_000  # the certificate takes many times longer than the prox
TOLERANCE = 4  # units in the last place of the largest weight
SHORTEST_SPREAD = 5  # rounds that a median and quartiles need at least

Solver = Callable[[Tensor, float], Tensor]


class Settings(NamedTuple):
    """All that fixes the run."""

    device: str = "cpu"
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    threads: tuple[int, ...] = (1, 2)
    batch: tuple[int, int] = (4096, 512)
    memory_sizes: tuple[int, ...] = (1_000_000, 10_000_000)
    first_sizes: tuple[int, ...] = (1_000, 1_000_000)
    choice_sizes: tuple[int, ...] = (2**10, 2**12, 2**14, 2**16, 2**18, 2**20)
    channels: int = 0  # of the network that is trained; 64 is the size of the paper's public code
    hidden: int = 256  # units of the network whose weights are the input `trained`
    steps: int = 300
    budget: float = 0.5  # seconds a measurement, if the least number of rounds allows
    limit: float = 2.0  # seconds a call: what is predicted to take longer is left out
    paper_code: bool = False


QUICK: Row = {  # without the panels that start processes, which take seconds each
    "sizes": (10, 100),
    "batch": (8, 16),
    "memory_sizes": (),
    "first_sizes": (),
    "choice_sizes": (10, 100),
    "hidden": 4,
    "steps": 3,
    "channels": 1,
    "budget": 0.0,
}
CUDA = {
    "sizes": (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
    "threads": (1,),
    "memory_sizes": (1_000_000, 10_000_000, 100_000_000),
    "choice_sizes": (2**20, 2**22, 2**24),
    "channels": 64,
    "budget": 0.1,
}


# Inputs


def weights(name: str, d: int, dtype: torch.dtype, settings: Settings) -> tuple[Tensor, float]:
    """Return d weights of the dtype, on the CPU, and a strength lambd in the same unit."""
    if name != "trained":
        return draw(name, d, dtype)
    w, lambd = trained(settings.hidden, settings.steps)
    return resample(w, d).to(dtype), lambd


@functools.cache
def trained(hidden: int, steps: int) -> tuple[Tensor, float]:
    """Return what the prox is given at the last step of a training with it, and its strength.

    The first layer of a network with one hidden layer, after SGD with learning rate 0.1 on batches
    of 128 digits, the prox at every step, strength 0.003 in the objective: the weights after the
    last gradient step and before the prox.
    """
    torch.manual_seed(SEED)
    digits = load_digits()
    pixels = digits.train_images[0].numel()
    network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU())
    network.append(nn.Linear(hidden, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    layer, lambd = network[1], 0.1 * 0.003
    assert isinstance(layer, nn.Linear)
    order = torch.randperm(len(digits.train_images))
    given = layer.weight.detach().clone()
    for step in range(steps):
        batch = order[torch.arange(128 * step, 128 * (step + 1)) % len(order)]
        optimizer.zero_grad()
        loss = F.cross_entropy(network(digits.train_images[batch]), digits.train_labels[batch])
        torch.autograd.backward(loss)
        optimizer.step()
        with torch.no_grad():
            given = layer.weight.clone()
            layer.weight.copy_(wsr.prox(given, lambd))
    return given.flatten(), lambd


def resample(w: Tensor, d: int) -> Tensor:
    """Return d of the weights: some of them, or all of them several times.

    A weight that equals another one does so in every copy.  Copies of the others would tie, so from
    the second copy on they are moved by a thousandth of the standard deviation of w.
    """
    generator = torch.Generator().manual_seed(SEED)
    parts = [w[torch.randperm(len(w), generator=generator)]]
    alone = wsr.Sharing.of(parts[0])
    moves = 1e-3 * w.std() * (alone.counts[alone.labels] == 1)
    while d > len(w) * len(parts):
        parts.append(parts[0] + moves * torch.randn(len(w), generator=generator))
    return torch.cat(parts)[:d]


# Methods


def through_scipy(w: Tensor, lambd: float) -> Tensor:
    """Solve with scipy, after torch's sort."""
    from scipy.optimize import isotonic_regression

    x, order = w.sort()
    return _unsort(isotonic_regression(_end_points(x, lambd)).x, order, w)


def through_numpy_and_scipy(w: Tensor, lambd: float) -> Tensor:
    """Solve with scipy, after numpy's sort, which may be vectorised."""
    from scipy.optimize import isotonic_regression

    order = torch.from_numpy(w.numpy().argsort())
    return _unsort(isotonic_regression(_end_points(w[order], lambd)).x, order, w)


def through_sklearn(w: Tensor, lambd: float) -> Tensor:
    """Solve with scikit-learn, after torch's sort."""
    from sklearn.isotonic import isotonic_regression

    x, order = w.sort()
    return _unsort(isotonic_regression(_end_points(x, lambd)), order, w)


def through_skglm(w: Tensor, lambd: float) -> Tensor:
    """Solve with the SLOPE prox of skglm, after torch's sort.

    On weights sorted from large to small, SLOPE subtracts its strengths, pools, and cuts at zero.
    Our strengths, lambd (d-1-2k) / (d-1), are as many negative as positive, which it does not ask
    about; all weights plus a constant larger than those of both signs are never cut.
    """
    from skglm.utils.prox_funcs import prox_SLOPE

    x, order = w.sort(descending=True)
    constant = lambd + float(w.abs().max())
    alphas = lambd * np.linspace(1, -1, len(w))
    return _unsort(prox_SLOPE(x.double().numpy() + constant, alphas) - constant, order, w)


def through_torchsort(w: Tensor, lambd: float) -> Tensor:
    """Solve with the isotonic regression inside torchsort, in the dtype of the weights."""
    from torchsort.ops import isotonic_l2

    x, order = w.sort(dim=-1, descending=True)
    z = x - lambd * torch.linspace(1, -1, w.shape[-1], dtype=w.dtype)
    solution: Tensor = isotonic_l2["cpu"](z.view(-1, w.shape[-1]))
    return torch.empty_like(w).scatter_(-1, order, solution.view(w.shape))


def through_torchsort_in_float64(w: Tensor, lambd: float) -> Tensor:
    """Solve with the isotonic regression inside torchsort, in float64."""
    return through_torchsort(w.double(), lambd).to(w.dtype)


def _end_points(x: Tensor, lambd: float) -> Any:
    return x.double().numpy() - lambd * np.linspace(-1, 1, len(x))


def _unsort(values: Any, order: Tensor, w: Tensor) -> Tensor:
    return torch.empty_like(w).index_copy_(0, order, torch.from_numpy(values).to(w.dtype))


class Method(NamedTuple):
    """A way to compute the prox of one group."""

    name: str
    solve: Solver
    package: str = "wsr"  # which PyPI knows, or "paper"
    batched: bool = False  # solves every row of a matrix in one call


def ours(name: str) -> Method:
    """Return an algorithm of this package."""
    return Method(name, lambda w, lambd: wsr.prox(w, lambd, dim=-1, algorithm=name), "wsr", True)


OURS = tuple(ours(name) for name in ("auto", *wsr.ALGORITHMS))
THEIRS = (
    Method("scipy", through_scipy, "scipy"),
    Method("scipy, numpy sort", through_numpy_and_scipy, "scipy"),
    Method("scikit-learn", through_sklearn, "scikit-learn"),
    Method("torchsort", through_torchsort, "torchsort", True),
    Method("torchsort, float64", through_torchsort_in_float64, "torchsort", True),
    Method("skglm", through_skglm, "skglm"),
)
MODULES = {"scikit-learn": "sklearn"}  # where the name of the module is another one


def installed(package: str) -> bool:
    """Return whether the package of that name on PyPI can be imported."""
    return importlib.util.find_spec(MODULES.get(package, package)) is not None


def papers(checkout: Path) -> list[Method]:
    """Return the three algorithms of a checkout of the paper's public code.

    They overwrite what they are given, so each gets a copy, whose time counts.

    Raises
    ------
    SystemExit
        If the checkout does not hold them, or if what they import is not installed.
    """
    module = _module(checkout / "src" / "utils" / "train_util.py")
    if not hasattr(module, "prox_R_and_l1"):
        sys.exit(f"--paper-code: {module.__file__} has no function prox_R_and_l1")

    def method(algorithm: str) -> Method:
        def solve(w: Tensor, lambd: float) -> Tensor:
            u: Tensor = module.prox_R_and_l1(w.clone(), lambd, 0.0, 0.0, 1.0, alg=algorithm)[0]
            return u

        return Method(f"paper, {algorithm}", solve, "paper")

    return [method(f"{name}_collisions") for name in ("search", "imminent", "end")]


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_code", path)
    if not path.is_file() or spec is None or spec.loader is None:
        sys.exit(f"--paper-code: {path} is missing; name the folder that holds src/")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        sys.exit(f"--paper-code: {path.name} needs {error.name}, which cannot be imported")
    return module


def by_row(method: Method) -> Solver:
    """Return what solves every row of a matrix: in one call if the method can, else in a loop."""

    def solve(w: Tensor, lambd: float) -> Tensor:
        return torch.stack([method.solve(row, lambd) for row in w])

    return method.solve if method.batched else solve


# The gate


def ulp_of_largest(w: Tensor) -> float:
    """Return the unit of errors: the spacing of floats at the largest weight, at most."""
    return float(torch.finfo(w.dtype).eps * w.abs().max())


def error(problem: Problem, u: Tensor) -> float | None:
    """Return the largest error in units of :func:`ulp_of_largest`; None if u is not finite."""
    found = problem.compare(u)
    return found["error"] / ulp_of_largest(problem.w) if found["finite"] else None


def error_of_rows(w: Tensor, u: Tensor, lambd: float) -> float | None:
    """Return the largest error in 32 rows."""
    some = range(0, len(w), max(len(w) // 32, 1))
    errors = [error(Problem.solve(w[row], lambd), u[row]) for row in some]
    return None if None in errors else max(e for e in errors if e is not None)


def certified_distance(u: Tensor, w: Tensor, lambd: float) -> float:
    """Return a bound on the root mean square distance from u to the minimizer, in the same unit."""
    gap = wsr.duality_gap(u, w, lambd).item()
    return math.sqrt(2 * gap / w.numel()) / ulp_of_largest(w)


def verdict(found: float | None) -> Row:
    """Return whether a result with this error may be timed."""
    right = found is not None and found <= TOLERANCE
    return {"error_ulp": found, "status": "timed" if right else "wrong"}


# The clock


def seconds(call: Callable[[], object], device: str) -> float:
    """Return how long a call takes until its result is there."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def race(call: Callable[[], object], unit: Callable[[], object], budget: float, device: str) -> Row:
    """Time a call and the unit in turns, after one round that does not count.

    Returns the number of rounds; quartiles of the seconds of the call, of those of the unit, and of
    the ratio of the two, round by round.
    """
    seconds(unit, device)
    seconds(call, device)
    end = time.perf_counter() + budget
    rounds: list[tuple[float, float]] = []
    while len(rounds) < SHORTEST_SPREAD or time.perf_counter() < end:
        rounds.append((seconds(unit, device), seconds(call, device)))
    return {
        "rounds": len(rounds),
        "seconds": quartiles([b for _, b in rounds]),
        "unit_seconds": quartiles([a for a, _ in rounds]),
        "ratio": quartiles([b / a for a, b in rounds]),
    }


def quartiles(values: list[float]) -> list[float]:
    """Return the first quartile, the median and the third quartile."""
    return [float(f"{q:.4g}") for q in statistics.quantiles(values, n=4, method="inclusive")]


def predicted(rows: list[Row], d: int, key: Row) -> float:
    """Return how many seconds a call will take, from the two largest sizes that were timed.

    The time grows by the power of d that it did between the two sizes, but at least by the first.
    Infinite if a smaller size was left out.
    """
    rows = [row for row in rows if row["d"] < d and key.items() <= row.items()]
    if any(row["status"] == "left out" for row in rows):
        return math.inf
    timed = sorted((row["d"], row["seconds"][1]) for row in rows if row["status"] == "timed")
    if not timed:
        return 0.0
    (d_before, t_before), (d_last, t_last) = timed[-2:] if len(timed) > 1 else 2 * timed
    power = math.log(t_last / t_before) / math.log(d_last / d_before) if d_last > d_before else 1
    return float(t_last * (d / d_last) ** max(power, 1))


def judge_and_race(
    call: Callable[[], Tensor],
    unit: Callable[[], object],
    error_of: Callable[[Tensor], float | None],
    settings: Settings,
) -> Row:
    """Compare what a call returns with the truth; time it if it is right and within the limit."""
    begin = time.perf_counter()
    row = verdict(error_of(call().cpu()))
    if row["status"] == "timed" and time.perf_counter() - begin > settings.limit:
        wait = seconds(call, settings.device)  # the first call may have had to compile
        if wait > settings.limit:
            return row | left_out(settings, wait)
    if row["status"] == "timed":
        row |= race(call, unit, settings.budget, settings.device)
    return row


def left_out(settings: Settings, wait: float) -> Row:
    """Return why a measurement is not made."""
    size = f"{wait:.2g} s" if wait < math.inf else "as was a smaller size"
    return {"status": "left out", "reason": f"a call over {settings.limit:g} s: {size}"}


# The panels


class Task(NamedTuple):
    """A row to come: what names it, and how to get the rest of it."""

    key: Row
    work: Callable[[], Row]


def single(settings: Settings, methods: list[Method], record: Record) -> Iterator[Task]:
    """Yield each input, then every method on it."""

    @functools.lru_cache(maxsize=1)
    def problem(dtype: str, d: int, name: str) -> Problem:
        return Problem.solve(*weights(name, d, DTYPES[dtype], settings), settings.device)

    @functools.lru_cache(maxsize=1)
    def gaussian(d: int) -> Tensor:
        return draw("gaussian", d, torch.float32)[0]

    def describe(dtype: str, d: int, name: str) -> Row:
        p = problem(dtype, d, name)
        row = {
            "lambd": p.lambd,
            "distinct": int((p.w[p.order].diff() != 0).sum()) + 1,
            "clusters": len(p.exact.sizes),
            "largest_cluster": int(p.exact.sizes.max()),
        }
        if d <= CERTIFIED:
            u = wsr.prox(p.w.to(settings.device), p.lambd).cpu()
            row["certified_ulp"] = certified_distance(u, p.w, p.lambd)
        return row

    def measure(method: Method, dtype: str, d: int, name: str, threads: int) -> Row:
        own = settings
        if method.name == "auto":  # what all this is about is never left out
            own = settings._replace(limit=math.inf)
        same = {"dtype": dtype, "input": name, "method": method.name, "threads": threads}
        wait = predicted(record.rows, d, same | {"panel": "single"})
        if wait > own.limit:
            return left_out(own, wait)
        p = problem(dtype, d, name)
        w = p.w.to(settings.device)
        unit = w if settings.device == "cuda" else gaussian(d)
        torch.set_num_threads(threads)
        return judge_and_race(
            lambda: method.solve(w, p.lambd), unit.sort, lambda u: error(p, u), own
        )

    for dtype, d, name in itertools.product(DTYPES, settings.sizes, INPUTS):
        for method, threads in itertools.product(methods, settings.threads):
            if wanted(settings, method.name, dtype, d, name, threads):
                key = {"dtype": dtype, "d": d, "input": name}
                if method.name == "auto" and threads == settings.threads[0]:
                    yield Task(
                        {"panel": "weights"} | key, functools.partial(describe, dtype, d, name)
                    )
                more = {"method": method.name, "threads": threads}
                work = functools.partial(measure, method, dtype, d, name, threads)
                yield Task({"panel": "single"} | key | more, work)


def wanted(settings: Settings, method: str, dtype: str, d: int, name: str, threads: int) -> bool:
    """Return whether a combination belongs to the plan.

    All methods run on all inputs in float32 with one thread; ``auto`` alone does in all dtypes and
    with more threads.
    """
    large = d > LARGEST_FOR_ALL
    if dtype in ("float16", "bfloat16") and (d < 10_000 or (large and name != "gaussian")):
        return False
    if d > LARGEST_FOR_EACH_INPUT:
        return method == "auto" and dtype == "float32" and name in ("gaussian", "half_shared")
    if method == "auto":
        return True
    if threads != settings.threads[0]:
        return method == "scipy, numpy sort" and name == "gaussian" and dtype == "float32"
    return dtype == "float32" and (not large or name == "gaussian")


def batch(settings: Settings, methods: list[Method]) -> Iterator[Task]:
    """Yield every method on many short rows."""
    rows, d = settings.batch
    w, lambd = draw("gaussian", rows * d, torch.float32)
    w = w.view(rows, d).to(settings.device)

    def measure(method: Method, threads: int) -> Row:
        solve = by_row(method)
        torch.set_num_threads(threads)
        few = w[: math.ceil(rows / 64)]
        solve(few, lambd)
        wait = seconds(lambda: solve(few, lambd), settings.device) * rows / len(few)
        if wait > settings.limit:
            return left_out(settings, wait)
        return judge_and_race(
            lambda: solve(w, lambd),
            lambda: w.sort(dim=1),
            lambda u: error_of_rows(w.cpu(), u, lambd),
            settings,
        )

    for method, threads in itertools.product(methods, settings.threads):
        if method.name == "auto" or threads == settings.threads[0]:
            key = {"panel": "batch", "rows": rows, "d": d, "method": method.name}
            yield Task(key | {"threads": threads}, functools.partial(measure, method, threads))


def memory(settings: Settings, record: Record) -> Iterator[Task]:
    """Yield the peak memory of ``auto`` at all sizes, and of the others at the first."""

    def measure(method: str, dtype: str, d: int, name: str) -> Row:
        call = f"peak_memory({method!r}, {dtype!r}, {d}, {name!r}, {settings.device!r})"
        return {"bytes_per_weight": round(_child(call), 2)}

    methods = [method for method in (*OURS, *THEIRS) if installed(method.package)]
    for dtype, d, name, method in itertools.product(
        ("float32", "float64", "bfloat16"),
        settings.memory_sizes,
        ("gaussian", "half_shared", "one_cluster"),
        [method.name for method in methods],
    ):
        plain = dtype == "float32" and d == settings.memory_sizes[0] and name == "gaussian"
        if method == "auto" or (plain and settings.device == "cpu"):
            key = {"panel": "memory", "dtype": dtype, "d": d, "input": name, "method": method}
            yield Task(key, functools.partial(_if_timed, record, key, measure))


def _if_timed(record: Record, key: Row, measure: Callable[..., Row]) -> Row:
    """Measure what the first panel did not find wrong or slow, at this size or a smaller one."""
    same = {k: key[k] for k in ("dtype", "input", "method")} | {"panel": "single"}
    for row in record.rows:
        if same.items() <= row.items() and row["d"] <= key["d"] and row["status"] != "timed":
            return {"status": row["status"]}
    return {"status": "measured"} | measure(key["method"], key["dtype"], key["d"], key["input"])


def peak_memory(method: str, dtype: str, d: int, name: str, device: str) -> float:
    """Return the peak memory of one call beyond input and output, in bytes a weight.

    On a CPU this is the growth of the resident memory of this process, of which the kernel keeps
    the peak.  The call before has loaded and compiled what is needed; what it has freed went back
    to the kernel if the allocator was told so, see :func:`_child`.
    """
    w, lambd = weights(name, d, DTYPES[dtype], Settings())
    w = w.to(device)
    solve = next(m.solve for m in (*OURS, *THEIRS) if m.name == method)
    result_size = w.numel() * w.element_size()
    solve(w, lambd)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        solve(w, lambd)
        return (torch.cuda.max_memory_allocated() - before - result_size) / d
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = _resident("VmRSS")
    solve(w, lambd)
    return (_resident("VmHWM") - before - result_size) / d


def _resident(field: str) -> int:
    """Return a field of Linux's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _child(call: str) -> Any:
    """Return what a function of this module returns in a fresh process."""
    script = f"import json\nfrom experiments import timings\nprint(json.dumps(timings.{call}))"
    # Every array of some size gets pages of its own, which return to the kernel with it.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return _run(script, environment)


def _run(script: str, environment: dict[str, str]) -> Any:
    """Return what a Python script prints, as JSON, in a fresh process with one thread."""
    command = [sys.executable, "-c", script]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


FIRST = """
import json
import time

times = [time.perf_counter()]
import torch
w = torch.randn({d}, generator=torch.Generator().manual_seed(0)).to("{device}")
times.append(time.perf_counter())
import wsr
times.append(time.perf_counter())
for _ in range(2):
    wsr.prox(w, 0.1).cpu()
    times.append(time.perf_counter())
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""


def first(settings: Settings) -> Iterator[Task]:
    """Yield the first calls: few and many weights, with an empty cache and after that."""

    def empty(d: int) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            return first_call(d, settings.device, folder)

    def filled(d: int) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            first_call(d, settings.device, folder)
            rows = [first_call(d, settings.device, folder) for _ in range(3)]
        return {name: statistics.median(row[name] for row in rows) for name in rows[0]}

    for d, cache in itertools.product(settings.first_sizes, (empty, filled)):
        key = {"panel": "first", "d": d, "cache": cache.__name__}
        yield Task(key, functools.partial(cache, d))


def first_call(d: int, device: str, folder: str) -> Row:
    """Return the seconds of two imports and two calls in a process that caches in a folder."""
    names = ("import_torch", "import_wsr", "first_call", "second_call")
    environment = {"NUMBA_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
    times = zip(names, _run(FIRST.format(d=d, device=device), environment), strict=True)
    return {name: float(f"{value:.3g}") for name, value in times}


# `auto` sorts, or counts first: all weights are sent one way, and all the other.
THRESHOLDS = ("COUNTED_FROM", "SAMPLED_FROM")  # on a CPU
NEVER, ALWAYS = 2**62, 0


def ways_on(device: str) -> tuple[ModuleType, Row, dict[str, Row]]:
    """Return the path on a device, what it decides by, and what instead, to send all one way."""
    if device == "cpu":
        names = [*THRESHOLDS, "_much_is_shared"]
        shared: Row = {"_much_is_shared": lambda w, lambd: True}
        ways: dict[str, Row] = {
            "sort": dict.fromkeys(THRESHOLDS, NEVER),
            "count": dict.fromkeys(THRESHOLDS, ALWAYS) | shared,
            "auto": {},
        }
        return cpu, {name: getattr(cpu, name) for name in names}, ways

    from wsr.kernels import cuda  # imports Triton

    def decided(wanted: bool) -> Row:
        def much_is_shared(rows: Tensor, strengths: Tensor) -> Tensor:
            return torch.full((len(rows),), wanted, device=rows.device)

        return {"_much_is_shared": much_is_shared}

    always: Row = {"COUNT_FROM": dict.fromkeys(cuda.COUNT_FROM, ALWAYS)}
    ways = {
        "sort": {"COUNT_FROM": dict.fromkeys(cuda.COUNT_FROM, NEVER)},
        "count": always | decided(True),
        "own sort": always | decided(False),  # of all weights, by the kernels for open buckets
        "auto": {},
    }
    names = ["COUNT_FROM", "_much_is_shared"]
    return cuda, {name: getattr(cuda, name) for name in names}, ways


TWO_DTYPES = ("float32", "bfloat16")
STRENGTHS = (1e-3, 0.02, 0.024, 0.026, 0.028, 0.032, 0.04, 1.0)  # Gaussian weights, std 0.02


def choice(settings: Settings) -> Iterator[Task]:
    """Yield every way: at three strengths, on a CPU for the largest size at all of them."""
    module, as_it_is, ways = ways_on(settings.device)

    @functools.lru_cache(maxsize=1)
    def problem(dtype: str, d: int, lambd: float) -> tuple[Tensor, Problem]:
        w = draw("gaussian", d, DTYPES[dtype])[0]
        return w, Problem.solve(w, lambd, settings.device)

    def measure(dtype: str, d: int, lambd: float, way: str) -> Row:
        torch.set_num_threads(1)
        w, solved = problem(dtype, d, lambd)
        w = w.to(settings.device)
        row: Row = {"largest_cluster": int(solved.exact.sizes.max())}
        with mock.patch.multiple(module, **as_it_is | ways[way]):
            row |= verdict(error(solved, wsr.prox(w, lambd).cpu()))
            if row["status"] == "timed":
                unit = draw("gaussian", d, torch.float32)[0].to(settings.device).sort
                row |= race(lambda: wsr.prox(w, lambd), unit, settings.budget / 2, settings.device)
        return row

    some = (STRENGTHS[0], STRENGTHS[4], STRENGTHS[-1])
    for dtype, d, lambd in itertools.product(TWO_DTYPES, settings.choice_sizes, STRENGTHS):
        on_all = settings.device == "cpu" and d == settings.choice_sizes[-1]
        if lambd in some or on_all:
            for way in ways:
                key = {"panel": "choice", "dtype": dtype, "d": d, "lambd": lambd, "way": way}
                yield Task(key, functools.partial(measure, dtype, d, lambd, way))


def training(settings: Settings) -> Iterator[Task]:
    """Yield a step of training with the prox on the first layer, over one without."""
    if settings.channels:
        key = {"panel": "training", "channels": settings.channels, "batch": 512}
        steps = functools.partial(steps_of_training, settings)
        timed = {"status": "timed"}
        yield Task(key, lambda: timed | race(*steps(), settings.budget, settings.device))


def steps_of_training(settings: Settings) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a step with the prox and one without, of the fully connected network for CIFAR-10."""
    images = torch.randn(512, 3072, device=settings.device)
    labels = torch.arange(512, device=settings.device) % 10

    def step_of(proximal: bool) -> Callable[[], object]:
        sizes = (3072, 256 * settings.channels, 24 * settings.channels)
        layers = [
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())
            for a, b in itertools.pairwise(sizes)
        ]
        network = nn.Sequential(*layers, nn.Linear(sizes[-1], 10)).to(settings.device)
        first, *others = network.parameters()
        groups: list[Row] = [
            {"params": [first], "lambd": 1e-3, "l1": 1e-4, "rho": 0.98},
            {"params": others},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        if proximal:
            wsr.proximal(optimizer)

        def step() -> None:
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(images), labels))
            optimizer.step()

        return step

    return step_of(proximal=True), step_of(proximal=False)


def main(arguments: list[str] | None = None) -> None:
    """Run what the record does not hold yet."""
    options, settings = _settings(arguments)
    methods = [*OURS, *(THEIRS if settings.device == "cpu" else ())]
    methods = [method for method in methods if installed(method.package)]
    if options.paper_code:
        methods += papers(options.paper_code)
    on_gpu = settings.device == "cuda"
    module, _, _ = ways_on(settings.device)
    thresholds: Row = {name: getattr(module, name) for name in THRESHOLDS if not on_gpu}
    if on_gpu:
        thresholds = {"COUNT_FROM": {str(size): n for size, n in module.COUNT_FROM.items()}}
    command = (
        "python -m experiments.timings" + " --device cuda" * on_gpu + " --quick" * options.quick
    )
    if options.sizes:
        command += " --sizes " + " ".join(map(str, options.sizes))
    if settings.limit != Settings().limit:
        command += f" --limit {settings.limit:g}"
    record = Record(
        "timings_cuda" if on_gpu else "timings",
        settings._asdict()
        | {
            "digits": load_digits().name,
            "methods": [method.name for method in methods],
            "seed": SEED,
        }
        | thresholds,
        options.results,
        packages=PEERS,
        command=command + " --paper-code PATH" * settings.paper_code,
    )
    tasks = [
        *single(settings, methods, record),
        *batch(settings, methods),
        *memory(settings, record),
        *first(settings),
        *training(settings),
        *choice(settings),
    ]
    for task in (bar := tqdm(tasks, unit="row")):
        if not record.has(**task.key):
            bar.set_postfix_str(" ".join(map(str, list(task.key.values())[:5])))
            record.add(**task.key, **task.work())
    print(record.finish())


def _settings(arguments: list[str] | None) -> tuple[argparse.Namespace, Settings]:
    command = parser("Time every algorithm, and others', on the same weights.")
    default = Settings()
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs")
    command.add_argument("--sizes", type=int, nargs="+", help="numbers of weights, from small")
    command.add_argument("--limit", type=float, default=default.limit, help="seconds a call")
    command.add_argument(
        "--paper-code",
        type=Path,
        metavar="PATH",
        help="a checkout of the paper's public code to time too, if what it imports is installed",
    )
    options = command.parse_args(arguments)
    changes: Row = dict(CUDA) if options.device == "cuda" else {}
    changes |= QUICK if options.quick else {}
    if options.sizes:
        changes["sizes"] = tuple(options.sizes)
    changes |= {
        "device": options.device,
        "limit": options.limit,
        "paper_code": bool(options.paper_code),
    }
    return options, default._replace(**changes)


if __name__ == "__main__":
    main()
