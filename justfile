# Short names for what is run most: https://just.systems. `just` alone lists them.

_list:
    @just --list

# Predict depth for the bundled pictures
demo *arguments:
    bash launch/demo.sh {{ arguments }}

# Style, types and every test
test *arguments:
    bash launch/test.sh {{ arguments }}

# The same without the slow tests and those that compare with PyTorch
fast *arguments:
    bash launch/test.sh fast {{ arguments }}

# Check the style, without changing files
lint:
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .

# Check the types
types:
    .venv/bin/mypy
