"""The Jupyter extension: `%load_ext harness`, and jobs as objects that show themselves."""

from __future__ import annotations

from harness.notebook._job import Job, job, jobs
from harness.notebook._magics import load_ipython_extension, unload_ipython_extension

__all__ = ["Job", "job", "jobs", "load_ipython_extension", "unload_ipython_extension"]
