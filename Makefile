# Each target makes what it needs; PYTHON, MODEL and RUN can be set: make demo MODEL=sesame/csm-1b
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= demo
MODEL ?=

.PHONY: demo gallery judges test test-full test-latest test-load lint

demo: $(VENV)/judges.done
	$(BIN)/python -m tts_kit demo --run $(RUN) $(if $(MODEL),--base $(MODEL))

gallery: $(VENV)/dev.done
	$(BIN)/python -m nbconvert --execute --to notebook --output-dir runs/gallery notebooks/0*.ipynb
	$(BIN)/python -m nbconvert --to html --CoalesceStreamsPreprocessor.enabled=True runs/gallery/0*.ipynb

judges: $(VENV)/judges.done

test: $(VENV)/dev.done
	$(BIN)/python -m pytest tests

test-load: $(VENV)/dev.done
	$(BIN)/python -m pytest tests/load --timeout 1800 -s

test-full: $(VENV)/dev.done
	$(BIN)/python -m pytest tests/full --timeout 3600 -s

test-latest:
	$(PYTHON) -m venv .venv-latest
	grep -v -e '^transformers' -e '^peft' constraints.txt > .venv-latest/constraints.txt
	.venv-latest/bin/pip install -q --upgrade transformers peft -r requirements.txt -r requirements-dev.txt \
		-r requirements-recordings.txt -r requirements-serve.txt -r requirements-judges.txt -c .venv-latest/constraints.txt
	.venv-latest/bin/pip install -q --no-deps -r requirements-judges-alone.txt
	.venv-latest/bin/python -m pytest tests

lint: $(VENV)/dev.done
	$(BIN)/ruff check .

$(VENV)/demo.done: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt -c constraints.txt
	touch $@

$(VENV)/judges.done: $(VENV)/demo.done requirements-judges.txt requirements-judges-alone.txt
	$(BIN)/pip install -q -r requirements-judges.txt -c constraints.txt
	$(BIN)/pip install -q --no-deps -r requirements-judges-alone.txt
	touch $@

$(VENV)/dev.done: $(VENV)/judges.done requirements-recordings.txt requirements-serve.txt requirements-dev.txt
	$(BIN)/pip install -q -r requirements-recordings.txt -r requirements-serve.txt -r requirements-dev.txt -c constraints.txt
	touch $@
