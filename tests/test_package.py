"""What importing wsr does, and does not."""

import subprocess
import sys

import wsr


def test_the_public_names() -> None:
    assert sorted(wsr.__all__) == [
        "ALGORITHMS",
        "Sharing",
        "Trajectory",
        "duality_gap",
        "penalty",
        "prox",
        "proximal",
        "simulate",
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
