"""The files around the code agree with it."""

import re
import tomllib
from pathlib import Path

import yaml

from marigold_jax import __main__, __version__

ROOT = Path(__file__).parents[2]


def test_the_version_has_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and "version" in project["project"]["dynamic"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == __version__


def test_hooks_run_what_the_tests_run():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    script = (ROOT / "launch" / "test.sh").read_text()
    assert entries and all(" ".join(entry.split()[:2]) in script for entry in entries)


def test_every_program_is_a_subcommand():
    programs = {path.stem for path in (ROOT / "marigold_jax").glob("*.py") if "terminal.run(" in path.read_text()}
    assert programs - {"__main__"} == set(__main__.PROGRAMS)


def test_contributing_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = re.findall(r"`((?:marigold_jax|tests|launch|configs)/[\w./]*)`", text)
    assert len(names) > 5 and all((ROOT / name).exists() for name in names)
