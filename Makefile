# Two commands do all the set-up: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: setup demo test check format bench

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tellapart needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	rm -rf $(DEMO)
	$(BIN)/tellapart train digits --run.dir $(DEMO)
	@echo
	$(BIN)/tellapart evaluate $(DEMO)
	@echo
	$(BIN)/tellapart predict $(DEMO) examples/digit-3.png --top 3
	@echo
	@$(BIN)/python examples/demo_end.py $(DEMO)

test: setup
	$(BIN)/pytest -n 2 --dist worksteal -q

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist worksteal -q --cov --cov-report=term:skip-covered --cov-fail-under=90

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python bench/tutorial_speed.py
