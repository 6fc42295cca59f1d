"""Offer each chapter, executed, as a Jupyter notebook behind the theme's download button."""

from pathlib import Path

import nbformat
from jupyter_cache import get_cache


def offer_notebook(app, pagename, templatename, context, doctree):
    """Put the chapter's cells and outputs beside its source, and name that file to the theme."""
    if doctree is None or "kernelspec" not in app.env.metadata.get(pagename, {}):
        return
    # MyST-NB writes a notebook whose outputs come from the cache without them: fetch them again.
    config = app.env.mystnb_config
    cells = nbformat.read(Path(config.output_folder) / f"{pagename}.ipynb", as_version=4)
    _, executed = get_cache(config.execution_cache_path).merge_match_into_notebook(cells)
    target = Path(app.outdir) / "_sources" / f"{pagename}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(executed, target)
    context["ipynb_source"] = f"{pagename}.ipynb"


def setup(app):
    """Register the extension."""
    # Before the theme makes its buttons, at priority 501.
    app.connect("html-page-context", offer_notebook, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
