"""Whole jobs as in `tests/jobs`."""

from __future__ import annotations

from tests.jobs.conftest import no_job_outlives_its_test, submit, unique, write_spec

__all__ = ["no_job_outlives_its_test", "submit", "unique", "write_spec"]
