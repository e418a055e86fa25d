"""smp.amp: the gradient scaler, which at degree 1 is PyTorch's."""

from torch.cuda.amp import GradScaler

__all__ = ["GradScaler"]
