"""The timings: is only what is right timed, and do all methods solve the same problem?"""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

import wsr

BOOK = Path(__file__).resolve().parents[1] / "book"


@pytest.fixture
def timings(monkeypatch):
    """Return the module, with digits that need no network; afterwards, torch's threads are back."""
    monkeypatch.syspath_prepend(BOOK)
    module = importlib.import_module("experiments.timings")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(300, 4, 4, generator=generator)
    labels = torch.randint(10, (300,), generator=generator)
    digits = importlib.import_module("experiments.data").Digits(
        "noise", images, labels, images, labels
    )
    monkeypatch.setattr(module, "load_digits", lambda: digits)
    module.trained.cache_clear()
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    module.trained.cache_clear()


def gaussian(d, dtype=torch.float32, seed=0):
    return torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def run(timings, folder, *arguments):
    timings.main(["--quick", "--results", str(folder), *arguments])
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_the_quick_run_makes_a_whole_record(timings, tmp_path, capsys):
    record = run(timings, tmp_path)
    assert "timings.json" in capsys.readouterr().out
    rows = record["rows"]
    assert {row["panel"] for row in rows} == {"weights", "single", "batch", "choice", "training"}
    sizes = set(timings.QUICK["sizes"])
    for dtype in ("float32", "float64"):
        for panel in ("weights", "single"):
            found = [row for row in rows if row["panel"] == panel and row.get("dtype") == dtype]
            assert {(row["d"], row["input"]) for row in found} == {
                (d, name) for d in sizes for name in timings.INPUTS
            }
    assert {row["method"] for row in rows if row["panel"] == "single"} == set(
        record["settings"]["methods"]
    )
    assert {"auto", *wsr.ALGORITHMS, "scipy", "scikit-learn"} <= set(record["settings"]["methods"])
    for row in rows:
        if row["panel"] == "weights":
            assert row["certified_ulp"] < 1
            assert 1 <= row["clusters"] <= row["distinct"] <= row["d"]
        elif row.get("method") in ("auto", *wsr.ALGORITHMS):
            assert row["status"] in ("timed", "left out")
            assert row.get("error_ulp", 0) <= 1
        if row.get("status") == "timed":
            low, median, high = row["ratio"]
            assert 0 < low <= median <= high
            assert row["rounds"] >= timings.SHORTEST_SPREAD
            if row["panel"] != "training":  # which has no one result
                assert row["error_ulp"] <= timings.TOLERANCE


def test_an_interrupted_run_repeats_nothing(timings, tmp_path, monkeypatch):
    races = []

    def race(call, unit, budget, device):
        races.append(call)
        if len(races) == 20:
            raise KeyboardInterrupt
        return {"seconds": [1.0, 1.0, 1.0], "ratio": [1.0, 1.0, 1.0], "rounds": 1}

    monkeypatch.setattr(timings, "race", race)
    with pytest.raises(KeyboardInterrupt):
        run(timings, tmp_path)
    (partial,) = tmp_path.iterdir()
    before = json.loads(partial.read_text())["rows"]
    assert sum(row.get("status") == "timed" for row in before) == 19
    rows = run(timings, tmp_path)["rows"]
    assert rows[: len(before)] == before
    keys = [
        tuple(map(row.get, ("panel", "dtype", "d", "input", "method", "threads", "lambd", "way")))
        for row in rows
    ]
    assert len(keys) == len(set(keys))
    assert len(races) == 1 + sum(row.get("status") == "timed" for row in rows)


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_others_solve_the_same_problem(timings, index, dtype):
    method = timings.THEIRS[index]
    if not timings.installed(method.package):
        pytest.skip(f"{method.package} is not installed")
    for seed, lambd in enumerate((1e-3, 0.3, 1.0, 3.0)):
        w = gaussian(501, dtype, seed)
        before = w.clone()
        u = method.solve(w, lambd)
        assert torch.equal(w, before)
        assert (u.dtype, u.shape) == (w.dtype, w.shape)
        expected = wsr.prox(w.double(), lambd).to(dtype)
        scale = (w.abs().max() + lambd).item()
        # torchsort sums in the dtype of the weights.
        assert (u - expected).abs().max() <= 30 * torch.finfo(dtype).eps * scale
        matrix = w[:500].view(5, 100)
        rows = timings.by_row(method)(matrix, lambd)
        alone = torch.stack([method.solve(row.clone(), lambd) for row in matrix])
        torch.testing.assert_close(rows, alone)


