"""Why does sharing help?  Gradient descent with and without it, on a target with two frequencies.

``python -m experiments.frequency``, run in ``book/``, writes ``results/frequency.json``.  The
target and the learners are those of :mod:`experiments.frequency_models`.  Panels of the record:

population  gradient descent on the expected loss, for every number of patches k
sgd         the same with fresh samples at every step, and a fully connected network
gradient    the gradient of a filter that nothing ties, where gradient descent starts
ablation    the regularizer is switched off on the way
knob        the frequency gamma of the cosine, from low to high
start       the size of the initial filters, from small to larger than u
statistical linear regression with few samples: an estimation gain, not an optimisation gain
checks      closed forms against Monte Carlo and against automatic differentiation
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.frequency_models import (
    GROUPS,
    THRESHOLD,
    Target,
    cosine_gradient,
    distinct,
    everywhere,
    population_gradient,
    population_loss,
    predict,
    race,
    sampled_gradient,
    share,
    square,
)
from experiments.records import Record, Row, parser

MODELS = ("shared", "local", "rows", "flat")


class Settings(NamedTuple):
    """Everything that fixes the run."""

    k: Sequence[int] = (2, 4, 6, 8, 10, 14)
    d: int = 10
    r: float = 1.5  # the norm of u
    C: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 2.0)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    spread: float = 0.05  # the standard deviation of an initial weight
    eta: float = 0.05
    steps: Sequence[int] = ()  # at which losses are recorded, from 0 to the last
    batch: int = 256
    lambdas_rows: Sequence[float] = (0.3, 1.0, 3.0)
    lambdas_flat: Sequence[float] = (0.03, 0.1, 0.3)
    fc_hidden: int = 256
    fc_eta: float = 0.001
    fc_C: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 2.0)
    fc_steps: Sequence[int] = ()
    fc_test: int = 10_000
    gradient_draws: int = 2000
    gradient_r: Sequence[float] = (1.0, 1.5, 2.0)
    variations_k: int = 10  # of ablation, knob and start
    variations_lambdas: Sequence[float] = (0.1, 1.0)  # flat, rows; of knob and start
    ablation_steps: Sequence[int] = ()
    knob_steps: Sequence[int] = ()  # and of start
    knob_gamma: Sequence[float] = (0.25, 0.35, 0.5, 0.6, 0.7, 0.85, 1.0, 1.4, 2.0)
    start_spread: Sequence[float] = (0.01, 0.05, 0.1, 0.3, 1.0)
    statistical_n: Sequence[int] = (40, 60, 100, 120, 160, 240)
    statistical_k: int = 8
    statistical_seeds: int = 20
    statistical_lambdas: Sequence[float] = ()
    statistical_iterations: int = 1000
    check_samples: int = 1_000_000


def settings(quick: bool) -> Settings:
    """Return the settings of the full or the quick run."""
    if quick:
        return Settings(
            k=(2, 4),
            C=(0.0, 1.0),
            seeds=(0, 1),
            steps=log_spaced(200, 12),
            lambdas_rows=(1.0,),
            lambdas_flat=(0.1,),
            fc_hidden=16,
            fc_C=(1.0,),
            fc_steps=log_spaced(20, 4),
            fc_test=500,
            gradient_draws=100,
            variations_k=4,
            ablation_steps=log_spaced(200, 12),
            knob_steps=log_spaced(200, 12),
            knob_gamma=(0.5, 1.0),
            start_spread=(0.05, 0.3),
            statistical_n=(40, 120),
            statistical_seeds=2,
            statistical_lambdas=(0.1, 1.0),
            statistical_iterations=300,
            check_samples=20_000,
        )
    return Settings(
        steps=log_spaced(20_000, 48),
        fc_steps=log_spaced(3000, 24),
        ablation_steps=log_spaced(4000, 32),
        knob_steps=log_spaced(8000, 32),
        statistical_lambdas=[round(10 ** (i / 4), 4) for i in range(-9, 5)],
    )


def log_spaced(last: int, count: int) -> list[int]:
    """Return 0 and about count whole steps up to the last, evenly spaced in the logarithm."""
    return sorted({0, *(round(last ** (i / (count - 1))) for i in range(count))})


class Batch(NamedTuple):
    """Runs at their start: every seed, and within it every (C, gamma, lambd)."""

    W: Tensor
    target: Target
    lambd: Tensor
    keys: list[Row]


def batch(
    s: Settings,
    model: str,
    k: int,
    lambdas: Sequence[float],
    C: Sequence[float],
    gammas: Sequence[float] = (1.0,),
) -> Batch:
    """Return the runs at their start: u of norm r and small filters, both fixed by the seed."""
    cases = [(c, gamma, lambd) for c in C for gamma in gammas for lambd in lambdas]
    truths, starts = zip(*(draw(s, k, seed) for seed in s.seeds), strict=True)
    W = torch.stack(starts).repeat_interleave(len(cases), 0)
    if model == "shared":
        W = everywhere(W[:, 0], k)
    columns = torch.tensor(cases, dtype=torch.float64).repeat(len(s.seeds), 1)
    target = Target(torch.stack(truths).repeat_interleave(len(cases), 0), *columns.T[:2])
    keys: list[Row] = [
        {"k": k, "C": c, "gamma": gamma, "lambd": lambd or None, "seed": seed}
        for seed in s.seeds
        for c, gamma, lambd in cases
    ]
    return Batch(W, target, columns[:, 2], keys)


def draw(s: Settings, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return u (d,) and initial filters (k, d); u does not depend on k."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(s.d, generator=generator, dtype=torch.float64)
    W = torch.randn(k, s.d, generator=generator, dtype=torch.float64)
    return s.r * u / u.norm(), s.spread * W


def strengths(s: Settings, model: str) -> Sequence[float]:
    return {"rows": s.lambdas_rows, "flat": s.lambdas_flat}.get(model, (0.0,))


def exactly(b: Batch) -> Callable[[Tensor], Tensor]:
    """Return the gradient of the expected loss."""
    return partial(population_gradient, target=b.target)


def fresh(s: Settings, b: Batch) -> Callable[[Tensor], Tensor]:
    """Return the gradient on samples that are drawn at every call; float32, equal for all models.

    All runs of a seed see the same samples.
    """
    k = b.W.shape[1]
    generator = torch.Generator().manual_seed(1000 + k)
    target = Target(*(part.float() for part in b.target))

    def gradient(W: Tensor) -> Tensor:
        x = torch.randn(len(s.seeds), s.batch, k, s.d, generator=generator)
        return sampled_gradient(W, target, x)

    return gradient


def significant(value: float) -> float:
    """Return the value with four significant digits, which is more than a picture shows."""
    return float(f"{value:.4g}")


def report(model: str, key: Row, loss: Tensor, reached: Tensor) -> Row:
    """Return what every run says of itself: its loss (watched,), and when it passed 0.05."""
    curve = [significant(value) for value in loss.tolist()]
    steps = int(reached) if reached >= 0 else None
    return {
        "model": model,
        **key,
        "loss": curve,
        "final": curve[-1],
        f"steps_to_{THRESHOLD}": steps,
    }


def descent(s: Settings, panel: str, model: str, k: int) -> list[Row]:
    """Return all runs of one model, by the exact or by sampled gradients."""
    b = batch(s, model, k, strengths(s, model), s.C)
    sampled = panel == "sgd"
    gradient = fresh(s, b) if sampled else exactly(b)
    first = b.W.float() if sampled else b.W
    curves = race(model, first, b.target, b.lambd, gradient, s.steps, s.eta)
    return [
        {
            "panel": panel,
            **report(model, key, loss, reached),
            "distinct": within,
            "values": over_all,
        }
        for key, loss, reached, within, over_all in zip(
            b.keys,
            curves.loss.T,
            curves.reached,
            *(count.tolist() for count in distinct(curves.W)),
            strict=True,
        )
    ]


def fully_connected(s: Settings, k: int) -> list[Row]:
    """Return runs of a network with one hidden layer, ReLU and Adam, on fresh samples.

    Its loss has no closed form: it is measured on samples of its own, at the recorded steps only.
    """
    b = batch(s, "fc", k, (0.0,), s.fc_C)
    target = Target(*(part.float() for part in b.target))
    U = everywhere(target.u, k)
    generator = torch.Generator().manual_seed(2000 + k)
    seeds, cases, inputs, H = len(s.seeds), len(s.fc_C), k * s.d, s.fc_hidden

    def uniform(fan_in: int, *shape: int) -> Tensor:
        values = (2 * torch.rand(seeds, *shape, generator=generator) - 1) / math.sqrt(fan_in)
        return values.requires_grad_()

    hidden, shift = uniform(inputs, inputs, cases * H), uniform(inputs, 1, cases * H)
    head, offset = uniform(H, 1, cases, H), uniform(H, 1, cases)
    optimizer = torch.optim.Adam([hidden, shift, head, offset], lr=s.fc_eta)

    def losses(x: Tensor) -> Tensor:
        active = torch.relu(x.flatten(2) @ hidden + shift)
        output = (active.reshape(seeds, -1, cases, H) * head).sum(-1) + offset
        return (output.mT.flatten(0, 1) - predict(U, target, x)).square().mean(1) / 2

    test = torch.randn(seeds, s.fc_test, k, s.d, generator=generator)
    curve = []
    for step in range(s.fc_steps[-1] + 1):
        if step in s.fc_steps:
            with torch.no_grad():
                curve.append(losses(test))
        optimizer.zero_grad()
        loss = losses(torch.randn(seeds, s.batch, k, s.d, generator=generator)).sum()
        torch.autograd.backward(loss)
        optimizer.step()
    passed = torch.stack(curve) < THRESHOLD
    first = torch.tensor(s.fc_steps)[passed.int().argmax(0)]
    reached = torch.where(passed.any(0), first, -1)
    return [
        {"panel": "sgd", **report("fc", key, loss, when), "distinct": None, "values": None}
        for key, loss, when in zip(b.keys, torch.stack(curve).T, reached, strict=True)
    ]


def plateau(s: Settings, k: int, r: float, filters: str) -> list[Row]:
    """Return how large the gradient of w_2 is, over random draws of the other filters.

    filters "small": all are; "learned": but w_1 = u, as when the linear part is learned.
    ``norm`` is that of the whole gradient, ``overlap`` that of the part that knows the target: at
    w_1 = u and w_2 = ... = w_k = 0 it is (r / 2) e^(-(k-1) r^2 / 2) (1 - e^(-2 r^2)).
    """
    generator = torch.Generator().manual_seed(k)
    shape = (s.gradient_draws, k, s.d)
    W = s.spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    u = torch.randn(s.gradient_draws, s.d, generator=generator, dtype=torch.float64)
    u = r * u / u.norm(dim=1, keepdim=True)
    if filters == "learned":
        W[:, 0] = u
    one = torch.ones(s.gradient_draws, dtype=torch.float64)
    own, overlap = cosine_gradient(W, Target(u, one, one))
    row: Row = {"panel": "gradient", "k": k, "r": r, "start": filters}
    for name, part in (("norm", own + overlap), ("overlap", overlap)):
        norms = part[:, 1].norm(dim=1)
        for suffix, q in (("", 0.5), ("_q25", 0.25), ("_q75", 0.75)):
            row[name + suffix] = significant(float(norms.quantile(q)))
    row["predicted"] = math.exp(-(k - 1) * r**2 / 2)
    row["predicted_overlap"] = r / 2 * row["predicted"] * -math.expm1(-2 * r**2)
    return [row]


SWITCHES = ("tied", "half", "learned")


def ablation(s: Settings, panel: str, switch: str) -> list[Row]:
    """Return runs of rows whose regularizer is switched off for good, and never on again.

    tied : as soon as all copies of every coordinate are equal; half : as soon as the loss is below
    1/4; learned : as soon as it is below the threshold.  ``worst_after`` is the largest loss from
    then on.
    """
    b = batch(s, "rows", s.variations_k, s.lambdas_rows, [c for c in s.C if c > 0])
    off = torch.full((len(b.W),), -1)
    worst = torch.zeros(len(b.W), dtype=torch.float64)

    def strength(step: int, W: Tensor, loss: Tensor) -> Tensor:
        within, _ = distinct(W)
        due = {"tied": within == s.d, "half": loss < 0.25, "learned": loss < THRESHOLD}[switch]
        off[(off < 0) & due] = step
        worst[:] = torch.where(off >= 0, torch.maximum(worst, loss), worst)
        return torch.where(off >= 0, 0.0, b.lambd)

    sampled = panel == "sgd"
    gradient = fresh(s, b) if sampled else exactly(b)
    first = b.W.float() if sampled else b.W
    curves = race("rows", first, b.target, b.lambd, gradient, s.ablation_steps, s.eta, strength)
    within, _ = distinct(curves.W)
    return [
        {
            "panel": "ablation",
            "gradients": panel,
            "off": switch,
            **report("rows", key, loss, reached),
            "off_step": step if step >= 0 else None,
            "worst_after": significant(highest) if step >= 0 else None,
            "distinct": different,
        }
        for key, loss, reached, step, highest, different in zip(
            b.keys,
            curves.loss.T,
            curves.reached,
            off.tolist(),
            worst.tolist(),
            within.tolist(),
            strict=True,
        )
    ]


def knob(s: Settings, model: str) -> list[Row]:
    """Return runs by exact gradients for every frequency gamma of the cosine, at C = 1."""
    b = variations(s, model, s.knob_gamma)
    return [{"panel": "knob", **row} for row in finish(s, model, b)]


def start(s: Settings, model: str) -> list[Row]:
    """Return runs by exact gradients from initial weights of every standard deviation, at C = 1."""
    b = variations(s, model, [1.0] * len(s.start_spread))
    spreads = torch.tensor(s.start_spread, dtype=b.W.dtype).repeat(len(s.seeds))
    rows = finish(s, model, b._replace(W=spreads[:, None, None] / s.spread * b.W))
    return [
        {"panel": "start", "spread": spread, **row}
        for spread, row in zip(spreads.tolist(), rows, strict=True)
    ]


def variations(s: Settings, model: str, gammas: Sequence[float]) -> Batch:
    """Return runs of one model at C = 1, with one strength."""
    lambdas = dict(zip(("flat", "rows"), s.variations_lambdas, strict=True))
    return batch(s, model, s.variations_k, [lambdas.get(model, 0.0)], [1.0], gammas)


def finish(s: Settings, model: str, b: Batch) -> list[Row]:
    """Return what gradient descent by exact gradients makes of a batch."""
    curves = race(model, b.W, b.target, b.lambd, exactly(b), s.knob_steps, s.eta)
    return [
        report(model, key, loss, reached)
        for key, loss, reached in zip(b.keys, curves.loss.T, curves.reached, strict=True)
    ]


def statistical(s: Settings, n: int) -> list[Row]:
    """Return the excess risk |W - U|^2 of estimators of U from n noisy linear measurements.

    y = sum_j <u, x_j> + N(0, 1) with u in {-1, 0, 1}^d.  none : least squares, of least norm where
    it is not unique; shared : least squares of one filter; rows, flat : least squares with the
    penalty, its strength chosen by the true excess risk (an oracle).  ``expected`` is the mean
    over data sets, where it is known.
    """
    k, d = s.statistical_k, s.d
    x, y, U = measurements(s, n)
    results: list[Row] = []

    def add(model: str, W: Tensor, **more: list[float | None]) -> None:
        for seed, risk in enumerate(square(W - U).tolist()):
            extra = {name: values[seed] for name, values in more.items()}
            row: Row = {"panel": "statistical", "n": n, "model": model, "seed": seed}
            results.append({**row, "excess_risk": significant(risk), **extra})

    free = torch.linalg.pinv(x.flatten(2)) @ y
    risk = k * d / (n - k * d - 1) if n > k * d + 1 else None
    nothing: list[float | None] = [None] * len(y)
    add("none", free.reshape(-1, k, d), expected=[risk] * len(y), lambd=nothing)
    one = torch.linalg.pinv(x.sum(2)) @ y
    add("shared", everywhere(one[..., 0], k), expected=[d / (n - d - 1)] * len(y), lambd=nothing)
    for model in GROUPS:
        W, change = penalized(s, model, x, y)
        risks = (W - U[:, None]).square().sum((2, 3))
        best = risks.argmin(1)
        seeds = torch.arange(len(best))
        lambdas: list[float | None] = [s.statistical_lambdas[int(i)] for i in best]
        changes: list[float | None] = [significant(c) for c in change[seeds, best].tolist()]
        add(model, W[seeds, best], expected=nothing, lambd=lambdas, last_change=changes)
    return results


def measurements(s: Settings, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs (seeds, n, k, d), answers (seeds, n, 1) and the truth (seeds, k, d)."""
    generator = torch.Generator().manual_seed(3000 + n)
    seeds, k, d = s.statistical_seeds, s.statistical_k, s.d
    u = torch.randint(-1, 2, (seeds, d), generator=generator).double()
    x = torch.randn(seeds, n, k, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(seeds, n, 1, generator=generator, dtype=torch.float64)
    return x, x.sum(2) @ u[..., None] + noise, everywhere(u, k)


def penalized(s: Settings, model: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimisers for all strengths (seeds, lambdas, k, d), and their last change.

    The objective is |x W - y|^2 / (2 n) + lambd R(W), minimised by accelerated proximal gradient
    descent (Beck and Teboulle 2009).
    """
    seeds, n, k, d = x.shape
    flat = x.flatten(2)
    step = 1 / torch.linalg.matrix_norm(flat, 2) ** 2 * n
    threshold = (step[:, None] * torch.tensor(s.statistical_lambdas, dtype=step.dtype)).flatten()
    gram, seen = flat.mT @ flat / n, (flat.mT @ y / n).mT
    W = torch.zeros(len(threshold), k, d, dtype=step.dtype)
    ahead, momentum, change = W, 1.0, W
    for _ in range(s.statistical_iterations):
        point = ahead.reshape(seeds, -1, k * d)
        gradient = point @ gram - seen
        descended = (point - step[:, None, None] * gradient).reshape(W.shape)
        change = share(descended, threshold, GROUPS[model]) - W
        W = W + change
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = W + (momentum - 1) / following * change
        momentum = following
    return W.reshape(seeds, -1, k, d), square(change).sqrt().reshape(seeds, -1)


def checks(s: Settings, k: int) -> list[Row]:
    """Return how far the closed forms are from Monte Carlo and from automatic differentiation.

    The filters lie between 0 and U, near U, near -U and anywhere, gamma below and above 1.
    ``deviation`` is the largest over them; for Monte Carlo ``in_standard_errors`` is too.
    """
    generator = torch.Generator().manual_seed(4000 + k)
    u, noise = (
        torch.stack(drawn) for drawn in zip(*(draw(s, k, i) for i in range(8)), strict=True)
    )
    along = torch.tensor([0.0, 0.3, 0.7, 0.95, 1.0, -0.9, 0.5, 0.0])[:, None, None]
    width = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 4.0, 10.0])[:, None, None]
    W = along * everywhere(u, k) + width * noise
    C = torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    gamma = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.4], dtype=torch.float64)
    target = Target(u, C, gamma)

    total, squares, portion = torch.zeros(8).double(), torch.zeros(8).double(), 20_000
    for _ in range(s.check_samples // portion):
        x = torch.randn(1, portion, k, s.d, generator=generator, dtype=torch.float64)
        loss = (predict(W, target, x) - predict(everywhere(u, k), target, x)) ** 2 / 2
        total += loss.sum(1)
        squares += (loss**2).sum(1)
    mean = total / s.check_samples
    error = ((squares / s.check_samples - mean**2) / s.check_samples).sqrt()
    off = (mean - population_loss(W, target)).abs()
    uncertain = error > 0  # W = U has no error at all

    leaf = W.clone().requires_grad_()
    (automatic,) = torch.autograd.grad(population_loss(leaf, target).sum(), leaf)
    apart = (automatic - population_gradient(W, target)).abs().max()
    sampled: Row = {
        "what": "loss against Monte Carlo",
        "deviation": float(off.max()),
        "in_standard_errors": float((off[uncertain] / error[uncertain]).max()),
        "samples": s.check_samples,
    }
    differentiated: Row = {"what": "gradient against autograd", "deviation": float(apart)}
    place: Row = {"panel": "checks", "k": k}
    return [place | sampled, place | differentiated]


Block = tuple[Row, Callable[[], list[Row]]]


def plan(s: Settings) -> Iterator[Block]:
    """Yield the parts of the run: entries that only its rows have, and what computes them."""
    key: Row
    for k in s.k:
        yield {"panel": "checks", "k": k}, partial(checks, s, k)
    for panel in ("population", "sgd"):
        for k in s.k:
            for model in MODELS:
                key = {"panel": panel, "model": model, "k": k}
                yield key, partial(descent, s, panel, model, k)
    for k in s.k:
        for r in s.gradient_r:
            for filters in ("small", "learned"):
                key = {"panel": "gradient", "k": k, "r": r, "start": filters}
                yield key, partial(plateau, s, k, r, filters)
    for panel in ("population", "sgd"):
        for switch in SWITCHES:
            key = {"panel": "ablation", "gradients": panel, "off": switch}
            yield key, partial(ablation, s, panel, switch)
    for model in MODELS:
        yield {"panel": "knob", "model": model}, partial(knob, s, model)
        yield {"panel": "start", "model": model}, partial(start, s, model)
    for n in s.statistical_n:
        yield {"panel": "statistical", "n": n}, partial(statistical, s, n)
    for k in s.k:
        yield {"panel": "sgd", "model": "fc", "k": k}, partial(fully_connected, s, k)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run what the command line asks for and return the path of the record."""
    options: argparse.Namespace = parser(__doc__.splitlines()[0]).parse_args(arguments)
    s = settings(options.quick)
    command = "python -m experiments.frequency" + (" --quick" if options.quick else "")
    record = Record("frequency", s._asdict(), options.results, command=command)
    blocks = tqdm(list(plan(s)), unit="block")
    for key, compute in blocks:
        blocks.set_postfix_str(" ".join(str(value) for value in key.values()))
        if not record.has(**key):
            record.extend(compute())
    return record.finish()


if __name__ == "__main__":
    main()
