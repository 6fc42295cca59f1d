"""What was run, on what, and what came out?

A record is one JSON file in ``book/results``: settings, seeds, versions, hardware and rows of
results.  A run writes every finished row at once to ``NAME.partial.json``, whole or not at all, and
goes on from there if it is started again after an interrupt; ``NAME.json`` is replaced only by a
run that has finished.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import wsr

RESULTS = Path(__file__).resolve().parents[1] / "results"
PACKAGES = ("wsr", "torch", "numpy", "numba")

Row = dict[str, Any]


class Record:
    """The record of one run: rows are added one by one, then ``finish`` puts it in its place.

    Parameters
    ----------
    name : str
        The experiment; with its arguments, ``python -m experiments.NAME`` from ``book/`` runs it.
    settings : dict
        All that fixes the run: sizes, seeds, strengths.  JSON values only.
    folder : Path, optional
        Where records are kept.
    packages : sequence of str, optional
        Packages whose versions matter, besides wsr, torch, numpy and numba.
    command : str, optional
        The command that produces the record again, if it needs arguments.
    """

    def __init__(
        self,
        name: str,
        settings: Row,
        folder: Path = RESULTS,
        packages: Sequence[str] = (),
        command: str | None = None,
    ) -> None:
        self.path = folder / f"{name}.json"
        self._partial = folder / f"{name}.partial.json"
        self._content: Row = {
            "name": name,
            "command": command or f"python -m experiments.{name}",
            "settings": json.loads(json.dumps(settings)),  # tuples become lists, as when read back
            "versions": _versions((*PACKAGES, *packages)),
            "hardware": _hardware(),
            "commit": _commit(),
            "source": _source(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "seconds": 0.0,
            "rows": [],
        }
        self._resume()
        self._since = time.monotonic() - self._content["seconds"]

    @property
    def rows(self) -> list[Row]:
        """The rows so far, those of an interrupted run included."""
        rows: list[Row] = self._content["rows"]
        return rows

    def has(self, **key: Any) -> bool:
        """Return whether a row has these entries, be it of this run or the interrupted one."""
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.rows)

    def add(self, **row: Any) -> None:
        """Add a finished row; from now on an interrupt does not lose it."""
        self.rows.append(row)
        self._content["seconds"] = round(time.monotonic() - self._since, 1)
        _write(self._partial, self._content)

    def extend(self, rows: Sequence[Row]) -> None:
        """Add rows that were finished together; an interrupt keeps all of them or none."""
        *most, last = rows
        self.rows.extend(most)
        self.add(**last)

    def finish(self) -> Path:
        """Put the record in its place and return its path."""
        self._content["seconds"] = round(time.monotonic() - self._since, 1)
        _write(self.path, self._content)
        self._partial.unlink(missing_ok=True)
        return self.path

    def _resume(self) -> None:
        if self._partial.exists():
            earlier = json.loads(self._partial.read_text())
            same = ("settings", "versions", "hardware", "source")
            if all(earlier.get(key) == self._content[key] for key in same):
                self._content.update({key: earlier[key] for key in ("seconds", "rows")})


def load(name: str, folder: Path = RESULTS) -> Row:
    """Return a finished record.

    Raises
    ------
    FileNotFoundError
        If there is none; the message says how to make it.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; `python -m experiments.{name}`, run in book/, makes it"
        )
    record: Row = json.loads(path.read_text())
    return record


def origin(record: Row) -> str:
    """Return one line for a caption: on what, when and with which versions a record was made."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"{record['hardware']['device']}, {record['date']}; {versions}"


def parser(description: str) -> argparse.ArgumentParser:
    """Return a command line with the options that every experiment has."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    result.add_argument("--quick", action="store_true", help="a small size, to see that it runs")
    result.add_argument("--results", type=Path, default=RESULTS, help="the folder for the record")
    return result


def _write(path: Path, content: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(
        "  " + json.dumps(row, allow_nan=False, separators=(",", ":")) for row in content["rows"]
    )
    head = json.dumps({k: v for k, v in content.items() if k != "rows"}, indent=1)
    text = f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'
    draft = path.with_suffix(".tmp")
    draft.write_text(text)
    os.replace(draft, path)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = wsr.__version__ if name == "wsr" else "not installed"
    return found


def _hardware() -> Row:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cores = os.cpu_count()
    device = f"{cpu}, {cores} cores" + (f", {gpu}" if gpu else "")
    return {"device": device, "cpu": cpu, "cores": cores, "gpu": gpu}


def _commit() -> str:
    here = RESULTS.parent

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", "../wsr", "experiments")
    except FileNotFoundError:  # no git
        return "unknown"
    return commit + (" with changes" if changed else "") if commit else "unknown"


def _source() -> str:
    """Return a digest of the package and the experiments: other code is another run."""
    digest = hashlib.sha256()
    for folder in (Path(wsr.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