@pytest.mark.parametrize("algorithm", ["auto", *wsr.ALGORITHMS])
def test_ours_are_called_by_name(timings, algorithm, monkeypatch):
    (method,) = [m for m in timings.OURS if m.name == algorithm]
    asked = []
    prox = wsr.prox

    def spy(*arguments, **options):
        asked.append(options["algorithm"])
        return prox(*arguments, **options)

    monkeypatch.setattr(timings.wsr, "prox", spy)
    w = gaussian(60).view(3, 20)
    torch.testing.assert_close(timings.by_row(method)(w, 0.5), prox(w, 0.5, dim=1))
    assert asked == [algorithm]


def judged(timings, solve, **changes):
    """Return the verdict on a method, on Gaussian weights."""
    w = gaussian(300)
    problem = timings.Problem.solve(w, 0.3)
    settings = timings.Settings(budget=0.0)._replace(**changes)
    return timings.judge_and_race(
        lambda: solve(w, 0.3), w.sort, lambda u: timings.error(problem, u), settings
    )


def test_a_right_result_is_timed(timings):
    row = judged(timings, wsr.prox)
    assert row["status"] == "timed"
    assert row["error_ulp"] <= 1
    assert row["seconds"][0] > 0


@pytest.mark.parametrize("ulp", [1, 3, 5, 100])
def test_a_wrong_result_is_not_timed(timings, ulp):
    def solve(w, lambd):
        u = wsr.prox(w, lambd)
        u[7] += ulp * torch.finfo(w.dtype).eps * w.abs().max()
        return u

    row = judged(timings, solve)
    assert row["error_ulp"] == pytest.approx(ulp, abs=1)
    assert row["status"] == ("timed" if ulp <= 3 else "wrong")
    assert ("seconds" in row) == (ulp <= 3)


def test_what_is_not_finite_is_wrong(timings):
    row = judged(timings, lambda w, lambd: w * math.nan)
    assert row == {"error_ulp": None, "status": "wrong"}


def test_one_wrong_row_of_a_batch_is_found(timings):
    w = gaussian(160).view(8, 20)
    u = wsr.prox(w, 0.3, dim=1)
    assert timings.error_of_rows(w, u, 0.3) <= 1
    u[5, 3] += 1e-3
    assert timings.error_of_rows(w, u, 0.3) > timings.TOLERANCE
    u[5, 3] = math.nan
    assert timings.error_of_rows(w, u, 0.3) is None


def test_what_is_over_the_limit_is_left_out(timings):
    row = judged(timings, wsr.prox, limit=0.0)
    assert row["status"] == "left out"
    assert "seconds" not in row
    assert "limit" not in row["reason"]
    assert "0 s" in row["reason"]


def test_a_slow_first_call_is_forgiven(timings, monkeypatch):
    clock = iter([0.0, 9.0])  # the first call compiles
    with monkeypatch.context() as patch:
        patch.setattr(timings.time, "perf_counter", lambda: next(clock))
        patch.setattr(timings, "seconds", lambda call, device: 0.1)
        patch.setattr(timings, "race", lambda *arguments: {"rounds": 1})
        row = judged(timings, wsr.prox)
    assert row["status"] == "timed"


def test_the_certificate_bounds_the_distance(timings):
    w = gaussian(400, torch.float64)
    u = wsr.prox(w, 0.3)
    assert timings.certified_distance(u, w, 0.3) < 1
    moved = u + 1e-3 * gaussian(400, torch.float64, seed=1)
    distance = (moved - u).square().mean().sqrt() / timings.ulp_of_largest(w)
    assert timings.certified_distance(moved, w, 0.3) >= distance


