"""The website: every notebook as its reader sees it, with a player where a figure's controls would be dead.

`python tests/build_site.py` makes pages under _proc, then Quarto renders them into _proc/_docs.
`python tests/build_site.py --plain` renders them by nbconvert where there is no Quarto: bare pages, to look at.
"""
import argparse
import base64
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbdev.serve import proc_nbs

from self_improve.course import find_masters, make_notebook, student_source
from self_improve.gallery import FIGURES

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_proc"
# what nbdev and Quarto read
READ = ("settings.ini", "pyproject.toml", "_quarto.yml", "README.md", "CHANGELOG.md", "nbs", "data/climb100")
# what stands in a figure's page below its picture; the player's buttons and slider take so many pixels
FRAME = """**Round by round.** Move the slider, or press play: this works without a kernel.

<iframe src="players/{name}.html" title="{name}, round by round"
  width="100%" height="{height}" style="border:0"></iframe>"""
CONTROLS = 230
# cells that show controls, which need a kernel
LIVE = re.compile(r"^(\w+ = )?(explore|explore_figure|live_figure|interact|Editor|Ask|Live)\(", re.M)
NO_KERNEL = "*Here stand controls in Jupyter: a page has none.*"


def as_read(notebook):
    """A notebook for the site: exported code is shown, folded cells are folded, and dead controls say so."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type != "code": continue
        # nbdev shows what is exported under this name, and hides it under the other
        cell.source = re.sub(r"^#\| export$", "#| exports", cell.source, flags=re.M)
        folded = cell.metadata.get("jupyter", {}).get("source_hidden")
        if folded and not cell.source.startswith("#|"): cell.source = "#| code-fold: true\n" + cell.source
        if LIVE.search(cell.source) and not cell.outputs:
            cells.append(nbformat.v4.new_markdown_cell(NO_KERNEL, id=f"{cell.id}-page"))
    notebook.cells = cells
    return notebook


def stage(folder):
    """A copy of what nbdev reads, with every notebook as it is read; of an assignment, what students get."""
    for name in READ:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir(): shutil.copytree(source, target, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        else: shutil.copy(source, target)
    for page in (folder / "nbs").rglob("*.ipynb"): nbformat.write(as_read(nbformat.read(page, 4)), page)
    for master in find_masters():
        page = folder / "nbs" / "course" / f"{master.name}.ipynb"
        nbformat.write(nbformat.from_dict(make_notebook(master, student_source)), page)


def plainer(text):
    """What nbdev says of a function, without what changes with every build."""
    text = text.replace("__main__.", "")
    # of the functions inside it their addresses would be shown
    return re.sub(r"Engine\(name='plain'.*?>\)", "PLAIN", text)


def clean_outputs(page):
    """Take out of a page what only the machine that made it wrote there."""
    notebook = nbformat.read(page, 4)
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            for kind, text in output.get("data", {}).items():
                if isinstance(text, str) and kind.startswith("text/"): output.data[kind] = plainer(text)
    nbformat.write(notebook, page)


def make_player(name, path):
    """The player of a figure, by the command that anyone has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "self_improve", "figure", name, "--html", str(path)], check=True, cwd=ROOT)


def picture_height(player):
    """The height in pixels of a player's first picture, as its PNG says."""
    first = re.search(r"data:image/png;base64,([A-Za-z0-9+/\\n]{64})", player.read_text(encoding="utf-8")).group(1)
    # a PNG's width and height stand behind its signature and the name of its first part
    return struct.unpack(">II", base64.b64decode(first.replace("\\n", "")[:40])[16:24])[1]


def has_picture(cell):
    """Whether a cell has drawn something."""
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def add_player(page, name, height):
    """Put a player below the first picture of a figure's page."""
    notebook = nbformat.read(page, 4)
    first = next(i for i, cell in enumerate(notebook.cells) if has_picture(cell))
    frame = FRAME.format(name=name, height=height + CONTROLS)
    notebook.cells.insert(first + 1, nbformat.v4.new_markdown_cell(frame, id="player"))
    nbformat.write(notebook, page)


def make_pages(only=""):
    """The pages under _proc, without players: all, or those whose names match."""
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder))
        proc_nbs(folder, n_workers=0, file_re=only)
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.copytree(Path(folder) / "_proc", SITE)
    for page in SITE.rglob("*.ipynb"): clean_outputs(page)


def build():
    """All pages under _proc, with their players."""
    make_pages()
    for page in sorted((SITE / "nbs" / "figures").glob("*.ipynb")):
        if page.stem not in FIGURES: continue
        player = page.parent / "players" / f"{page.stem}.html"
        make_player(page.stem, player)
        add_player(page, page.stem, picture_height(player))


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
