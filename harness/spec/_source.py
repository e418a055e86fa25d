"""The user's code: source_dir, entry_point, dependencies, checked before anything is packed."""

from __future__ import annotations

import os
from pathlib import Path

from harness._values import dataclass
from harness.model import Upload
from harness.spec._draft import Words
from harness.spec._names import join

ARCHIVE = "sourcedir.tar.gz"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The code of a job: where it will be, what is started in it, what has to be uploaded."""

    uri: str
    program: str
    upload: Upload | None


def find_source(words: Words, *, job_name: str, output_path: str) -> Source | None:
    """The job's code, or None when the spec has no entry point and the image runs as it is.

    Raises:
        SpecError: a file or directory is not there, is of the wrong kind, or holds a dangling link.
    """
    entry, directory = words.get("entry_point"), words.get("source_dir")
    if entry is None:
        given = [word for word in ("source_dir", "dependencies") if word in words]
        if given:
            raise words.error(
                f"{given[0]} is given without entry_point, the script in it that is to be started"
            )
        return None
    if entry.startswith("s3://"):
        raise words.error(f"entry_point {entry} must be a local script, not an S3 URI")
    if directory is not None and directory.lower().startswith("s3://"):
        return Source(uri=directory, program=entry, upload=None)
    location = words.get("code_location") or "s3://" + output_path.split("://", 1)[-1].split("/", 1)[0]
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    uri = f"s3://{bucket}/{join(prefix, job_name, 'source', ARCHIVE)}"
    dependencies = tuple(_dependency(words, text) for text in words.get("dependencies", ()))
    if directory is None:
        script = _entry(words, words.path(entry), entry)
        upload = Upload(
            path=script, uri=uri, kind="source", entry_point=script.name, dependencies=dependencies
        )
        return Source(uri=uri, program=script.name, upload=upload)
    folder = _directory(words, directory)
    if Path(entry).is_absolute() or ".." in Path(entry).parts:
        raise words.error(f"entry_point {entry} must be a path inside source_dir {directory}")
    _entry(words, words.path(str(folder / entry)), entry, directory)
    upload = Upload(path=folder, uri=uri, kind="source", entry_point=entry, dependencies=dependencies)
    return Source(uri=uri, program=entry, upload=upload)


def is_editor_lock(path: Path) -> bool:
    """Whether it is what Emacs puts beside a file with unsaved changes: a link `.#name` to nothing.

    The SDK's archive fails on one with FileNotFoundError; ours leaves it out, and says so.
    """
    return path.name.startswith(".#") and path.is_symlink() and not path.exists()


def _entry(words: Words, path: Path, entry: str, directory: str | None = None) -> Path:
    if path.is_file():
        return path
    where = f"in source_dir {directory} ({path.parent})" if directory else f"at {path}"
    if path.is_dir():
        raise words.error(f"entry_point {entry} {where} is a directory, not a script")
    raise words.error(f"entry_point {entry} was not found {where}")


def _directory(words: Words, text: str) -> Path:
    folder = words.path(text)
    if not folder.exists():
        what = "is a dangling link" if folder.is_symlink() else "does not exist"
        raise words.error(f"source_dir {text} {what} ({folder})")
    if not folder.is_dir():
        raise words.error(
            f"source_dir {text} is a file; it must be a directory that has the entry point in it"
        )
    _readable_tree(words, folder, f"source_dir {text}")
    return folder


def _dependency(words: Words, text: str) -> Path:
    path = words.path(text)
    if not path.exists():
        raise words.error(f"dependency {text} does not exist ({path})")
    if path.is_dir():
        _readable_tree(words, path, f"dependency {text}")
    return path


def _readable_tree(words: Words, folder: Path, what: str) -> None:
    """The archive follows links, as the SDK's does: one that leads nowhere would break it half-way."""

    def unreadable(error: OSError) -> None:
        raise words.error(f"{what} can't be read: {error.strerror} ({error.filename})") from error

    for root, directories, files in os.walk(folder, onerror=unreadable):
        for name in (*directories, *files):
            path = Path(root, name)
            if path.is_symlink() and not path.exists() and not is_editor_lock(path):
                raise words.error(
                    f"{what} has a dangling link: {path.relative_to(folder)} points to {path.readlink()}, "
                    "which is not there; remove it or mend it"
                )