def test_predictions(timings):
    def row(d, seconds, status="timed", **key):
        return {"d": d, "status": status, "seconds": [0.0, seconds, 9.0]} | key

    rows = [row(10, 1.0, m="a"), row(100, 100.0, m="a"), row(10, 1.0, m="b"), row(1000, 5.0, m="a")]
    assert timings.predicted(rows, 1000, {"m": "a"}) == pytest.approx(10_000)  # like d squared
    assert timings.predicted(rows, 100, {"m": "b"}) == pytest.approx(10)
    assert timings.predicted(rows, 10, {"m": "b"}) == 0  # nothing is known
    rows = [row(10, 2.0, m="a"), row(100, 1.0, m="a")]
    assert timings.predicted(rows, 1000, {"m": "a"}) == pytest.approx(10)  # at least like d
    rows.append({"d": 100, "status": "left out", "m": "c"})
    assert timings.predicted(rows, 1000, {"m": "c"}) == math.inf
    assert timings.predicted(rows, 100, {"m": "c"}) == 0
    rows.append({"d": 100, "status": "wrong", "m": "d"})
    assert timings.predicted(rows, 1000, {"m": "d"}) == 0


def test_the_race_takes_turns(timings):
    turns = []
    row = timings.race(lambda: turns.append("call"), lambda: turns.append("unit"), 0.0, "cpu")
    assert turns == ["unit", "call"] * (row["rounds"] + 1)
    assert timings.quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == [2.0, 3.0, 4.0]


def test_ties_have_up_to_256_values(timings):
    w, _ = timings.weights("ties", 100_000, torch.float32, timings.Settings())
    assert 200 < len(w.unique()) <= 256
    assert w.std() == pytest.approx(0.02, rel=0.05)


def test_trained_weights_are_those_before_the_last_prox(timings, monkeypatch):
    asked = []
    prox = wsr.prox

    def spy(*arguments):
        asked.append(arguments)
        return prox(*arguments)

    monkeypatch.setattr(timings.wsr, "prox", spy)
    w, lambd = timings.trained(8, 5)
    assert w.shape == (8 * 16,)
    assert len(asked) == 5
    given, strength = asked[-1]
    assert torch.equal(w, given.flatten())
    assert strength == lambd > 0
    again, _ = timings.trained.__wrapped__(8, 5)
    assert torch.equal(w, again)


def test_resampling_keeps_ties_and_makes_no_others(timings):
    w = torch.cat([torch.zeros(50), gaussian(50)])
    few = timings.resample(w, 30)
    assert set(few.tolist()) <= set(w.tolist())
    assert (few == 0).sum() > 5
    many = timings.resample(w, 1000)
    assert many.shape == (1000,)
    assert (many == 0).sum() == 500
    assert len(many.unique()) == 501
    assert (many[100:200] - many[:100]).abs().max() < 0.01
    assert (timings.resample(w, 100).sort().values == w.sort().values).all()


@pytest.mark.parametrize(
    ("dtype", "way", "counts"),
    [
        ("float32", "sort", 0),
        ("float32", "count", 1),
        ("bfloat16", "sort", 0),
        ("bfloat16", "count", 1),
    ],
)
def test_the_ways_are_taken_and_agree(timings, monkeypatch, dtype, way, counts):
    calls = []
    by_counting = timings.cpu._by_counting
    monkeypatch.setattr(timings.cpu, "_by_counting", lambda *a: calls.append(a) or by_counting(*a))
    w = gaussian(3000, timings.DTYPES[dtype])
    expected = wsr.prox(w, 1.5)
    calls.clear()
    before = vars(timings.cpu).copy()
    module, as_it_is, ways = timings.ways_on("cpu")
    with timings.mock.patch.multiple(module, **as_it_is | ways[way]):
        u = wsr.prox(w, 1.5)
    assert len(calls) == counts
    assert torch.equal(u, expected)
    assert vars(timings.cpu) == before


