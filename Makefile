# `make demo` and `make test` each set up all they need in a virtual environment of their own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The tests of the Slicer module also run on the MRML of the oldest Slicer that is supported.
OLDEST := $(VENV)/slicer-5.12

.PHONY: demo test lint benchmark clean system-libraries

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train]"
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps --target $(OLDEST) slicer-core==5.12.4.0 vtk==9.6.0
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python Testing/demo.py --output-dir demo-output

test: $(VENV)/.tested system-libraries lint
	$(BIN)/python -m pytest
	PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest Testing/scene

system-libraries:
	sh Testing/system_libraries.sh

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

benchmark: $(VENV)/.installed
	$(BIN)/python Testing/benchmark/pipeline.py

clean:
	rm -rf $(VENV) demo-output build
