"""A report of a training or an evaluation as one page of HTML, which opens without a network."""

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

import heads.drawing.pages as pages

LONGEST_SIDE = 1800  # pixels; larger pictures are made smaller
LARGEST_PNG = 400_000  # bytes; a larger picture is a photograph, of which JPEG needs a tenth
# One file without scripts, so that it can be opened from a mail or a disk.
STYLE = """
:root { color-scheme: light; --line: #d8dee6; --bar: #cfe3f7; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 1180px; margin: 2rem auto; }
body { padding: 0 1rem; } h1 { font-size: 1.6rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; } th, td { padding: .15rem .8rem .15rem 0; text-align: left; }
th, td { border-bottom: 1px solid #e6eaf0; vertical-align: top; } th { font-weight: 600; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
table.columns th:not(:first-child), table.columns td.number { text-align: right; min-width: 7rem; }
table.columns th, table.columns td { padding: .15rem .4rem; overflow-wrap: normal; }
table.columns td:first-child { padding-left: 0; }
pre { background: #f5f7fa; padding: .8rem; overflow-x: auto; font-size: 13px; }
.wide { overflow-x: auto; }
img { box-sizing: border-box; max-width: 100%; height: auto; border: 1px solid var(--line); }
nav a { margin-right: 1rem; display: inline-block; }
"""
# What a picture needs to be legible: on narrower screens it is moved from side to side.
LEGIBLE_WIDTH = 800  # pixels


def make_report(title: str, parts: Iterable[tuple]) -> str:
    """Returns a page of HTML, with all pictures in it.

    Args:
        title: Title of the page.
        parts: Pairs of a heading and what stands below it: a text, shown as it is; a picture, uint8 (height,
            width, 3); a table with a row for each entry, a dict of name -> value; or a table of several
            columns, a dict of the columns' names -> dicts of name -> value. In tables of several columns,
            numbers 0 .. 100 get a bar, since files of scores are in percent.

    Raises:
        ValueError: For another kind of part.
    """
    parts = [(str(heading), _draw_part(heading, content)) for heading, content in parts]
    links = "".join(f'<a href="#part-{k}">{html.escape(name)}</a>' for k, (name, _) in enumerate(parts))
    body = "\n".join(
        f'<section id="part-{k}"><h2>{html.escape(name)}</h2>\n{content}</section>'
        for k, (name, content) in enumerate(parts)
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n<nav>{links}</nav>\n{body}\n</body></html>\n"
    )


def _draw_part(heading, content):
    if isinstance(content, str):
        return f"<pre>{html.escape(content)}</pre>"
    if isinstance(content, Mapping):
        if content and all(isinstance(column, Mapping) for column in content.values()):
            return _draw_columns(content)
        rows = (
            f"<tr><th>{html.escape(str(name))}</th>{_draw_cell(value)}</tr>"
            for name, value in content.items()
        )
        return f"<table>{''.join(rows)}</table>"
    if isinstance(content, np.ndarray):
        name, width = html.escape(str(heading), quote=True), min(content.shape[1], LEGIBLE_WIDTH)
        image = f'<img alt="{name}" style="min-width: {width}px" src="{embed_picture(content)}">'
        return f'<div class="wide">{image}</div>'
    raise ValueError(
        f"a part of a report must be a text, a picture, a dict, or a dict of dicts. Received: {heading!r}: "
        f"{type(content).__name__}"
    )


def _draw_columns(columns):
    names = dict.fromkeys(name for column in columns.values() for name in column)
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in ("", *columns))
    rows = []
    for name in names:
        cells = (_draw_cell(column.get(name), with_bar=True) for column in columns.values())
        rows.append(f"<tr><td>{html.escape(str(name))}</td>{''.join(cells)}</tr>")
    table = f'<table class="columns"><tr>{head}</tr>{"".join(rows)}</table>'
    return f'<div class="wide">{table}</div>'


def _draw_cell(value, with_bar=False):
    """Returns a cell of a table; numbers may have a bar as long as their percentage."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return '<td class="number">-</td>'
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{html.escape(str(value))}</td>"
    style = ""
    if with_bar and 0 <= value <= 100:
        style = f' style="background: linear-gradient(90deg, var(--bar) {value:.1f}%, transparent 0)"'
    is_percent = with_bar or abs(value) >= 1
    text = f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if is_percent else f"{value:.4g}"
    return f'<td class="number"{style}>{text}</td>'


def embed_picture(picture) -> str:
    """Returns a picture as a data URL for an `img`.

    Args:
        picture: uint8 or float 0 .. 255 (height, width, 3).
    """
    image = Image.fromarray(pages.check_picture(picture))
    image.thumbnail((LONGEST_SIDE, 4 * LONGEST_SIDE))
    kind, content = "png", _encode(image, "PNG", optimize=True)
    if len(content) > LARGEST_PNG:
        kind, content = "jpeg", _encode(image, "JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encode(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()
