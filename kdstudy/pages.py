"""What people read as Markdown or HTML: names stand there as text, and nothing in a page is executed."""

from __future__ import annotations

import re
from pathlib import Path

_MARKUP = re.compile(r"[&<>\"'\\`*_\[\]{}#|~^=!@$]")
_NOWHERE = dict.fromkeys(("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url"), "")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; media-src data:"


def literal(name: object) -> str:
    """Return a name as it is to be written in Markdown and in HTML alike: read there, it is what it was.

    Args:
        name: what a user named something, such as a class of images or a network.

    Returns:
        One line, in which no character means markup, or the beginning of a formula.

    Example:
        >>> literal("<b>wrn_10</b>"), literal("resnet8, 4 epochs")
        ('&#60;b&#62;wrn&#95;10&#60;/b&#62;', 'resnet8, 4 epochs')
    """
    return _MARKUP.sub(_entity, " ".join(str(name).split()))


def _entity(match: re.Match[str]) -> str:
    entity = f"&#{ord(match[0])};"
    return f"<span>{entity}</span>" if match[0] == "$" else entity  # formulas are looked for in the page's text, too


def to_html(notebook: Path) -> str:
    """Return an executed notebook as one HTML page that needs nothing from elsewhere and executes nothing.

    Args:
        notebook: the executed notebook.

    Returns:
        The page. Its policy lets it neither load anything nor run a script, wherever that may stand in it.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(embed_images=True, **_NOWHERE)
    page: str
    page, _ = exporter.from_filename(str(notebook))
    return page.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>', 1)
