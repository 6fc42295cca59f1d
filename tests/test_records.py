"""Records of experiments: whole or not at all, resumed only by the run they belong to."""

import importlib
import json
import os
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[1] / "book"
SETTINGS = {"sizes": (1, 2), "seed": 0}


@pytest.fixture
def records(monkeypatch):
    monkeypatch.syspath_prepend(BOOK)
    return importlib.import_module("experiments.records")


@pytest.fixture
def start(records, tmp_path):
    """Return what starts or resumes a run with two packages in a folder of its own."""

    def start(**changes):
        return records.Record("trial", SETTINGS | changes, tmp_path, ("pytest", "no-such-package"))

    return start


def test_a_finished_record_says_all(records, start, tmp_path):
    record = start()
    record.add(d=1, seconds=0.5)
    record.add(d=2, seconds=0.25, name="é")
    assert record.finish() == tmp_path / "trial.json"
    content = records.load("trial", tmp_path)
    assert content["rows"] == [{"d": 1, "seconds": 0.5}, {"d": 2, "seconds": 0.25, "name": "é"}]
    assert content["settings"] == {"sizes": [1, 2], "seed": 0}
    assert content["command"] == "python -m experiments.trial"
    assert content["versions"]["pytest"] == pytest.__version__
    assert content["versions"]["no-such-package"] == "not installed"
    assert {"python", "wsr", "torch", "numpy", "numba"} <= content["versions"].keys()
    assert content["hardware"]["cores"] == os.cpu_count()
    assert content["seconds"] >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["trial.json"]


def test_a_record_without_rows_can_be_read(records, start, tmp_path):
    start().finish()
    assert records.load("trial", tmp_path)["rows"] == []


def test_the_command_can_have_arguments(records, tmp_path):
    record = records.Record("trial", {}, tmp_path, command="python -m experiments.trial --much")
    record.finish()
    assert records.load("trial", tmp_path)["command"].endswith("--much")


def test_an_interrupt_loses_no_finished_row(start, tmp_path):
    record = start()
    for d in range(3):
        record.add(d=d)
        assert start().rows == [{"d": n} for n in range(d + 1)]  # as if interrupted here
    assert not (tmp_path / "trial.json").exists()


def test_a_resumed_run_goes_on_where_it_was(start, records, tmp_path, monkeypatch):
    clock = iter([100.0, 107.0, 1000.0, 1005.0, 1006.0])  # start, add; start, add, finish
    monkeypatch.setattr(records.time, "monotonic", lambda: next(clock))
    start().add(d=1, error=0.5)
    record = start()
    assert record.has(d=1)
    assert record.has(d=1, error=0.5)
    assert not record.has(d=1, error=0.25)
    assert not record.has(d=2)
    assert not record.has(size=1)
    record.add(d=2)
    record.finish()
    content = records.load("trial", tmp_path)
    assert content["rows"] == [{"d": 1, "error": 0.5}, {"d": 2}]
    assert content["seconds"] == 7 + 6  # without the pause


def test_after_the_end_a_run_begins_anew(start, records, tmp_path):
    record = start()
    record.add(d=1)
    record.finish()
    record = start()
    assert record.rows == []
    record.add(d=2)
    assert records.load("trial", tmp_path)["rows"] == [{"d": 1}]  # until the new run has finished
    record.finish()
    assert records.load("trial", tmp_path)["rows"] == [{"d": 2}]


def test_other_settings_are_another_run(start):
    start().add(d=1)
    assert start(seed=1).rows == []


@pytest.mark.parametrize("part", ["_versions", "_hardware", "_source"])
def test_another_environment_is_another_run(start, records, monkeypatch, part):
    start().add(d=1)
    assert len(start().rows) == 1
    monkeypatch.setattr(records, part, lambda *arguments: {"other": "one"})
    assert start().rows == []


def test_another_commit_or_day_is_the_same_run(start, records, monkeypatch):
    start().add(d=1)
    monkeypatch.setattr(records, "_commit", lambda: "another")
    monkeypatch.setattr(records.time, "strftime", lambda *arguments: "1999-12-31")
    assert len(start().rows) == 1


def test_rows_of_an_unknown_form_are_not_taken_over(start, tmp_path):
    (tmp_path / "trial.partial.json").write_text('{"rows": [{"d": 1}]}')
    assert start().rows == []


def test_changed_code_has_another_digest(records, monkeypatch, tmp_path):
    for package in ("wsr", "experiments"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(records.wsr, "__file__", str(tmp_path / "wsr" / "__init__.py"))
    monkeypatch.setattr(records, "__file__", str(tmp_path / "experiments" / "records.py"))
    digests = {records._source()}
    for package in ("wsr", "experiments"):
        (tmp_path / package / "__init__.py").write_text("x = 2\n")
        digests.add(records._source())
    (tmp_path / "wsr" / "kernels").mkdir()
    (tmp_path / "wsr" / "kernels" / "new.py").write_text("")
    digests.add(records._source())
    (tmp_path / "wsr" / "kernels" / "new.py").rename(tmp_path / "wsr" / "kernels" / "renamed.py")
    digests.add(records._source())
    assert len(digests) == 5
    (tmp_path / "wsr" / "notes.txt").write_text("no code")
    assert records._source() in digests


@pytest.mark.parametrize("step", ["write", "replace"])
def test_a_crash_while_writing_leaves_the_last_whole_state(
    start, records, tmp_path, monkeypatch, step
):
    record = start()
    record.add(d=1)
    record.finish()
    record = start()
    record.add(d=2)

    def half(path, text):
        path.write_bytes(text.encode()[: len(text) // 2])
        raise OSError("disk full")

    def refuse(source, target):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(Path, "write_text", half)
        else:
            patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match=r"disk full|killed"):
            record.add(d=3)
        with pytest.raises(OSError, match=r"disk full|killed"):
            record.finish()
    assert records.load("trial", tmp_path)["rows"] == [{"d": 1}]
    assert start().rows == [{"d": 2}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(start, tmp_path, value):
    record = start()
    record.add(d=1)
    with pytest.raises(ValueError, match="JSON"):
        record.add(d=2, error=value)
    assert start().rows == [{"d": 1}]


def test_a_missing_record_says_how_to_make_it(records, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json.*python -m experiments\.absent"):
        records.load("absent", tmp_path)


def test_the_origin_names_hardware_date_and_versions(records, start, tmp_path):
    path = start().finish()
    content = json.loads(path.read_text())
    line = records.origin(content)
    assert "\n" not in line
    for part in (content["hardware"]["cpu"], content["date"], f"pytest {pytest.__version__}"):
        assert part in line


@pytest.mark.parametrize("gpu", [None, "Some GPU"])
def test_the_hardware_names_cpu_and_gpu(records, monkeypatch, gpu):
    monkeypatch.setattr(records.torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(records.torch.cuda, "get_device_name", lambda: gpu)
    hardware = records._hardware()
    assert hardware["gpu"] == gpu
    assert hardware["cpu"] in hardware["device"]
    assert ("Some GPU" in hardware["device"]) == (gpu is not None)


def test_the_common_options(records, tmp_path):
    command = records.parser("what it does")
    options = command.parse_args([])
    assert (options.quick, options.results) == (False, BOOK / "results")
    options = command.parse_args(["--quick", "--results", str(tmp_path)])
    assert (options.quick, options.results) == (True, tmp_path)
