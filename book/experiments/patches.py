"""Does the picture survive outside the Gaussian model?  Filters on patches of handwritten digits.

``python -m experiments.patches``, run in ``book/``, writes ``results/patches.json``.  An input is
k digits, each shrunk to a patch of 10 x 10 pixels.  One filter u, the same at every patch, makes
the target from h_j = tanh <u, x_j>:

    y = (C h_1 + cos(gamma sum_j h_j)) / (C + 1).

The learner has tanh filters w_j, one for all patches or one for each, and a head: the known one,
or a learned one with a hidden layer.  It minimises half the mean squared error by stochastic
gradient descent on a fixed training set; the loss is that on other inputs, from other images, and
``first_patch_only`` is the least loss of a learner that knows h_1 and nothing of other patches.
The set-up is after Shalev-Shwartz, Shamir and Shammah (2017), arXiv 1706.00687, as it is known to
us from a public reproduction; the sizes are ours.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from experiments.data import load_digits
from experiments.frequency import log_spaced, significant
from experiments.frequency_models import descend, distinct
from experiments.records import Record, Row, parser

HEADS = ("known", "learned")
MODELS = ("shared", "local", "rows")


class Settings(NamedTuple):
    """Everything that fixes the run."""

    k: int = 5
    side: int = 10
    C: Sequence[float] = (0.1, 0.25, 0.5, 1.0, 2.0)
    gamma: Sequence[float] = (1.0, 2.0)
    contrast: float = 2.0  # the standard deviation of <u, x>
    seeds: Sequence[int] = (0, 1, 2)
    lambdas: Sequence[float] = (0.1,)
    train: int = 10_000
    test: int = 2000
    batch: int = 100
    eta: float = 0.1
    hidden: int = 50  # of the learned head
    steps: Sequence[int] = tuple(log_spaced(8000, 24))  # at which losses are recorded


QUICK = Settings(
    C=(1.0,),
    gamma=(1.0,),
    seeds=(0,),
    lambdas=(0.1,),
    train=300,
    test=100,
    steps=tuple(log_spaced(20, 4)),
)


def draw_inputs(s: Settings, images: Sequence[Tensor]) -> list[Tensor]:
    """Return inputs of k digits for training and for testing, (seeds, k, n, d) each.

    Pixels are centred, and scaled to a mean variance of 1 over the training images.
    """
    small = [adaptive_avg_pool2d(part[:, None], s.side).flatten(1) for part in images]
    mean = small[0].mean(0)
    deviation = (small[0] - mean).square().mean().sqrt()
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in s.seeds]
    inputs = []
    for pixels, n in zip(small, (s.train, s.test), strict=True):
        chosen = [torch.randint(len(pixels), (s.k, n), generator=g) for g in generators]
        inputs.append(((pixels - mean) / deviation)[torch.stack(chosen)])
    return inputs


def features(W: Tensor, x: Tensor) -> Tensor:
    """Return tanh <w_j, x_j>, (seeds, cases, n, k).

    Filters are (seeds, cases, k, d), inputs (seeds, k, n, d).
    """
    return torch.tanh(x @ W.permute(0, 2, 3, 1)).permute(0, 3, 2, 1)


def known_head(h: Tensor, C: Tensor, gamma: Tensor) -> Tensor:
    """Return the target's head on features (seeds, cases, n, k); C and gamma are (cases,)."""
    high = torch.cos(gamma[:, None] * h.sum(-1))
    return (C[:, None] * h[..., 0] + high) / (C[:, None] + 1)


