"""Options and Hypothesis profiles for the whole suite."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    deadline=None,  # speed is measured by benchmarks, never by tests
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# For a mutation tester, which runs the suite once per mutant and needs the same answer each time.
settings.register_profile(
    "mutation",
    settings.get_profile("default"),
    max_examples=25,
    derandomize=True,
    database=None,
)
# On a GPU a small tensor costs as much as a large one, and the minutes are few.
settings.register_profile("gpu", settings.get_profile("default"), max_examples=20)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="the torch device to test on (cpu, cuda)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs --device cuda")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--device") == "cpu":
        reason = "needs a GPU: run `make gpu` on a machine that has one"
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))
