"""README.md and docs/: links and files that exist, flags that the programs have, and a graph that is the tested one."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from test_floors import MAY_IMPORT, PROGRAMS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "launch" / "demo" / "README.md"]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
COMMAND = re.compile(r"^ *(?:marigold-jax |python -m marigold_jax\.)(\w+) (.*)$", re.MULTILINE)
CONFIGURED = ("train", "aot", "ablate")  # programs that also take --config.section.key


def text_of(name):
    return (ROOT / name).read_text()


def anchors(text):
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    folder = (ROOT / name).parent
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = folder / file if file else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_files_of_the_repository_exist(name):
    """Those in backticks or commands: marigold_jax/a/b.py, configs/a.py, benchmarks/a.py, launch/a.sh, tests/a.py."""
    files = re.findall(r"\b((?:marigold_jax|configs|benchmarks|launch|tests)/[\w/\-]+\.\w+)", text_of(name))
    assert not [file for file in files if not (ROOT / file).exists()]


def test_every_document_is_in_the_index():
    linked = set(re.findall(r"\]\((\w+\.md)\)", text_of("docs/README.md")))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("name", NAMES)
def test_commands_use_flags_that_exist(name, capsys):
    commands = COMMAND.findall(text_of(name).replace("\\\n", " "))
    for program, words in commands:
        assert program in PROGRAMS
        known = known_flags(program, words.split()[:1] if program == "prepare" else [], capsys)
        flags = re.findall(r"(?<![\w.-])--[\w.]+", words.partition(" #")[0])
        configured = [flag for flag in flags if flag.startswith("--config.") and program in CONFIGURED]
        assert set(flags) - set(configured) <= known, f"{program} {words}"


def known_flags(program, kind, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(f"marigold_jax.{program}").main([*kind, "--help"])
    return set(re.findall(r"--\w+", capsys.readouterr().out))


# ------------------------------------------------------------------------------------------------ the guide to the code


def arrows():
    """The table of allowed imports, as few arrows as say the same: those that follow from others are left out."""
    below = {name: set(others) for name, others in MAY_IMPORT.items() if name != "__init__" and name not in PROGRAMS}
    for program in PROGRAMS:
        group = "prepare" if program == "prepare" else "programs"
        below[group] = set(MAY_IMPORT[program])

    def reached(name):
        return set().union(*({other} | reached(other) for other in below[name]))

    return {
        (name, other)
        for name, others in below.items()
        for other in others
        if not any(other in reached(between) for between in others - {other})
    }


def test_the_drawn_graph_is_the_tested_one():
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)$", text_of("docs/layout.md"), re.MULTILINE))
    wanted = arrows()
    assert drawn == wanted, "\n".join(f"    {a} --> {b}" for a, b in sorted(wanted))


def test_the_guide_names_functions_that_exist():
    steps = re.findall(r"`([\w/]+\.py): ([\w., ]+)`", text_of("docs/layout.md"))
    assert len(steps) > 12
    for file, names in steps:
        path = ROOT / "marigold_jax" / file
        assert path.is_file(), file
        defined = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Assign):
                defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        for name in re.split(r"[., ]+", names):
            assert name in defined, f"{file} has no {name}"