@pytest.mark.parametrize(
    ("way", "taken"),
    [("sort", ["sort"]), ("count", [[True]]), ("own sort", [[False]]), ("auto", ["sort"])],
)
def test_the_ways_on_a_gpu(timings, monkeypatch, way, taken):
    module, as_it_is, ways = timings.ways_on("cuda")
    found = []

    def counted(rows, result, strengths):
        found.append(module._much_is_shared(rows, strengths).tolist())

    monkeypatch.setattr(module, "_resolve_counted", counted)
    monkeypatch.setattr(module, "_resolve", lambda *a: found.append("sort"))
    with timings.mock.patch.multiple(module, **as_it_is | ways[way]):
        module.prox_rows(torch.zeros(1, 2000), 0.1, 0.0, 0.0)
    assert found == taken


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_what_was_allocated(timings, monkeypatch):
    def solve(w, lambd):
        torch.ones(50 * len(w), dtype=torch.uint8)  # gone before the next one comes
        work = torch.ones(60 * len(w), dtype=torch.uint8)
        return w + lambd + work[0]

    monkeypatch.setattr(timings, "OURS", (timings.Method("ours", solve),))
    bytes_per_weight = timings.peak_memory("ours", "float32", 1_000_000, "gaussian", "cpu")
    assert bytes_per_weight == pytest.approx(60, abs=12)  # small arrays come again


def test_a_fresh_process_answers(timings):
    assert timings._child("quartiles([1.0, 2.0, 3.0])") == [1.5, 2.0, 2.5]


def test_first_calls_are_those_of_a_fresh_process(timings, monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # what is compiled takes long
    row = timings.first_call(10, "cpu", str(tmp_path))
    assert row.keys() == {"import_torch", "import_wsr", "first_call", "second_call"}
    assert min(row.values()) > 0
    assert row["import_torch"] > row["second_call"]


PAPER = """
import wsr

def prox_R_and_l1(w, step_size_R, step_size_l1, rho, lr, alg):
    assert (step_size_l1, rho, lr) == (0.0, 0.0, 1.0)
    assert alg in ("search_collisions", "imminent_collisions", "end_collisions")
    w.copy_(wsr.prox(w, step_size_R))
    return w, (None, None), None
"""


@pytest.fixture
def checkout(tmp_path):
    path = tmp_path / "checkout" / "src" / "utils" / "train_util.py"
    path.parent.mkdir(parents=True)
    path.write_text(PAPER)
    return tmp_path / "checkout"


def test_a_checkout_of_the_paper_is_used(timings, checkout):
    methods = timings.papers(checkout)
    assert [m.name for m in methods] == [
        "paper, search_collisions",
        "paper, imminent_collisions",
        "paper, end_collisions",
    ]
    w = gaussian(50)
    before = w.clone()
    for method in methods:
        assert torch.equal(method.solve(w, 0.5), wsr.prox(w, 0.5))
        assert torch.equal(w, before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing"),
        ("def prox(w): pass", "no function prox_R_and_l1"),
        ("import no_such_module", "needs no_such_module"),
    ],
)
def test_another_checkout_is_refused(timings, checkout, content, message):
    path = checkout / "src" / "utils" / "train_util.py"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=message):
        timings.main(["--quick", "--paper-code", str(checkout)])


def test_options_reach_the_settings(timings):
    options, settings = timings._settings(
        ["--device", "cuda", "--sizes", "5", "50", "--limit", "7"]
    )
    assert (settings.device, settings.sizes, settings.limit) == ("cuda", (5, 50), 7.0)
    assert not settings.paper_code
    assert options.paper_code is None
    _, settings = timings._settings([])
    assert settings == timings.Settings()
    assert timings._settings(["--device", "cuda"])[1].sizes[-1] == 100_000_000
