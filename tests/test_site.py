"""The website: each figure's page gets a player below its picture."""
import shutil
from pathlib import Path

import nbformat
import pytest
from build_site import add_player, has_picture

from self_improve.gallery import FIGURES

PAGES = Path(__file__).resolve().parent.parent / "nbs" / "figures"


@pytest.mark.parametrize("name", FIGURES)
def test_a_player_stands_below_the_picture(tmp_path, name):
    page = Path(shutil.copy(PAGES / f"{name}.ipynb", tmp_path))
    before = len(nbformat.read(page, 4).cells)
    add_player(page, name)
    cells = nbformat.read(page, 4).cells
    where = [i for i, cell in enumerate(cells) if "<iframe" in cell.source]
    assert len(where) == 1 and len(cells) == before + 1
    assert has_picture(cells[where[0] - 1]) and not any(map(has_picture, cells[: where[0] - 1]))
    assert f'src="players/{name}.html"' in cells[where[0]].source
