"""Execute the chapters again when something they depend on has changed.

The cache of executed notebooks knows a chapter by its cells alone, but a chapter also shows what
the package, the helpers beside it and the recorded results do. So the cache lives in a folder named
after a digest of all of these. A new digest is a new, empty folder; and because the folder is part
of the configuration, Sphinx then reads every page again.
"""

import hashlib
import os
import shutil
from pathlib import Path

SOURCES = [
    "constraints.txt",
    "wsr/**/*.py",
    "book/*.py",
    "book/experiments/**/*",
    "book/results/**/*",
]
# Chapters show other data where this variable names a folder that holds it.
VARIABLES = ["WSR_DATA"]


def digest(root):
    """Return a digest of everything but its own cells that a chapter's output depends on."""
    total = hashlib.sha256()
    for name in VARIABLES:
        total.update(f"{name}={os.environ.get(name)}\0".encode())
    paths = {path for pattern in SOURCES for path in root.glob(pattern)}
    for path in sorted(paths):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(root).as_posix()}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def choose_cache(app, config):
    """Point the notebook cache at the folder of the present digest and drop those of older ones."""
    caches = Path(app.outdir).parent / ".jupyter_cache"
    current = caches / digest(Path(app.srcdir))
    if caches.is_dir():
        for old in caches.iterdir():
            if old != current:
                shutil.rmtree(old)
    config.nb_execution_cache_path = str(current)


def setup(app):
    """Register the extension."""
    app.connect("config-inited", choose_cache)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
