"""One command for all programs."""

import os
import subprocess
import sys

import pytest

from marigold_jax import __main__, __version__

# Names the modules that a program brings along, after it has run.
LOADED = """
import sys
from marigold_jax import __main__
sys.argv[:] = ["marigold-jax", "predict", "--help"]
try:
    __main__.main()
finally:
    print("loaded:", *(name for name in __main__.PROGRAMS if f"marigold_jax.{name}" in sys.modules), file=sys.stderr)
    print("jax:", "jax" in sys.modules, file=sys.stderr)
"""


def run(*arguments):
    command = [sys.executable, "-m", "marigold_jax", *arguments]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True)


def called(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/marigold-jax", *arguments])
    return __main__.main(), capsys.readouterr()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_the_programs(arguments, monkeypatch, capsys):
    status, said = called(monkeypatch, capsys, *arguments)
    lines = said.out.splitlines()
    assert status == 0 and lines[0] == "usage: marigold-jax PROGRAM ..."
    for name in __main__.PROGRAMS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1


def test_the_version(monkeypatch, capsys):
    assert called(monkeypatch, capsys, "--version")[1].out == f"marigold_jax {__version__}\n"


def test_an_unknown_program_is_one_line(monkeypatch, capsys):
    status, said = called(monkeypatch, capsys, "predcit")
    assert status == 2 and said.out == "" and len(said.err.splitlines()) == 1
    assert said.err.startswith("marigold-jax: wanted one of predict, train, ") and "got predcit" in said.err


def test_errors_name_the_command_that_was_given():
    done = run("convert", "--nonsense")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("python -m marigold_jax convert: ")


def test_only_the_chosen_program_is_imported():
    done = subprocess.run([sys.executable, "-c", LOADED], env=os.environ, capture_output=True, text=True)
    # `runpy` runs it as __main__, so that it is not even loaded under its own name.
    assert done.returncode == 0 and done.stdout.startswith("usage: marigold-jax predict ")
    assert done.stderr.splitlines()[-2:] == ["loaded:", "jax: False"], done.stderr
