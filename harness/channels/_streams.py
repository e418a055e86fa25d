"""What goes through a channel's FIFOs, for the process that feeds them: it is told in JSON."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from harness._values import dataclass
from harness.channels._items import Item
from harness.channels._remote import RemoteObject
from harness.model import JsonObject

__all__ = ["Source", "Stream", "share"]


class Source(NamedTuple):
    """One object of a stream: a file of this machine, or an object of real S3."""

    uri: str
    location: str | None
    remote: RemoteObject | None = None

    @staticmethod
    def of(item: Item, bucket: str) -> Source:
        return Source(f"s3://{bucket}/{item.key}", item.location, item.remote)

    def row(self) -> list[Any]:
        """Ready for JSON."""
        if self.remote is None:
            return [self.uri, self.location]
        return [self.uri, None, self.remote.bucket, self.remote.key, self.remote.etag, self.remote.size]

    @staticmethod
    def from_row(row: Sequence[Any]) -> Source:
        uri, location, *remote = row
        return Source(uri, location, RemoteObject(*remote) if remote else None)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A Pipe channel: what each of its epochs is made of."""

    channel: str
    hosts: tuple[str, ...]
    """Those that get the channel, in their order."""
    sharded: bool
    """Each gets its share (contract: E23); else all get everything (contract: E22)."""
    seed: int | None
    """ShuffleConfig's (contract: E24)."""
    gzip: bool
    """Objects are decompressed (contract: E17)."""
    recordio: bool
    """Each object, or each attribute, is a RecordIO record (contract: E15)."""
    sources: Sequence[Source]
    """The objects in their order, or the one augmented manifest."""
    attributes: tuple[str, ...] = ()
    """AttributeNames: `sources` is an augmented manifest (contract: E21)."""

    def to_json(self) -> JsonObject:
        return {
            "channel": self.channel,
            "hosts": list(self.hosts),
            "sharded": self.sharded,
            "seed": self.seed,
            "gzip": self.gzip,
            "recordio": self.recordio,
            "sources": [source.row() for source in self.sources],
            "attributes": list(self.attributes),
        }

    @staticmethod
    def from_json(told: JsonObject) -> Stream:
        return Stream(
            **told
            | {
                "hosts": tuple(told["hosts"]),
                "sources": [Source.from_row(row) for row in told["sources"]],
                "attributes": tuple(told["attributes"]),
            }
        )


def share(stream: Stream, host: str, epoch: int, count: int) -> Sequence[int]:
    """Which of `count` objects (or lines) `host` gets in that epoch, by number and in their order.

    Shuffled anew for each epoch, and before the hosts get their shares: what moves from host to host between
    two epochs is still disjoint and complete in each. contract: E23, E24
    """
    order: Sequence[int] = range(count)
    if stream.seed is not None:
        shuffled = list(order)
        random.Random(f"{stream.seed}/{epoch}").shuffle(shuffled)
        order = shuffled
    return order[stream.hosts.index(host) :: len(stream.hosts)] if stream.sharded else order
