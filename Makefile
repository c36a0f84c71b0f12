# Everything a fresh checkout needs is installed into .venv by the first target that wants it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test soak lint types clean

demo: $(VENV)/installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

# Every property with fifty times as many examples as in the suite.
soak: $(VENV)/installed
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -m hypothesis -n auto --timeout 0 -v --hypothesis-show-statistics $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "gpuops needs Python 3.10 or newer; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Installing into $(VENV) (torch is several GB; a second checkout takes it from the cache) ..."
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[trainer,sandbox,dev]'
	@touch $@

clean:
	rm -rf $(VENV)
