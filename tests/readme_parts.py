"""The parts of the README and of the leaderboard that are computed from records.

`python tests/readme_parts.py` writes them anew, and the README's picture of four panels; tests/test_readme.py compares.
"""
import re
from pathlib import Path

from self_improve.blocks import level_text
from self_improve.claims import control_of, control_text, guess_text, ledger, ledger_text, load_claims
from self_improve.climb import board_text
from self_improve.config import flatten
from self_improve.experiments import experiment
from self_improve.figures import command_for
from self_improve.gallery import draw_figure, figure_rows
from self_improve.paper import DEPARTURES
from self_improve.plots import results
from self_improve.records import Run, find_run, recorded, repeats
from self_improve.tables import levels_beyond, lowest_accuracy, minutes, percent, tuned_seeds, unfiltered_table

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"


def table(rows):
    """Rows as a table of Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *[list(row.values()) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paper_lengths(folder):
    """Task → the length that the paper's model is said to reach."""
    lengths = {}
    for claim in load_claims(folder):
        if claim.paper and claim.paper["rule"] == "reaches": lengths[claim.runs["task"]] = claim.paper["level"]
    return lengths


def laptop_text(folder):
    """What runs of scale laptop reached, beside the paper's lengths."""
    lengths, found = paper_lengths(folder), {}
    for entry in recorded(folder):
        if entry["scale"] == "laptop": found.setdefault(entry["experiment"], []).append(Run(entry["folder"]))
    said = []
    for task, runs in found.items():
        # the one that came furthest, of these the quickest
        best = min(runs, key=lambda run: (-run.frontier, minutes(run.rounds)))
        lowest, measured = percent(lowest_accuracy(best.rounds)).strip(), best.rounds[-1].accuracy
        voted = min(measured[str(level)]["ensemble"] for level in range(best.config.low, best.frontier + 1))
        seed = best.config.data_seed
        chosen = ", with which the settings were chosen" if seed in tuned_seeds(task, "laptop", folder) else ""
        said.append(f"**{task.replace('_', ' ')}** from {best.config.high} digits to {best.frontier} in "
                    f"{minutes(best.rounds):.0f} minutes, at least {lowest} right at every length and "
                    f"{percent(voted).strip()} by the vote of its models (seed "
                    f"{seed}{chosen}; the paper's model, on a GPU: {lengths[task]})")
    return "No run of scale laptop is recorded yet." if not said else f"On two CPU cores: {'; '.join(said)}."


def settings_that_differ(run):
    """Setting → value, where a recorded run has another one than its experiment at its scale; seeds left out."""
    usual, own = flatten(experiment(run.experiment, run.scale)), flatten(run.config)
    changed = {}
    for key, value in own.items():
        if value != usual[key] and key not in ("model_seed", "data_seed"): changed[key] = value
    # a run may have been let go on
    made = len(run.rounds) - 1
    if made > usual["loop.rounds"]: changed["loop.rounds"] = made
    return changed


def farthest(run):
    """The frontier, and of products how many pairs beyond it."""
    beyond = len(levels_beyond(run.rounds))
    return level_text(run.frontier) + (f" + {beyond} pairs" if beyond else "")


def record_rows(folder):
    """A row for each recorded run: the command that makes it, what made it, and whether the present code would."""
    rows, bits = [], {True: "yes", False: "no", None: "?"}
    for path in sorted((folder / "runs").glob("*/config.json")):
        run = Run(path.parent)
        info, spent = run.info, sum(sum(r.seconds.values()) for r in run.rounds)
        command = command_for(run.experiment, run.scale, run.config.data_seed, settings_that_differ(run))
        rows.append({
            "command": f"`{command}`", "rounds": str(len(run.rounds) - 1), "to level": farthest(run),
            "minutes": f"{spent / 60:.0f}", "processor": info["hardware"], "threads": str(info["threads"]),
            "commit": info["commit"][:7], "same code": bits[repeats(run)],
        })
    return sorted(rows, key=lambda row: row["command"])


def parts():
    """File → mark → what stands behind it; a text of several lines stands on lines of its own."""
    hops = find_run(experiment("maze_hops"), runs=None)
    readme = {
        "laptop": laptop_text(DATA), "results": results(DATA), "unfiltered": unfiltered_table(DATA),
        "claims": ledger_text(ledger(DATA)),
        "guess": guess_text(hops), "control": control_text(hops, control_of(hops.config)),
        "figures": table(figure_rows(DATA)),
    }
    departures = []
    for d in DEPARTURES: departures.append({"what": d.name, "released": d.released, "here": d.here, "why": d.why})
    return {ROOT / "README.md": readme, DATA / "climb100" / "README.md": {"board": board_text(DATA)},
            ROOT / "nbs" / "differences.md": {"departures": table(departures)},
            ROOT / "nbs" / "reproducibility.md": {"records": table(record_rows(DATA))}}


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
