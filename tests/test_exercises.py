"""Every exercise is solved once: with the folded solution in place of the stub, its check says so."""
import nbformat
import pytest
from lesson_tools import LESSONS, ROOT, exercises
from nbclient import NotebookClient


def solved(notebook):
    """The notebook with every stub replaced by the folded solution, and each check's cell number."""
    book, checks = nbformat.read(notebook, as_version=4), {}
    for number, stub, check, solution in exercises(notebook):
        book.cells[stub].source = solution
        checks[number] = check
    return book, checks


# what a solution needs of the cells before it takes its time: about as long as all notebooks take once more
@pytest.mark.parametrize("notebook", [p for p in LESSONS if exercises(p)], ids=lambda p: p.stem)
def test_solutions_pass_their_checks(notebook, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    book, checks = solved(notebook)
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT / "nbs"}}).execute()
    for number, check in checks.items():
        said = "".join(o.get("text", "") for o in book.cells[check].outputs)
        assert said.startswith("✓"), f"exercise {number}: {said}"
