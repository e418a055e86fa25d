# `make run` and `make test` do all their set-up themselves.
HARNESS := .venv/bin/harness

.PHONY: run test check bench clean

run: .venv/.example data/digits
	$(HARNESS) run job.toml $(ARGS)

test: .venv/.test data/digits
	.venv/bin/python -m pytest $(ARGS)

check: .venv/.test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/.bench data/digits
	.venv/bin/python -m tests.bench $(ARGS)

data/digits: code/preprocessing.py | .venv/.example
	.venv/bin/python code/preprocessing.py --output data/digits
	@touch data/digits

.venv/.example: pyproject.toml scripts/setup
	scripts/setup example,debug,notebook
	@touch $@

.venv/.test: pyproject.toml scripts/setup | .venv/.example
	scripts/setup example,test,sagemaker,debug,notebook
	@touch $@

.venv/.bench: pyproject.toml scripts/setup | .venv/.test
	scripts/setup example,test,sagemaker,debug,notebook,bench
	@touch $@

clean:
	rm -rf .venv data build *.egg-info
