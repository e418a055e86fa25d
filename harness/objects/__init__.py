"""The local S3: plain files at `<root>/<bucket>/<key>`, so that a channel is mounted, not copied."""

from harness.objects._archive import open_archive
from harness.objects._files import (
    Progress,
    copy_data,
    open_beneath,
    out_of_space,
    replacing,
    sort_hosts,
    walk_beneath,
)
from harness.objects._store import ObjectInfo, ObjectStore
from harness.objects._uri import all_plain, check_key, local_name, parse_uri, refuse_local_name

__all__ = [
    "ObjectInfo",
    "ObjectStore",
    "Progress",
    "all_plain",
    "check_key",
    "copy_data",
    "local_name",
    "open_archive",
    "open_beneath",
    "out_of_space",
    "parse_uri",
    "refuse_local_name",
    "replacing",
    "sort_hosts",
    "walk_beneath",
]
