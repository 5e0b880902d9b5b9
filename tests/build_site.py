"""The website, with a player for each figure: on a page without a kernel its controls would be dead.

`python tests/build_site.py` makes pages of the notebooks under _proc, then Quarto renders them into _proc/_docs.
`python tests/build_site.py --plain` renders them by nbconvert where there is no Quarto: bare pages, to look at.
"""
import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbdev.serve import proc_nbs

from self_improve.gallery import FIGURES

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_proc"
# what stands in a figure's page below its picture
FRAME = """**Round by round.** Move the slider, or press play: this works without a kernel.

<iframe src="players/{name}.html" title="{name}, round by round" width="100%" height="620" style="border:0"></iframe>"""


def make_player(name, path):
    """The player of a figure, by the command that anyone has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "self_improve", "figure", name, "--html", str(path)], check=True, cwd=ROOT)


def has_picture(cell):
    """Whether a cell has drawn something."""
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def add_player(page, name):
    """Put a player below the first picture of a figure's page."""
    notebook = nbformat.read(page, 4)
    first = next(i for i, cell in enumerate(notebook.cells) if has_picture(cell))
    notebook.cells.insert(first + 1, nbformat.v4.new_markdown_cell(FRAME.format(name=name), id="player"))
    nbformat.write(notebook, page)


def build():
    """All pages under _proc, with their players."""
    proc_nbs(str(ROOT), n_workers=0)
    for page in sorted((SITE / "nbs" / "figures").glob("*.ipynb")):
        if page.stem not in FIGURES: continue
        make_player(page.stem, page.parent / "players" / f"{page.stem}.html")
        add_player(page, page.stem)


def render_plain():
    """Each page by nbconvert, beside its notebook."""
    exporter = HTMLExporter()
    for page in sorted((SITE / "nbs").rglob("*.ipynb")):
        notebook = nbformat.read(page, 4)
        # nbdev notes how long a cell took, in a form that nbconvert refuses
        for cell in notebook.cells: cell.metadata.pop("execution", None)
        body, _ = exporter.from_notebook_node(notebook)
        page.with_suffix(".html").write_text(body, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", action="store_true", help="render by nbconvert")
    plain = parser.parse_args().plain
    build()
    if plain: render_plain()
    elif shutil.which("quarto"): subprocess.run(["quarto", "render", str(SITE)], check=True)
    else: sys.exit("the pages are in _proc; to render them, install Quarto from https://quarto.org, or use --plain")
