"""Where the harness keeps what must last: one directory, `$HARNESS_HOME`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import StoreError

__all__ = ["Home"]

VARIABLE = "HARNESS_HOME"


@dataclass(frozen=True)
class Home:
    """The state directory and the places in it. Nothing is made or read before `ensure`."""

    root: Path

    @classmethod
    def find(cls, env: Mapping[str, str] | None = None) -> Home:
        """`$HARNESS_HOME` of `env` (default: the process's), else the platform's user data directory."""
        value = (os.environ if env is None else env).get(VARIABLE)
        if value:
            return cls(Path(value).expanduser().absolute())
        from platformdirs import user_data_path

        return cls(user_data_path("harness", appauthor=False))

    @property
    def db(self) -> Path:
        """The SQLite file."""
        return self.root / "harness.db"

    @property
    def jobs(self) -> Path:
        """One directory per job, named as the job."""
        return self.root / "jobs"

    @property
    def s3(self) -> Path:
        """The local object store: `<bucket>/<key>`."""
        return self.root / "s3"

    @property
    def cache(self) -> Path:
        """What can be thrown away and made again."""
        return self.root / "cache"

    @property
    def warm(self) -> Path:
        """One directory per set of warm hosts; made by the first of them."""
        return self.root / "warm"

    @property
    def verify(self) -> Path:
        """One home for each `harness verify` that runs; made by the first of them."""
        return self.root / "verify"

    def job(self, name: str) -> Path:
        """The directory of the job of that name."""
        return self.jobs / name

    def logs(self, name: str, attempt: int) -> Path:
        """Where the log streams of one attempt of the job lie: `<host>.log` and its index."""
        return self.job(name) / "logs" / str(attempt)

    def ensure(self) -> Home:
        """Make the directories and see that they can be written; `self`, so that calls chain.

        Raises:
            StoreError: the place is read-only, belongs to someone else, or is not a directory.
        """
        place = self.root
        try:
            for place in (self.root, self.jobs, self.s3, self.cache):
                place.mkdir(parents=True, exist_ok=True)
            place = self.root
            # Only a file that was really made proves it: access(2) tells root yes to nearly everything.
            trial = place / f".trial-{os.urandom(8).hex()}"
            os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            trial.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreError(
                f"the state directory {self.root} can't be used ({reason}: {place}); "
                f"set {VARIABLE} to a directory that you can write"
            ) from error
        return self
