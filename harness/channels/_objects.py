"""The content of a Pipe channel's objects, on its way into a FIFO."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import zlib
from collections.abc import Iterator
from typing import IO, Any, Final

from harness.channels import _augmented, _recordio
from harness.channels._data import Finder
from harness.channels._fifo import Writer
from harness.channels._pace import Pace
from harness.channels._remote import RemoteS3
from harness.channels._streams import Source, Stream, share
from harness.errors import ClientError
from harness.model import LocalOptions, Upload
from harness.objects import ObjectStore

__all__ = ["Library"]

_CHUNK: Final = 1 << 20
_IN_MEMORY: Final = 64 << 20
"""Bytes of a decompressed object that are kept in memory until its length is known."""


class Library:
    """Where the objects of one job's streams are. Safe to use from several threads."""

    def __init__(
        self, *, uploads: tuple[Upload, ...], objects: ObjectStore, local: LocalOptions, region: str | None
    ) -> None:
        self.local = local
        self._finder = Finder(uploads=uploads, objects=objects, local=local, region=region, client=None)
        self._lock = threading.Lock()

    def play(self, stream: Stream, host: str, epoch: int, writer: Writer, pace: Pace) -> None:
        """One epoch of the channel, as `host` gets it.

        Raises:
            BrokenPipeError: the reader closed the FIFO.
            ClientError: an object can't be read, or is not what the channel says that it is.
        """
        try:
            if stream.attributes:
                self._augmented(stream, host, epoch, writer, pace)
                return
            for number in share(stream, host, epoch, len(stream.sources)):  # contract: E14
                self._object(stream, stream.sources[number], writer, pace)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            what = f": {error.filename}" if error.filename else ""
            raise ClientError(
                f"Data download failed: channel {stream.channel} ({error.strerror or error}{what})"
            ) from error

    # ------------------------------------------------------------------------- parts

    def _augmented(self, stream: Stream, host: str, epoch: int, writer: Writer, pace: Pace) -> None:
        """The attributes of each line, in the order of AttributeNames (contract: E21)."""
        source = stream.sources[0]
        with self._local_copy(source) as file:
            lines = _augmented.offsets(file)
            pace.first_byte()
            for number in share(stream, host, epoch, len(lines)):
                file.seek(lines[number])
                where = f"line {number + 1} of {source.uri}"
                for value in _augmented.values(file.readline(), stream.attributes, where, stream.channel):
                    if isinstance(value, bytes):
                        _frame(stream, writer, value)
                    else:
                        self._object(stream, self._reference(value.uri, where, stream.channel), writer, pace)

    def _reference(self, uri: str, where: str, channel: str) -> Source:
        with self._lock:
            item = self._finder.object(uri)
        if item is None:
            raise ClientError(
                f"Data download failed: channel {channel} finds no object {uri}, which {where} refers to"
            )
        return Source(uri, item.location, item.remote)

    def _object(self, stream: Stream, source: Source, writer: Writer, pace: Pace) -> None:
        pace.first_byte()
        if source.location is not None:
            descriptor = os.open(source.location, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise ClientError(
                        f"Data download failed: channel {stream.channel}: {source.location} is no file any more"
                    )
                if stream.gzip:
                    with open(descriptor, "rb", buffering=0, closefd=False) as file:
                        self._chunks(stream, source, _pieces(file), None, writer)
                elif stream.recordio:
                    _wrap(status.st_size, writer, lambda count: _exactly(writer, descriptor, count, source))
                else:
                    writer.file(descriptor)
            finally:
                os.close(descriptor)
        else:
            assert source.remote is not None
            chunks = self._remote().stream(source.remote)
            self._chunks(stream, source, chunks, source.remote.size, writer)

    def _chunks(
        self, stream: Stream, source: Source, chunks: Iterator[bytes], size: int | None, writer: Writer
    ) -> None:
        if stream.gzip:
            chunks = _decompressed(chunks, source, stream.channel)
            size = None
        if not stream.recordio:
            for chunk in chunks:
                writer.data(chunk)
        elif size is not None:
            rest = _Rest(chunks)
            _wrap(size, writer, lambda count: rest.send(writer, count))
        else:  # the frame tells the length before the data
            with tempfile.SpooledTemporaryFile(_IN_MEMORY) as spool:
                for chunk in chunks:
                    spool.write(chunk)
                size = spool.tell()
                spool.seek(0)
                rest = _Rest(_pieces(spool))
                _wrap(size, writer, lambda count: rest.send(writer, count))

    @contextlib.contextmanager
    def _local_copy(self, source: Source) -> Iterator[IO[bytes]]:
        """The object as a file to seek in."""
        if source.location is not None:
            with open(source.location, "rb") as file:  # noqa: PTH123
                yield file
            return
        assert source.remote is not None
        with tempfile.TemporaryFile() as copy:
            for chunk in self._remote().stream(source.remote):
                copy.write(chunk)
            copy.seek(0)
            yield copy

    def _remote(self) -> RemoteS3:
        """Real S3, opened at the first need."""
        with self._lock:
            remote = self._finder.remote
        assert remote is not None  # the object was listed there
        return remote


class _Rest:
    """What is left of an object that comes in chunks of any size."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def send(self, writer: Writer, count: int) -> None:
        """The next `count` bytes, which are there."""
        while count:
            if not self._rest:
                self._rest = memoryview(next(self._chunks))
            piece = self._rest[:count]
            writer.data(piece)
            self._rest = self._rest[len(piece) :]
            count -= len(piece)


def _wrap(size: int, writer: Writer, send: Any) -> None:
    """A record of `size` bytes, of which `send` sends the next that many (contract: E15, E16)."""
    for header, length in _recordio.frames(size):
        writer.data(header)
        send(length)
    writer.data(_recordio.padding(size))


def _frame(stream: Stream, writer: Writer, data: bytes) -> None:
    if stream.recordio:
        _wrap(len(data), writer, lambda _: writer.data(data))
    else:
        writer.data(data)


def _exactly(writer: Writer, descriptor: int, count: int, source: Source) -> None:
    if writer.file(descriptor, count) != count:
        raise ClientError(
            f"Data download failed: {source.location} became shorter while it was read; leave the data alone "
            "while a job reads it"
        )


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_CHUNK), b"")


def _decompressed(chunks: Iterator[bytes], source: Source, channel: str) -> Iterator[bytes]:
    """The members of a gzip file, one after the other (contract: E17)."""
    from isal import isal_zlib

    name = source.location or source.uri

    def bad(why: object) -> ClientError:
        return ClientError(
            f"Data download failed: channel {channel} has CompressionType Gzip, and {name} is no gzip file ({why})"
        )

    inflate = isal_zlib.decompressobj(wbits=31)
    started = False
    for chunk in chunks:
        data = chunk
        while data:
            if inflate.eof:
                data = data.lstrip(b"\0")  # gzip's own padding
                if not data:
                    break
                inflate = isal_zlib.decompressobj(wbits=31)
            started = True
            try:
                out = inflate.decompress(data)
            except zlib.error as error:
                raise bad(error) from error
            if out:
                yield out
            data = inflate.unused_data if inflate.eof else b""
    if started and not inflate.eof:
        raise bad("it ends too early")
