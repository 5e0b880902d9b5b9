"""Reads settings.ini, the one source of version, requirements, extras and scripts."""
from configparser import ConfigParser
from pathlib import Path
from shlex import split
from shutil import copyfile, copytree

from setuptools import setup
from setuptools.command.build_py import build_py

# what `self-improve lessons` copies; a test compares with self_improve.actions.LESSON_FILES
LESSON_FILES = ("*.ipynb", "glossary.md", "*.png", "figures/*.ipynb")


class BuildWithData(build_py):
    """Ships data/ and the lessons inside the package; in the tree both are kept once, at the top."""
    def run(self):
        super().run()
        # an editable install finds them in the tree
        if self.editable_mode: return
        package = Path(self.build_lib, "self_improve")
        copytree("data", package / "data", dirs_exist_ok=True)
        lessons = package / "lessons"
        for pattern in LESSON_FILES:
            for file in sorted(Path("nbs").glob(pattern)):
                copy = lessons / file.relative_to("nbs")
                copy.parent.mkdir(parents=True, exist_ok=True)
                copyfile(file, copy)


parser = ConfigParser(interpolation=None)
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
setup(
    version=cfg["version"], description=cfg["description"], author=cfg["author"],
    python_requires=">=" + cfg["min_python"],
    install_requires=split(cfg["requirements"]),
    extras_require={k.removesuffix("_requirements"): split(v) for k, v in cfg.items() if k.endswith("_requirements")},
    entry_points={"console_scripts": split(cfg["console_scripts"])},
    cmdclass={"build_py": BuildWithData},
)
