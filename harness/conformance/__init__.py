"""Somebody else's image, and our own code, measured by the container contract."""
