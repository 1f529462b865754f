"""A report page holds what it is given, escaped, and opens in a browser without a network."""

from pathlib import Path

from matplotlib.figure import Figure

from bamboo.analysis.pages import Cell, Section, Table, write_page
from tests.browser import open_page


def drawing(picture: bool = False) -> Figure:
    figure = Figure(figsize=(3, 2))
    axis = figure.subplots()
    axis.imshow([[0, 1], [2, 3]]) if picture else axis.plot([1, 2])
    return figure


def test_everything_is_in_the_page_and_the_figures_beside_it(tmp_path: Path):
    rows = [["a & b", "-1.50"], [Cell("<cell>", link="x/result.json"), Cell("holds", "good")]]
    sections = [
        Section("Lines", "A <caption>", drawing(), "lines"),
        Section("Picture", "Pixels", drawing(picture=True), "pixels"),
        Section("Table", "Below it", table=Table(["name", "value"], rows)),
    ]
    paths = write_page(tmp_path / "report.html", "Title & all", "lead", sections, ["mind this"])
    names = [path.name for path in paths]
    assert names == ["report.html", "lines.png", "lines.svg", "pixels.png", "pixels.svg"]
    page = paths[0].read_text()
    for markup in (
        "<title>Title &amp; all</title>",
        '<p class="note">mind this</p>',
        "<figcaption>A &lt;caption&gt;</figcaption>",
        "<td>a &amp; b</td>",
        '<td class="number">-1.50</td>',
        '<td><a href="x/result.json">&lt;cell&gt;</a></td>',
        '<td class="good">holds</td>',
        "<p>Below it</p>",
    ):
        assert markup in page
    assert page.count('<img alt="A &lt;caption&gt;" width="288" src="data:image/svg+xml;base64,') == 1
    assert page.count('<img alt="Pixels" width="288" src="data:image/png;base64,') == 1
    seen = open_page(paths[0], tmp_path)
    assert seen.images == [True, True]
    assert not seen.console
    assert not seen.requests
