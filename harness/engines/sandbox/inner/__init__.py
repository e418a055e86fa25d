"""What runs in the launcher's own process: standard library only, and of that only what imports fast.

The launcher is started as `python -I -S` with this package's parent on its path, so nothing here may import
from the harness. `json`, `typing`, `signal`, `socket`, `shutil` and `subprocess` cost more than all the mounts
together: those that are needed at all are imported where a host pays for them only if it uses them.
"""
