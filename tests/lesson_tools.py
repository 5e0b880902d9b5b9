"""Notebooks as the tests of lessons and of exercises read them."""
import configparser
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
NOTEBOOKS = [p for p in NOTEBOOKS if not any(part[0] in "._" for part in p.relative_to(ROOT).parts)]
LESSONS = [p for p in NOTEBOOKS if p.parent.name == "nbs"]


def repository():
    """The repository's name, as settings.ini has it."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["repository"]


def cells(notebook, kind=None):
    """The cells of a notebook, of one kind or all."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell):
    return "".join(cell["source"])


def exercises(notebook):
    """For each exercise its number, the index of its stub and of its check, and its solution."""
    found, all_cells = [], cells(notebook)
    for i, cell in enumerate(all_cells):
        number = re.match(r"# exercise (\d+)", source(cell)) if cell["cell_type"] == "code" else None
        if not number: continue
        rest = all_cells[i + 1:]
        check = next(j for j, c in enumerate(rest) if source(c).startswith(f"# check {number.group(1)}")) + i + 1
        folded = next(source(c) for c in all_cells[check:] if "<summary>Solution</summary>" in source(c))
        solution = re.search(r"<summary>Solution</summary>.*?```python\n(.*?)```", folded, re.S).group(1)
        assert "<summary>Hint</summary>" in folded, "no folded hint"
        found.append((number.group(1), i, check, solution))
    return found