def learned_head(h: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Return one hidden layer of ReLUs on the features, one network for every seed and case."""
    hidden, shift, out, offset = parts
    return (torch.relu(h @ hidden + shift) @ out + offset).squeeze(-1)


def unexplained(h: Tensor, C: Tensor, gamma: Tensor) -> Tensor:
    """Return half the mean variance of the target given h_1, (seeds, cases).

    It is the least loss of a learner that knows h_1 and nothing of the other patches.  These are
    independent of the first, so that the mean of cos(a + b) over them needs two means only.
    """
    first, others = gamma[:, None] * h[..., 0], gamma[:, None] * h[..., 1:].sum(-1)
    known = first.cos() * others.cos().mean(-1, True) - first.sin() * others.sin().mean(-1, True)
    high = torch.cos(first + others)
    return ((high - known) / (C[:, None] + 1)).square().mean(-1) / 2


def damping(h: Tensor, gamma: Tensor) -> Tensor:
    """Return the product over j > 1 of |E e^(i gamma h_j)|, (seeds, cases).

    It takes the place of e^(-(k-1) r^2 / 2): the target keeps this part of a wave in h_1 when it is
    averaged over the other patches.
    """
    phase = gamma[:, None, None] * h[..., 1:]
    return torch.hypot(phase.cos().mean(2), phase.sin().mean(2)).prod(-1)


def start(s: Settings, cases: int) -> tuple[Tensor, list[Tensor]]:
    """Return unscaled u (seeds, 1, 1, d), and initial filters and head (seeds, cases, ...).

    All cases of a seed start alike.  Weights are uniform within 1 / sqrt(fan-in).
    """
    d, H = s.side**2, s.hidden
    shapes = ((s.k, d), (s.k, H), (1, H), (H, 1), (1, 1))
    bounds = (math.sqrt(fan_in) for fan_in in (d, s.k, s.k, H, H))
    generators = [torch.Generator().manual_seed(seed) for seed in s.seeds]
    u = torch.stack([torch.randn(1, 1, d, generator=g) for g in generators])
    parts = [
        torch.stack([(2 * torch.rand(1, *shape, generator=g) - 1) / bound for g in generators])
        for shape, bound in zip(shapes, bounds, strict=True)
    ]
    return u, [part.repeat(1, cases, 1, 1) for part in parts]


def learn(s: Settings, inputs: Sequence[Tensor], head: str, model: str) -> list[Row]:
    """Return the runs of one model with one head: every seed, C, gamma and strength."""
    strengths = s.lambdas if model == "rows" else (0.0,)
    cases = [(c, gamma, lambd) for c in s.C for gamma in s.gamma for lambd in strengths]
    C, gamma, lambd = torch.tensor(cases).T
    lambd = lambd.repeat(len(s.seeds))
    u, (W, *parts) = start(s, len(cases))
    u = u * s.contrast / (inputs[0] @ u.mT).std((1, 2, 3), keepdim=True)
    if model == "shared":
        W = W[:, :, :1].repeat(1, 1, s.k, 1)

    def hidden_truth(x: Tensor) -> Tensor:
        return features(u.expand(-1, -1, s.k, -1), x).expand(-1, len(cases), -1, -1)

    def loss(W: Tensor, parts: Sequence[Tensor], x: Tensor) -> Tensor:
        h = features(W, x)
        output = known_head(h, C, gamma) if head == "known" else learned_head(h, parts)
        return (output - known_head(hidden_truth(x), C, gamma)).square().mean(-1) / 2

    generator = torch.Generator().manual_seed(0)
    curve = [loss(W, parts, inputs[1])]
    for step in range(1, s.steps[-1] + 1):
        chosen = torch.randint(s.train, (len(s.seeds), s.batch), generator=generator)
        x = torch.stack(
            [part.index_select(1, rows) for part, rows in zip(inputs[0], chosen, strict=True)]
        )
        leaves = [part.requires_grad_() for part in ((W, *parts) if head == "learned" else (W,))]
        slope, *slopes = torch.autograd.grad(loss(W, parts, x).sum(), leaves)
        W = descend(model, W.detach().flatten(0, 1), slope.flatten(0, 1), s.eta, lambd).view_as(W)
        if head == "learned":
            parts = [p.detach() - s.eta * g for p, g in zip(parts, slopes, strict=True)]
        if step in s.steps:
            curve.append(loss(W, parts, inputs[1]))

    truth = hidden_truth(inputs[1])
    floor, kept = unexplained(truth, C, gamma), damping(truth, gamma)
    within, _ = distinct(W.flatten(0, 1))
    keys = [(seed, *case) for seed in s.seeds for case in cases]
    return [
        {
            "head": head,
            "model": model,
            "C": c,
            "gamma": g,
            "lambd": strength or None,
            "seed": seed,
            "loss": [significant(value) for value in losses],
            "final": significant(losses[-1]),
            "first_patch_only": significant(least),
            "damping": significant(part),
            "distinct": different,
        }
        for (seed, c, g, strength), losses, least, part, different in zip(
            keys,
            torch.stack(curve).flatten(1).T.tolist(),
            floor.flatten().tolist(),
            kept.flatten().tolist(),
            within.tolist(),
            strict=True,
        )
    ]


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run what the command line asks for and return the path of the record."""
    options: argparse.Namespace = parser(__doc__.splitlines()[0]).parse_args(arguments)
    s = QUICK if options.quick else Settings()
    digits = load_digits()
    inputs = draw_inputs(s, (digits.train_images, digits.test_images))
    command = "python -m experiments.patches" + (" --quick" if options.quick else "")
    settings = {"data": digits.name, **s._asdict()}
    record = Record("patches", settings, options.results, command=command)
    blocks = tqdm([(head, model) for head in HEADS for model in MODELS], unit="block")
    for head, model in blocks:
        blocks.set_postfix_str(f"{head} head, {model}")
        if not record.has(head=head, model=model):
            record.extend(learn(s, inputs, head, model))
    return record.finish()


if __name__ == "__main__":
    main()
