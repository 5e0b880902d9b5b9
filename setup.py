"""Reads settings.ini, the one source of version, requirements, extras and scripts."""
from configparser import ConfigParser
from pathlib import Path
from shlex import split
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    """Ships data/ inside the package; in the tree it is kept once, at the top, where an editable install finds it."""
    def run(self):
        super().run()
        if not self.editable_mode: copytree("data", Path(self.build_lib, "self_improve", "data"), dirs_exist_ok=True)


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
