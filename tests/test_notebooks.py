"""Every notebook runs as it is; after its last cell, each exercise's folded solution passes its check."""
import nbformat
import pytest
from lesson_tools import NOTEBOOKS, ROOT, exercises
from nbclient import NotebookClient
from nbdev.config import get_config

# cells with one of these marks are left out, as nbdev-test does
FLAGS = get_config(path=ROOT).tst_flags.split()


class Client(NotebookClient):
    """Runs the cells and then asks the kernel nothing: a reply that is lost there would cost the whole timeout."""
    async def async_wait_for_reply(self, msg_id, cell=None): return None


def left_out(cell):
    """Whether a code cell is marked not to run in tests."""
    return any(line[2:].strip() in FLAGS for line in cell.source.splitlines() if line.startswith("#|"))


def runnable(notebook):
    """The notebook without the cells that tests leave out, and behind its end every solution with its check."""
    book = nbformat.read(notebook, as_version=4)
    extra = []
    for number, _, check, solution in exercises(notebook):
        extra.append((number, solution, book.cells[check].source))
    book.cells = [c for c in book.cells if c.cell_type == "code" and not left_out(c)]
    answers = {}
    for number, solution, check in extra:
        book.cells += [nbformat.v4.new_code_cell(solution), nbformat.v4.new_code_cell(check)]
        answers[number] = book.cells[-1]
    return book, answers


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_and_its_solutions_pass(notebook, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    book, answers = runnable(notebook)
    Client(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": notebook.parent}}).execute()
    for number, check in answers.items():
        said = "".join(o.get("text", "") for o in check.outputs)
        assert said.startswith("✓"), f"exercise {number}: {said}"
