"""What a container of a SageMaker training job finds and how its end is read: pure functions.

Clauses are those of `container-contract.md`. No I/O but `write_tree` and `relax_tree`. The folder
`toolkit` is a program of its own, what the image's `train` is where there is no image (the sandbox).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.contract import _messages as messages

if TYPE_CHECKING:
    from harness.contract._command import command, image_environment, toolkit_command
    from harness.contract._environment import platform_environment
    from harness.contract._failure import failure_reason
    from harness.contract._hosts import (
        PROCESSES,
        HostView,
        InstanceGroup,
        ec2_hostname,
        groups,
        host_names,
        host_view,
    )
    from harness.contract._paths import CODE, ML, checkpoint_path, submit_directory
    from harness.contract._tree import ChannelView, relax_tree, write_tree
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_command": ("command", "image_environment", "toolkit_command"),
            "_environment": ("platform_environment",),
            "_failure": ("failure_reason",),
            "_hosts": (
                "PROCESSES",
                "HostView",
                "InstanceGroup",
                "ec2_hostname",
                "groups",
                "host_names",
                "host_view",
            ),
            "_paths": ("CODE", "ML", "checkpoint_path", "submit_directory"),
            "_tree": ("ChannelView", "relax_tree", "write_tree"),
        },
    )

__all__ = [
    "CODE",
    "ML",
    "PROCESSES",
    "ChannelView",
    "HostView",
    "InstanceGroup",
    "checkpoint_path",
    "command",
    "ec2_hostname",
    "failure_reason",
    "groups",
    "host_names",
    "host_view",
    "image_environment",
    "messages",
    "platform_environment",
    "relax_tree",
    "submit_directory",
    "toolkit_command",
    "write_tree",
]
