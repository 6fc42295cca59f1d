"""Does sharing find equal coefficients in linear regression, and does that help?

Data are y = X w* + noise.  Examples are normal with covariance C, the noise is standard normal, and
the excess risk of an estimate w is (w - w*)' C (w - w*).  The estimates minimize

    |y - X w|^2 / (2 n) + lambda h(w)

for several penalties h, or start from such a minimizer.  Many data sets are solved in one batch,
and a duality gap certifies each solution.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import wsr
from experiments import records
from wsr.regularizer import gauge


class Penalty(NamedTuple):
    """The function lambd R + l1 norm of d weights.

    Attributes
    ----------
    lambd, l1 : float
        The two strengths, relative to each other.
    copies : int, optional
        The weights are this many copies of d / copies coefficients, one copy after another, and R
        acts on the copies of each coefficient.  By default it acts on all weights.
    """

    lambd: float = 1.0
    l1: float = 0.0
    copies: int | None = None

    def groups(self, w: Tensor) -> Tensor:
        """Return weights (..., d) as (..., groups, size)."""
        if self.copies is None:
            return w.unsqueeze(-2)
        return w.reshape(*w.shape[:-1], self.copies, -1).mT

    def ungroup(self, rows: Tensor) -> Tensor:
        """Undo ``groups``."""
        if self.copies is None:
            return rows.squeeze(-2)
        return rows.mT.flatten(-2)

    def __call__(self, w: Tensor) -> Tensor:
        """Return the value for weights (..., d)."""
        shared = wsr.penalty(self.groups(w), -1).sum(-1)
        return self.lambd * shared + self.l1 * w.abs().sum(-1)

    def prox(self, w: Tensor, strength: Tensor, rho: float = 0.0) -> Tensor:
        """Return the prox of strength times the penalty, relaxed by rho as in :func:`wsr.prox`.

        Strengths are positive and broadcast against w, (..., d).  The penalty is positively
        homogeneous, so a strength can serve as the unit of the weights.
        """
        rows = self.groups(w / strength)
        return strength * self.ungroup(wsr.prox(rows, self.lambd, l1=self.l1, rho=rho, dim=-1))

    def gauge(self, s: Tensor) -> Tensor:
        """Return the least t for which s / t is a subgradient somewhere, for s (..., d).

        Without l1 the entries of s must sum to zero in each group.
        """
        return gauge(self.groups(s), self.lambd, l1=self.l1).amax(-1)

    def ties(self, w: Tensor) -> Tensor:
        """Return which weights (..., d) are equal and of one group: (..., d, d), bool."""
        d = w.shape[-1]
        group = torch.arange(d) % (1 if self.copies is None else d // self.copies)
        same_group = group.unsqueeze(-1) == group
        return (w.unsqueeze(-1) == w.unsqueeze(-2)) & same_group


FLAT, LASSO = Penalty(), Penalty(lambd=0.0, l1=1.0)


@dataclass(frozen=True, eq=False)
class Problem:
    """Data sets, one for each leading index: X (..., n, d) and y (..., n)."""

    X: Tensor
    y: Tensor

    @property
    def n(self) -> int:
        """The number of examples."""
        return self.X.shape[-2]

    @cached_property
    def gram(self) -> Tensor:
        """X' X / n, (..., d, d)."""
        return self.X.mT @ self.X / self.n

    @cached_property
    def correlation(self) -> Tensor:
        """X' y / n, (..., d)."""
        return (self.X.mT @ self.y.unsqueeze(-1)).squeeze(-1) / self.n

    @cached_property
    def step(self) -> Tensor:
        """One over the largest curvature of the loss, (..., 1)."""
        curvatures: Tensor = torch.linalg.eigvalsh(self.gram)
        return 1 / curvatures[..., -1:]

    def take(self, rows: Tensor) -> "Problem":
        """Return some of the examples."""
        return Problem(self.X[..., rows, :], self.y[..., rows])

    def residual(self, w: Tensor) -> Tensor:
        """Return y - X w, (..., n), for weights (..., d)."""
        return self.y - (self.X @ w.unsqueeze(-1)).squeeze(-1)

    def loss(self, w: Tensor) -> Tensor:
        """Return |y - X w|^2 / (2 n), (...), for weights (..., d)."""
        return self.residual(w).square().sum(-1) / (2 * self.n)


