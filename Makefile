# Each target makes what it needs; PYTHON, MODEL and RUN can be set: make demo MODEL=sesame/csm-1b
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= demo
MODEL ?=

.PHONY: demo test test-full test-latest lint

demo: $(VENV)/demo.done
	$(BIN)/python -m tts_kit demo --run $(RUN) $(if $(MODEL),--base $(MODEL))

test: $(VENV)/dev.done
	$(BIN)/python -m pytest tests

test-full: $(VENV)/dev.done
	$(BIN)/python -m pytest tests/full --timeout 3600 -s

test-latest:
	$(PYTHON) -m venv .venv-latest
	grep -v -e '^transformers' -e '^peft' constraints.txt > .venv-latest/constraints.txt
	.venv-latest/bin/pip install -q --upgrade transformers peft -r requirements.txt -r requirements-dev.txt \
		-c .venv-latest/constraints.txt
	.venv-latest/bin/python -m pytest tests

lint: $(VENV)/dev.done
	$(BIN)/ruff check .

$(VENV)/demo.done: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt -c constraints.txt
	touch $@

$(VENV)/dev.done: $(VENV)/demo.done requirements-dev.txt
	$(BIN)/pip install -q -r requirements-dev.txt -c constraints.txt
	touch $@
