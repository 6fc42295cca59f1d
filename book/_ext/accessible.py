"""Mend what docutils and Sphinx write that a screen reader stumbles over (axe-core finds it)."""

from docutils import nodes
from sphinx import addnodes


def visitor(name, old, new):
    """Return the translator's own ``visit_<name>``, with ``new`` for ``old`` in its HTML."""

    def visit(translator, node):
        begin = len(translator.body)
        getattr(type(translator), f"visit_{name}")(translator, node)
        translator.body[begin:] = [part.replace(old, new) for part in translator.body[begin:]]

    return visit


def departure(name):
    """Return the translator's own ``depart_<name>``."""
    return lambda translator, node: getattr(type(translator), f"depart_{name}")(translator, node)


def setup(app):
    """Register the extension."""
    # The role is deprecated, and a list may hold nothing but list items.
    citation = visitor("citation", 'role="doc-biblioentry"', 'role="listitem"')
    app.add_node(nodes.citation, override=True, html=(citation, departure("citation")))
    # The lines of a long signature are no definitions, although they are set as such.
    parameters = visitor("desc_parameterlist", "<dl", '<dl role="presentation"')
    app.add_node(
        addnodes.desc_parameterlist,
        override=True,
        html=(parameters, departure("desc_parameterlist")),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