def duality_gap(problem: Problem, w: Tensor, lambd: float, penalty: Penalty) -> Tensor:
    """Return how far weights may be from the least value of loss plus lambda times penalty.

    Parameters
    ----------
    problem : Problem
        Data sets, leading shape (...).
    w : Tensor
        A candidate for each, (..., d).
    lambd : float
        The strength, positive.
    penalty : Penalty

    Returns
    -------
    Tensor
        (...), not negative, in units of the loss.
    """
    dual = residual = problem.residual(w)
    if penalty.l1 == 0:  # subgradients sum to zero in every group
        members = penalty.groups(torch.eye(w.shape[-1]).to(w)).sum(-1)
        basis = torch.linalg.qr(problem.X @ members).Q
        dual = residual - (basis @ (basis.mT @ residual.unsqueeze(-1))).squeeze(-1)
    s = (problem.X.mT @ dual.unsqueeze(-1)).squeeze(-1) / problem.n
    excess = (penalty.gauge(s) / lambd).clamp(min=1.0).unsqueeze(-1)
    dual, s = dual / excess, s / excess
    slack = (lambd * penalty(w) - (s * w).sum(-1)).clamp(min=0.0)
    return (residual - dual).square().sum(-1) / (2 * problem.n) + slack


def solve(
    problem: Problem,
    lambd: float,
    penalty: Penalty,
    start: Tensor | None = None,
    *,
    tolerance: float = 1e-10,
    most: int = 20_000,
    every: int = 25,
) -> tuple[Tensor, Tensor]:
    """Minimize loss plus lambda times penalty by accelerated proximal gradient steps.

    The momentum starts anew in each data set where it points uphill (O'Donoghue and Candes, 2015,
    doi 10.1007/s10208-013-9150-3).

    Parameters
    ----------
    problem : Problem
        Data sets, leading shape (...).
    lambd : float
        The strength, positive.
    penalty : Penalty
    start : Tensor, optional
        Where to begin, (..., d); by default at zero.
    tolerance : float
        The duality gap at which to stop, relative to the loss of zero weights.
    most, every : int
        Steps at most, and how often the gap is looked at.

    Returns
    -------
    w : Tensor
        The solutions, (..., d).
    gap : Tensor
        Their duality gaps relative to the loss of zero weights, (...).
    """
    step, gram, correlation = problem.step, problem.gram, problem.correlation
    scale = problem.loss(torch.zeros_like(correlation))
    w = torch.zeros_like(correlation) if start is None else start
    gap = duality_gap(problem, w, lambd, penalty) / scale
    ahead, age = w, torch.ones_like(step)
    for count in range(1, most + 1):
        gradient = (gram @ ahead.unsqueeze(-1)).squeeze(-1) - correlation
        new = penalty.prox(ahead - step * gradient, step * lambd)
        uphill = ((ahead - new) * (new - w)).sum(-1, keepdim=True) > 0
        age = torch.where(uphill, 1.0, age)
        older = (1 + (1 + 4 * age.square()).sqrt()) / 2
        ahead = new + (age - 1) / older * (new - w)
        w, age = new, older
        if count % every == 0:
            gap = duality_gap(problem, w, lambd, penalty) / scale
            if (gap <= tolerance).all():
                break
    return w, gap


