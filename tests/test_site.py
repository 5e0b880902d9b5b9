"""The website: exported code is shown, assignments are the students', and each figure's page gets a player."""
import base64
import json
import re
import shutil
import struct
from pathlib import Path

import build_site
import nbformat
import pytest
import yaml
from build_site import add_player, as_read, has_picture, make_pages, picture_height, stage

from self_improve.gallery import FIGURES

PAGES = Path(__file__).resolve().parent.parent / "nbs" / "figures"


@pytest.mark.parametrize("name", FIGURES)
def test_a_player_stands_below_the_picture(tmp_path, name):
    page = Path(shutil.copy(PAGES / f"{name}.ipynb", tmp_path))
    before = len(nbformat.read(page, 4).cells)
    add_player(page, name, 300)
    cells = nbformat.read(page, 4).cells
    where = [i for i, cell in enumerate(cells) if "<iframe" in cell.source]
    assert len(where) == 1 and len(cells) == before + 1
    assert has_picture(cells[where[0] - 1]) and not any(map(has_picture, cells[: where[0] - 1]))
    assert f'src="players/{name}.html"' in cells[where[0]].source
    assert int(re.search(r'height="(\d+)"', cells[where[0]].source).group(1)) > 300


def test_a_frame_is_as_high_as_the_picture_and_its_controls(tmp_path):
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 800, 431) + bytes(40)
    (tmp_path / "p.html").write_text(f'frames[0] = "data:image/png;base64,{base64.b64encode(png).decode()}"')
    assert picture_height(tmp_path / "p.html") == 431


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    stage(folder)
    return folder


def test_quarto_can_read_the_options_of_every_cell(staged):
    """nbdev writes `#| key words` as the option `key: words`, and Quarto stops at one that is no YAML."""
    count = 0
    for page in staged.rglob("*.ipynb"):
        for cell in nbformat.read(page, 4).cells:
            for line in re.findall(r"^#\| *(.*)$", cell.source, re.M) if cell.cell_type == "code" else []:
                key, _, words = line.partition(" ")
                option = yaml.safe_load(f"{key.rstrip(':')}: {words or 'true'}")
                assert isinstance(option, dict), f"{page.name}: {line}"
                count += 1
    assert count > 500


def test_no_assignment_on_the_site_has_a_solution(staged):
    pages = sorted((staged / "nbs" / "course").glob("0*.ipynb"))
    assert len(pages) == 5
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "NotImplementedError" in text and "SOLUTION" not in text and "#| hidden" not in text


def test_a_notebook_is_shown_as_it_is_read():
    cells = [nbformat.v4.new_code_cell("#| export\nx = 1", id="a"),
             nbformat.v4.new_code_cell("draw()", id="b", metadata={"jupyter": {"source_hidden": True}}),
             nbformat.v4.new_code_cell("explore(draw, round=range(3))", id="c")]
    shown = as_read(nbformat.v4.new_notebook(cells=cells)).cells
    assert [c.source for c in shown[:3]] == ["#| exports\nx = 1", "#| code-fold: true\ndraw()", cells[2].source]
    assert shown[3].source == build_site.NO_KERNEL and len(shown) == 4


def test_pages_show_the_code_that_their_lesson_builds(tmp_path, monkeypatch):
    monkeypatch.setattr(build_site, "SITE", tmp_path / "site")
    make_pages("(30_sampler|80_plots)")
    sampler, plots = [(tmp_path / "site" / "nbs" / f"{name}.ipynb").read_text() for name in ("30_sampler", "80_plots")]
    sources = "\n".join("".join(cell["source"]) for cell in json.loads(sampler)["cells"])
    assert "def choose_token(" in sources and "show_doc(choose_token)" in sources
    # neither warnings nor matplotlib's own pages of text
    for page in (sampler, plots): assert "__main__" not in page and "UserWarning" not in page
    assert "centimenter" not in plots
