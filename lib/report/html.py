"""Self-contained HTML pages: one file, which needs neither network nor server, with its style, script and tables."""

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from lib.report.text_tables import score_text, titles_of

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
nav a { margin-right: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.5rem 0; }
caption { text-align: left; white-space: nowrap; font-weight: 600; padding: 0.3rem 0; }
th, td { padding: 0.15rem 0.8rem 0.15rem 0; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
th:first-child, .text td { text-align: left; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
pre { overflow-x: auto; background: #f5f5f5; padding: 0.8rem; }
summary { cursor: pointer; }
"""


def document(title: str, sections: Mapping[str, str], style: str = "", script: str = "") -> str:
    """Return a page as HTML, with a link to each section.

    Args:
        title: of the page.
        sections: their HTML by their titles; empty ones are left out.
        style: CSS that the sections need beside that of every page.
        script: JavaScript, run at the end of the page.
    """
    sections = {name: content for name, content in sections.items() if content}
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<a href="#{anchors[name]}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{anchors[name]}"><h2>{name}</h2>{part}</section>' for name, part in sections.items())
    style = STYLE + style
    # The browser itself keeps the page to its own parts: nothing is loaded, and no other script runs.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_integrity(style)}'; script-src '{_integrity(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1>\n<nav aria-label="sections">{links}</nav></header>\n'
        f"<main>\n{body}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _integrity(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def html_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "numbers") -> str:
    """Return a table whose first column names its rows; everything in it is escaped."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th>{"".join(f"<td>{escape(str(cell))}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def score_table(caption: str, first_column: str, rows: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return a table of scores, a line a row."""
    titles = titles_of(rows.values())
    lines = [[name, *(score_text(scores.get(metric)) for metric in titles)] for name, scores in rows.items()]
    return html_table(caption, (first_column, *titles.values()), lines)
