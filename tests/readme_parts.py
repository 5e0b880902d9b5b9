"""The parts of the README and of the leaderboard that are computed from records.

`python tests/readme_parts.py` writes them anew, and the README's picture of four panels; tests/test_readme.py compares.
"""
import re
from pathlib import Path

from self_improve.claims import control_of, control_text, guess_text, ledger, ledger_text
from self_improve.climb import board_text
from self_improve.experiments import experiment
from self_improve.gallery import draw_figure, figure_rows
from self_improve.paper import DEPARTURES
from self_improve.plots import results
from self_improve.records import find_run
from self_improve.tables import unfiltered_table

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"


def table(rows):
    """Rows as a table of Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *[list(row.values()) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parts():
    """File → mark → what stands behind it; a text of several lines stands on lines of its own."""
    hops = find_run(experiment("maze_hops"), runs=None)
    readme = {
        "results": results(DATA), "unfiltered": unfiltered_table(DATA), "claims": ledger_text(ledger(DATA)),
        "guess": guess_text(hops), "control": control_text(hops, control_of(hops.config)),
        "figures": table(figure_rows(DATA)),
    }
    departures = []
    for d in DEPARTURES: departures.append({"what": d.name, "released": d.released, "here": d.here, "why": d.why})
    return {ROOT / "README.md": readme, DATA / "climb100" / "README.md": {"board": board_text(DATA)},
            ROOT / "nbs" / "differences.md": {"departures": table(departures)}}


def filled(text, computed):
    """A text with its computed parts as the records say."""
    for mark, said in computed.items():
        pattern = rf"(<!-- {mark} -->)(\n?)(.*?)(\n?)(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, said=said: m[1] + m[2] + said + m[4] + m[5], text, flags=re.S)
        assert count == 1, f"{mark}: {count} places"
    return text


if __name__ == "__main__":
    for path, computed in parts().items():
        path.write_text(filled(path.read_text(encoding="utf-8"), computed), encoding="utf-8")
    (ROOT / "nbs" / "overview.png").write_bytes(draw_figure("overview")._repr_png_())
