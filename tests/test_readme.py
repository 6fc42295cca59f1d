"""The code of the README does what the README says."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]


def printed(code: str, capsys: pytest.CaptureFixture[str]) -> str:
    exec(code, {})
    return capsys.readouterr().out.strip()


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"It prints `{printed(CODE, capsys)}`" in README


@pytest.mark.parametrize("seed", range(1, 6))
def test_other_seeds_leave_two_to_six(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = CODE.replace("manual_seed(0)", f"manual_seed({seed})")
    assert 2 <= int(printed(code, capsys).split()[0]) <= 6


def test_without_the_prox_all_differ(capsys: pytest.CaptureFixture[str]) -> None:
    code = CODE.replace("wsr.proximal(optimizer)", "")
    assert printed(code, capsys) == "64 distinct weights of 64"
