# Needs python3 (3.11 or newer), make and a C++ compiler. Everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: .venv demo gallery bench test lint clean

.venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install torch==2.13.0 -c constraints.txt  # first and alone: the plain CPU build
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/.installed  # the README's picture, by the built-in model
	$(BIN)/paella generate \
	  "a fox on a green background" \
	  "a rocket on a black background" \
	  "a puppy on a light blue background" \
	  "coche sobre fondo amarillo" \
	  "three stars on a purple background" \
	  "two penguins on a light blue background" \
	  "a crown above a panda on a pink background" \
	  "a fox to the left of a mushroom on a green background" \
	  --output docs/images/demo.png

gallery: .venv/.installed  # the pictures of docs/gallery.md
	$(BIN)/python docs/gallery.py

bench: .venv/.installed  # the tables and plots of docs/performance.md; leave the machine alone meanwhile
	$(BIN)/python benchmarks/sampling.py --json runs/bench/sampling.json
	$(BIN)/python benchmarks/start_up.py --json runs/bench/start_up.json
	$(BIN)/python benchmarks/against_transformer.py --json runs/bench/against_transformer.json
	$(BIN)/python benchmarks/training.py --json runs/bench/training.json
	$(BIN)/python benchmarks/plot.py runs/bench docs/images

test: .venv/.installed
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  # what tests and builds leave behind; the environment, runs and pictures stay
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
