"""Where a spec can run: `local` now."""
