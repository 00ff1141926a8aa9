"""A rendered notebook loads nothing from anywhere, lists its headings, folds its code and keeps its players."""

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dpmkit import reproduce

WAV = '<audio controls="controls"><source src="data:audio/wav;base64,UklGRg==" type="audio/wav"></audio>'
PNG = "iVBORw0KGgo="


@pytest.fixture
def soup():
    def shown(**data):
        return new_output("display_data", data=data)

    return BeautifulSoup(reproduce.page_of(new_notebook(metadata={"language_info": {"name": "python"}}, cells=[
        new_markdown_cell("# 01 · Données & `codes` <i>x</i>\n\n$L_t$ is plain text, [a link](https://arxiv.org/abs/1)."),
        new_markdown_cell("## Load\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\n# no heading\nx = 1\n```"),
        new_code_cell("answer = 42  # <b>", execution_count=7, outputs=[new_output("stream", text="<said>\n")]),
        new_code_cell("silent = 1"),
        new_markdown_cell("### Listen\n\n# Again"),
        new_code_cell("show()", outputs=[
            shown(**{"text/html": WAV}), shown(**{"image/png": PNG, "text/plain": "<Figure>"}),
            shown(**{"text/html": "<h2>of an output</h2><table class='dataframe'></table>", "text/plain": "a"})]),
    ])), "html.parser")


def test_nothing_is_loaded(soup):
    for tag in soup.select("script, link, img, source, audio, iframe, object, embed"):
        for where in (tag.get("src"), tag.get("href"), tag.get("data")):
            assert where is None or where.startswith("data:"), tag
    assert not soup.select("script, link, base")
    style = "".join(s.get_text() for s in soup.select("style"))
    assert "url(" not in style and "@import" not in style
    assert len(style) < 12_000


def test_the_contents_are_the_headings(soup):
    headings = [(h.name, h["id"]) for h in soup.select("main h1[id], main h2[id], main h3[id]")]
    entries = soup.select("nav a")
    assert [(a["class"][0], a["href"].removeprefix("#")) for a in entries] == headings
    assert [a.get_text() for a in entries] == ["01 · Données & codes x", "Load", "Listen", "Again"]
    assert soup.title.get_text() == "01 · Données & codes x"
    assert len({i for _, i in headings}) == len(headings)


def test_code_is_there_but_closed(soup):
    folded = soup.select("details.code")
    assert ["answer = 42  # <b>", "silent = 1", "show()"] == [
        d.select_one(".highlight").get_text().strip() for d in folded]
    assert not any(d.has_attr("open") for d in folded) and all(d.summary.get_text() == "code" for d in folded)
    assert "42" not in "".join(s for s in soup.main.find_all(string=True) if not s.find_parent("details"))
    assert "In\xa0[" not in soup.get_text() and "[7]" not in soup.get_text()


def test_outputs_are_kept(soup):
    assert "<said>" in soup.main.get_text() and not soup.select("details.code audio, details.code img")
    assert soup.select_one("main audio source")["src"] == "data:audio/wav;base64,UklGRg=="
    assert soup.select_one("main img")["src"].split(",")[1].strip() == PNG
    assert len(soup.select("main table")) == 2 and "<Figure>" not in soup.get_text()


def test_it_fits_a_phone_and_paper(soup):
    assert "width=device-width" in soup.find("meta", attrs={"name": "viewport"})["content"]
    assert "@media print" in soup.style.get_text()


def test_a_notebook_without_a_heading():
    assert "<nav" in reproduce.page_of(nbformat.v4.new_notebook(cells=[new_code_cell("1")]))
