"""What importing wsr does, and does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import wsr


def test_the_public_names() -> None:
    assert sorted(wsr.__all__) == [
        "ALGORITHMS",
        "Sharing",
        "Summary",
        "Trajectory",
        "duality_gap",
        "penalty",
        "prox",
        "proximal",
        "simulate",
        "summary",
        "tie",
        "untie",
    ]
    assert all(hasattr(wsr, name) for name in wsr.__all__)


def test_importing_is_light() -> None:
    heavy = ("cvxpy", "matplotlib", "jupyter", "IPython", "triton", "sklearn", "scipy", "numba")
    program = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import wsr\n"
        f"loaded = [m for m in {heavy!r} if m in set(sys.modules) - before]\n"
        "sys.exit(f'import wsr loads {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_a_read_only_installation_without_a_cache(tmp_path: Path) -> None:
    package = tmp_path / "wsr"
    shutil.copytree(
        Path(wsr.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in ("collisions", "kernels"):
        (package / folder / "__pycache__").write_text("in the way of a folder")
    program = """
import torch, wsr
w = torch.tensor([0.0, 1.0])
pooled = wsr.prox(w, 1.0, algorithm="pool_adjacent_violators")
print(wsr.__file__, wsr.prox(w, 1.0).tolist(), pooled.tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HOME": os.devnull, "PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{package / '__init__.py'} [0.5, 0.5] [0.5, 0.5]"
