"""SMDDP for PyTorch: `torch_smddp` (the backend), `distributed` and `parallel` (the older API)."""
