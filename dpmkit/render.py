"""An executed notebook as one HTML page that loads nothing: contents, code folded, some 10 kB of style.

nbconvert's own template brings 300 kB of JupyterLab's stylesheet to every page, and fetches require.js, MathJax and
Mermaid from the net, which the notebooks do not need: their formulas are plain text, their audio is in the page.
"""

from __future__ import annotations

from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

STYLE = """
body { margin: 0; color: #1f2328; background: #fff; font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif }
main { max-width: 68rem; padding: 1rem 1.25rem 4rem; overflow-wrap: break-word }
p, li { max-width: 46rem }
h1, h2, h3 { line-height: 1.25; margin: 2.2rem 0 .6rem; scroll-margin-top: 1rem }
h1 { margin-top: .6rem; font-size: 1.8rem }
h2 { padding-bottom: .25rem; border-bottom: 1px solid #d8dee4; font-size: 1.3rem }
a { color: #0757ad; text-decoration: none }
a:hover { text-decoration: underline }
.anchor-link { margin-left: .4em; color: #8c959f; opacity: 0 }
:hover > .anchor-link, .anchor-link:focus { opacity: 1 }
code, pre { font: .84em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
code { padding: .1em .3em; background: #f2f4f7; border-radius: 3px }
pre { margin: .5rem 0; white-space: pre-wrap }
.highlight pre { padding: .6rem .8rem; white-space: pre; overflow-x: auto }
details.code { margin: .4rem 0 }
details.code > summary { width: max-content; color: #57606a; font-size: .8rem; cursor: pointer }
.output_area, .text_cell_render > table { overflow-x: auto }
.text_cell_render > table { display: block }
table { border-collapse: collapse; border: 0; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { max-width: 16rem; padding: .25rem .6rem; border: 0; text-align: right; vertical-align: top }
tbody tr:nth-child(odd) { background: #f6f8fa }
thead { border-bottom: 1.5px solid #57606a }
img { max-width: 100%; height: auto }
audio { max-width: 100% }
nav { padding: 1rem 1.25rem 0; font-size: .85rem; line-height: 1.4 }
nav a { display: block; padding: .2rem 0 }
nav .h1 { font-weight: 600 }
nav .h3 { padding-left: 1rem }
@media (min-width: 64rem) {
  body { display: grid; grid-template-columns: 15rem minmax(0, 1fr) }
  nav { position: sticky; top: 0; height: 100vh; box-sizing: border-box; overflow-y: auto;
        border-right: 1px solid #d8dee4 }
  main { padding-left: 2.5rem }
}
@media print {
  nav, audio, .anchor-link, details.code:not([open]) { display: none }
  body { display: block; font-size: 10pt }
  main, p, li { max-width: none }
  main { padding: 0 }
  h1, h2, h3 { break-after: avoid }
  img, tr { break-inside: avoid }
  .output_area { overflow: visible }
  .highlight pre { white-space: pre-wrap }
}
"""

TEMPLATE = """
{%- extends 'classic/base.html.j2' -%}
{%- block body -%}
{%- set content -%}{{ super() }}{%- endset -%}
{%- set headings = content | headings -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ headings[0].text | e if headings else "notebook" }}</title>
<style>{{ resources.style }}</style>
</head>
<body>
<nav aria-label="contents">
{%- for h in headings %}
<a class="{{ h.level }}" href="#{{ h.id | e }}">{{ h.text | e }}</a>
{%- endfor %}
</nav>
<main>
{{ content }}
</main>
</body>
</html>
{%- endblock -%}
{%- block input_group -%}
<details class="code"><summary>code</summary>{{ super() }}</details>
{%- endblock -%}
{%- block footer -%}{%- endblock -%}
"""


def page(notebook: NotebookNode) -> str:
    """The notebook as HTML: its headings as contents (at the left of a wide screen), every code cell closed."""
    exporter = HTMLExporter(template_name="basic", raw_template=TEMPLATE, exclude_input_prompt=True,
                            exclude_output_prompt=True, anchor_link_text="#")
    exporter.register_filter("headings", _headings)
    style = HtmlFormatter(style="default").get_style_defs(".highlight") + STYLE
    html, _ = exporter.from_notebook_node(notebook, {"style": style})
    return html


def _headings(html: str) -> list[dict[str, str]]:
    """Level (h1 to h3), id and text of the headings of markdown cells; nbconvert gives those alone an id."""
    soup = BeautifulSoup(html, "html.parser")
    for anchor in soup.select(".anchor-link"):
        anchor.decompose()  # its # is no part of the text
    return [{"level": h.name, "id": h["id"], "text": h.get_text()} for h in soup.select("h1[id], h2[id], h3[id]")]