def path(
    problem: Problem, strengths: Sequence[float], penalty: Penalty, tolerance: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """Solve for several strengths, each from the solution of the next larger one.

    Returns
    -------
    w : Tensor
        (..., m, d), in the order of the m strengths.
    gap : Tensor
        As in :func:`solve`, (..., m).
    """
    found: dict[float, tuple[Tensor, Tensor]] = {}
    start = None
    for lambd in sorted(strengths, reverse=True):
        found[lambd] = solve(problem, lambd, penalty, start, tolerance=tolerance)
        start = found[lambd][0]
    solutions, gaps = zip(*(found[lambd] for lambd in strengths), strict=True)
    return torch.stack(solutions, -2), torch.stack(gaps, -1)


def settle(
    problem: Problem,
    lambd: float,
    penalty: Penalty,
    rho: float,
    start: Tensor,
    *,
    most: int = 300,
    tolerance: float = 1e-8,
) -> tuple[Tensor, Tensor]:
    """Take gradient steps, each followed by the prox that rho relaxes, until nothing moves.

    Nothing is minimized, and it need not settle.

    Parameters
    ----------
    problem, lambd, penalty
        As in :func:`solve`.
    rho : float
        As in :func:`wsr.prox`.
    start : Tensor
        Where to begin, (..., d).
    most : int
        Steps at most.
    tolerance : float
        How much a weight may still move in a step, in units of w.

    Returns
    -------
    w : Tensor
        The end points, (..., d).
    settled : Tensor
        Where they have settled, (...), bool.
    """
    step, gram, correlation = problem.step, problem.gram, problem.correlation
    w = start
    for _ in range(most):
        gradient = (gram @ w.unsqueeze(-1)).squeeze(-1) - correlation
        new = penalty.prox(w - step * gradient, step * lambd, rho)
        settled = (new - w).abs().amax(-1) <= tolerance
        w = new
        if settled.all():
            break
    return w, settled


def on_pattern(problem: Problem, ties: Tensor) -> Tensor:
    """Return the least-squares weights, of all that have these ties; the shortest if several do.

    Parameters
    ----------
    problem : Problem
        Data sets, leading shape (...).
    ties : Tensor
        Which weights are tied in each, (..., d, d), bool.

    Returns
    -------
    Tensor
        (..., d).
    """
    # The projection onto the vectors with these ties: their mean over each cluster.
    average = ties.to(problem.X.dtype) / ties.sum(-1, keepdim=True)
    gram = average @ problem.gram @ average
    inverse: Tensor = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True)
    w = (inverse @ average @ problem.correlation.unsqueeze(-1)).squeeze(-1)
    first = ties.int().argmax(-1)  # of its cluster: rounding must not undo the ties
    return w.gather(-1, first.expand_as(w))


def rand_index(ties: Tensor, true: Tensor) -> Tensor:
    """Return the adjusted Rand index of partitions that are given by who is tied to whom.

    It is 1 if they agree, and 0 on average if labels are shuffled (Hubert and Arabie, 1985, doi
    10.1007/BF01908075).

    Parameters
    ----------
    ties, true : Tensor
        (..., d, d), bool.

    Returns
    -------
    Tensor
        (...).
    """
    d = ties.shape[-1]

    def pairs(which: Tensor) -> Tensor:
        return (which.sum((-1, -2)).double() - d) / 2

    both, one, other = pairs(ties & true), pairs(ties), pairs(true)
    chance = one * other / (d * (d - 1) / 2)
    most = (one + other) / 2
    return torch.where(most == chance, 1.0, (both - chance) / (most - chance))


class Fit(NamedTuple):
    """The estimates of one method: w (..., m, d) for m candidate settings.

    ``penalty`` says within which groups the method may tie, ``check`` how well it was solved.
    """

    w: Tensor
    penalty: Penalty
    check: records.Row


def fits(
    problem: Problem, true: Tensor, given: records.Row, strengths: Sequence[float], tolerance: float
) -> dict[str, Fit]:
    """Return the estimates of every method for every candidate.

    Parameters
    ----------
    problem : Problem
        Data sets, leading shape (...).
    true : Tensor
        Who is tied to whom in w*, broadcast against (..., d, d): for the oracle only.
    given : dict
        The entries "copies" and "rhos" of the settings.
    strengths : sequence of float
        The candidates for lambda; those of ridge regression are their squares.
    tolerance : float
        The relative duality gap at which to stop.
    """
    d = problem.X.shape[-1]
    identity = torch.eye(d, dtype=problem.X.dtype)
    rows = Penalty(copies=given["copies"])
    # Zero weights are all equal: their ties say who shares a group.
    tied = {"none": identity.bool(), "tied copies": rows.ties(torch.zeros(d)), "oracle": true}
    found = {
        name: Fit(on_pattern(problem, ties).unsqueeze(-2), FLAT, {}) for name, ties in tied.items()
    }
    ridge = [
        torch.linalg.solve(problem.gram + lambd**2 * identity, problem.correlation)
        for lambd in strengths
    ]
    found["ridge"] = Fit(torch.stack(ridge, -2), FLAT, {})
    for name, penalty in {"l1": LASSO, "flat": FLAT, "rows": rows}.items():
        w, gap = path(problem, strengths, penalty, tolerance)
        found[name] = Fit(w, penalty, {"gap": gap.max().item()})
    flat = found["flat"].w
    refitted = [on_pattern(problem, FLAT.ties(w)) for w in flat.unbind(-2)]
    found["flat, refitted"] = Fit(torch.stack(refitted, -2), FLAT, {})
    relaxed = [
        settle(problem, lambd, FLAT, rho, w)
        for rho in given["rhos"]
        for lambd, w in zip(strengths, flat.unbind(-2), strict=True)
    ]
    ends = torch.stack([w for w, _ in relaxed], -2)
    settled = torch.stack([where for _, where in relaxed], -1)
    found["flat, relaxed"] = Fit(ends, FLAT, {"settled": settled.double().mean().item()})
    return found


