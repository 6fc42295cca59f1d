"""Options and Hypothesis profiles for the whole suite; what several tests of experiments need."""

import functools
import http.server
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

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


@pytest.fixture
def experiment(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[str], ModuleType]:
    """Return a function that imports a module of ``book/experiments`` by its name."""
    monkeypatch.syspath_prepend(request.config.rootpath / "book")
    return lambda name: importlib.import_module(f"experiments.{name}")


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let a loader find no data on this machine, and no proxy to the network."""
    monkeypatch.delenv("WSR_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[[Path], tuple[str, list[str]]]]:
    """Return a function that serves a folder by HTTP until the test ends.

    It returns the address, and a list that grows by the path of each request.
    """
    with ExitStack() as servers:
        yield lambda folder: servers.enter_context(_served(folder))


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    requested: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            requested.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", requested
        finally:
            server.shutdown()
            thread.join()