def validation_error(
    problem: Problem, true: Tensor, given: records.Row, strengths: Sequence[float]
) -> dict[str, Tensor]:
    """Return the mean squared error of every candidate in cross-validation: (data sets, m) each."""
    folds = given["folds"]
    order = torch.arange(problem.n).view(folds, -1)
    parts = [problem.take(order[fold]) for fold in range(folds)]
    others = [problem.take(order[torch.arange(folds) != fold].flatten()) for fold in range(folds)]
    held_out, used = (
        Problem(torch.stack([p.X for p in part], 1), torch.stack([p.y for p in part], 1))
        for part in (parts, others)
    )
    errors = {}
    for name, fit in fits(used, true.unsqueeze(1), given, strengths, given["loose"]).items():
        residual = held_out.y.unsqueeze(-2) - fit.w @ held_out.X.mT
        errors[name] = residual.square().mean(-1).mean(1)
    return errors


def draw_truth(truth: records.Row, d: int, copies: int, generator: torch.Generator) -> Tensor:
    """Return w*, (d,): a few values in any order, or copies of a vector, or normal numbers."""
    if truth["layout"] == "distinct":
        return torch.randn(d, generator=generator, dtype=torch.float64)
    values = torch.tensor(truth["values"], dtype=torch.float64)
    if truth["layout"] == "rows":
        chosen = torch.randint(len(values), (d // copies,), generator=generator)
        return values[chosen].repeat(copies)
    levels = values.repeat_interleave(torch.tensor(truth["sizes"]))
    return levels[torch.randperm(d, generator=generator)]


def covariance(d: int, correlation: float) -> Tensor:
    """Return C, (d, d): correlation^|i - j|."""
    index = torch.arange(d, dtype=torch.float64)
    return correlation ** (index.unsqueeze(-1) - index).abs()


def draw(
    truth: records.Row, n: int, correlation: float, given: records.Row
) -> tuple[Problem, Tensor]:
    """Return one data set for each seed, and their coefficients (data sets, d)."""
    d, root = given["d"], torch.linalg.cholesky(covariance(given["d"], correlation))
    drawn = []
    for seed in range(given["seeds"]):
        generator = torch.Generator().manual_seed(seed)
        w = draw_truth(truth, d, given["copies"], generator)
        X = torch.randn(n, d, generator=generator, dtype=torch.float64) @ root.mT
        drawn.append((X, X @ w + torch.randn(n, generator=generator, dtype=torch.float64), w))
    X, y, w = map(torch.stack, zip(*drawn, strict=True))
    return Problem(X, y), w


def measure(fit: Fit, w: Tensor, cov: Tensor) -> dict[str, Tensor]:
    """Return what is measured of estimates of w (data sets, d): (data sets, m) each.

    ``risk`` is the excess risk, ``rand`` the adjusted Rand index, ``exact`` whether the partition
    is that of w within the method's groups, ``distinct`` the number of values, counted in each
    group, and ``slope`` that of the estimate over w: less than 1 if it shrank towards the mean.
    """
    error = fit.w - w.unsqueeze(-2)
    centred = (w - w.mean(-1, keepdim=True)).unsqueeze(-2)
    ties, true = fit.penalty.ties(fit.w), fit.penalty.ties(w).unsqueeze(-3)
    return {
        "risk": ((error @ cov) * error).sum(-1),
        "rand": rand_index(ties, true),
        "exact": (ties == true).all(-1).all(-1).double(),
        "distinct": (1 / ties.sum(-1).double()).sum(-1),
        "slope": (fit.w * centred).sum(-1) / centred.square().sum(-1),
    }


def compare(truth: str, n: int, correlation: float, given: records.Row) -> Iterator[records.Row]:
    """Yield a row for each method: lists over the data sets, and means over them by candidate.

    Candidates stand in the order of the strengths; for the relaxed method, for one rho after the
    other.
    """
    problem, w = draw(given["truths"][truth], n, correlation, given)
    true, cov = FLAT.ties(w), covariance(given["d"], correlation)
    strengths = [t / math.sqrt(n) for t in given["strengths"]]
    errors = validation_error(problem, true, given, strengths)
    for method, fit in fits(problem, true, given, strengths, given["tight"]).items():
        measured, chosen = measure(fit, w, cov), errors[method].argmin(-1)
        at_choice = {
            name: _rounded(values.gather(-1, chosen.unsqueeze(-1)).squeeze(-1))
            for name, values in measured.items()
        }
        by_candidate = {name: _rounded(values.mean(0)) for name, values in measured.items()}
        by_candidate["validation"] = _rounded(errors[method].mean(0))
        yield {
            "method": method,
            **at_choice,
            "least_risk": _rounded(measured["risk"].amin(-1)),
            "chosen": chosen.tolist(),
            "by_candidate": by_candidate,
            **fit.check,
        }


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{v:.5g}") for v in values.tolist()]


FULL: records.Row = {
    "d": 80,
    "copies": 8,
    "noise": 1.0,
    "seeds": 20,
    "folds": 4,
    "loose": 1e-6,
    "tight": 1e-10,
    # From next to nothing to all tied: octaves, and half octaves from 4 on, where patterns emerge.
    "strengths": [2.0**k for k in range(-6, 2)] + [2 ** (k / 2) for k in range(4, 17)],
    "rhos": [0.95, 1.0],
    "truths": {
        "scattered": {"layout": "scattered", "values": [0.0, 0.5, 2.0], "sizes": [40, 24, 16]},
        "rows": {"layout": "rows", "values": [-1.0, 0.0, 1.0]},
        "distinct": {"layout": "distinct"},
        "2 values": {"layout": "scattered", "values": [0, 1], "sizes": [40] * 2},
        "4 values": {"layout": "scattered", "values": list(range(4)), "sizes": [20] * 4},
        "20 values": {"layout": "scattered", "values": list(range(20)), "sizes": [4] * 20},
        "1 of 20": {"layout": "scattered", "values": [0, 1], "sizes": [76, 4]},
    },
    "jobs": [
        {"truth": truth, "n": n, "correlation": 0.0}
        for truth, sizes in {
            "scattered": (40, 60, 100, 160, 240, 400, 640),
            "rows": (40, 60, 100, 160, 240, 400, 640),
            "distinct": (60, 160, 400),
        }.items()
        for n in sizes
    ]
    + [
        {"truth": truth, "n": 240, "correlation": 0.0}
        for truth in ("2 values", "4 values", "20 values", "1 of 20")
    ]
    + [{"truth": "scattered", "n": 240, "correlation": r} for r in (0.5, 0.9)],
}
QUICK: records.Row = {
    **FULL,
    "d": 12,
    "copies": 3,
    "seeds": 3,
    "strengths": [0.5, 4.0],
    "rhos": [0.9],
    "truths": {
        "scattered": {"layout": "scattered", "values": [0.0, 0.5, 2.0], "sizes": [6, 4, 2]},
        "rows": {"layout": "rows", "values": [-1.0, 0.0, 1.0]},
        "distinct": {"layout": "distinct"},
    },
    "jobs": [
        {"truth": "scattered", "n": 8, "correlation": 0.0},
        {"truth": "scattered", "n": 40, "correlation": 0.5},
        {"truth": "rows", "n": 40, "correlation": 0.0},
        {"truth": "distinct", "n": 40, "correlation": 0.0},
    ],
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare everything."""
    description = (
        "Linear regression with shared coefficients: excess risk (units of the noise variance, 1), "
        "adjusted Rand index of the pattern, number of distinct values, and slope of the estimate "
        "over the truth, for least squares with and without penalties. Each strength is chosen by "
        "cross-validation on the examples that the method learns from. Data are drawn, nothing is "
        "downloaded."
    )
    options = records.parser(description).parse_args(arguments)
    settings = QUICK if options.quick else FULL
    command = "python -m experiments.linear_regression" + " --quick" * options.quick
    record = records.Record("linear_regression", settings, options.results, command=command)
    for job in tqdm(settings["jobs"], desc="linear regression", unit="setting"):
        if not record.has(**job):
            record.extend([{**job, **row} for row in compare(**job, given=settings)])
    print(record.finish())


if __name__ == "__main__":
    main()
