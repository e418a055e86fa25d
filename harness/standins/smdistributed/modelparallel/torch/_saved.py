"""Checkpoints: `smp.save` and `smp.load` for one object, and whole checkpoints with a tag."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from . import _core
from ._core import state

_NEWEST = "newest"


def save(obj: Any, f: str, partial: bool = True, **options: Any) -> None:
    """As torch.save; a part has this rank's mp_rank behind its file's name."""
    torch.save(obj, _name(f, partial), **options)


def load(f: str, map_location: Any = None, partial: bool = True, **options: Any) -> Any:
    """As torch.load, of what `save` wrote."""
    return torch.load(_name(f, partial), map_location=map_location, **options)


def _name(path: str, partial: bool) -> str:
    if not isinstance(path, str):
        raise TypeError("smp.save and smp.load take the name of a file, as a string")
    return f"{path}_{_core.mp_rank()}" if partial else path


def save_checkpoint(
    path: str,
    tag: str,
    partial: bool = True,
    model: Any = None,
    optimizer: Any = None,
    user_content: Any = None,
    translate_if_full: bool = True,
    num_kept_partial_checkpoints: int | None = None,
) -> None:
    """Model, optimizer and `user_content` below `path`, as parts in a folder or as one file.

    Every rank calls it; the first replica writes.
    """
    del translate_if_full
    if _core.rdp_rank() == 0:
        folder = os.path.join(path, f"{tag}_partial")
        os.makedirs(folder if partial else path, exist_ok=True)
        if partial:
            if model is not None:
                torch.save(model.local_state_dict(), _part(folder, "model"))
            if optimizer is not None:
                torch.save(optimizer.local_state_dict(), _part(folder, "optimizer"))
            if user_content is not None:
                torch.save(user_content, os.path.join(folder, "user_content.pt"))
        else:
            if model is not None:
                torch.save(model.state_dict(), os.path.join(path, tag))
            if user_content is not None:
                torch.save(user_content, os.path.join(path, f"user_content_{tag}"))
        with open(os.path.join(path, _NEWEST), "w", encoding="utf-8") as file:
            file.write(f"{tag}_partial" if partial else tag)
        if partial and num_kept_partial_checkpoints is not None:
            _thin_out(path, num_kept_partial_checkpoints)
    _core.barrier()


def _thin_out(path: str, kept: int) -> None:
    found = [entry for entry in os.scandir(path) if entry.name.endswith("_partial") and entry.is_dir()]
    found.sort(key=lambda entry: entry.stat().st_mtime_ns)
    for entry in found[: max(0, len(found) - kept)]:
        shutil.rmtree(entry.path)


def _part(folder: str, what: str) -> str:
    ranks = (_core.pp_rank(), _core.tp_rank())
    return os.path.join(folder, "_".join([what, *map(str, ranks)]) + ".pt")


class _Resume:
    """A checkpoint on its way into a model and an optimizer, whichever of them are made first."""

    def __init__(self, model: Any, optimizer: Any, strict: bool) -> None:
        self._model, self._optimizer, self._strict = model, optimizer, strict

    def into_model(self, model: Any) -> None:
        if self._model is not None:
            model.load_state_dict(self._model, strict=self._strict)
            self._model = None

    def into_optimizer(self, optimizer: Any) -> None:
        if self._optimizer is not None:
            optimizer.load_state_dict(self._optimizer)
            self._optimizer = None


def resume_from_checkpoint(
    path: str,
    tag: str | None = None,
    partial: bool = True,
    strict: bool = True,
    load_optimizer: bool = True,
    **_without_effect: Any,
) -> Any:
    """Load the checkpoint of `tag`, or the newest; what was given as its `user_content`.

    FileNotFoundError: there is none.
    """
    if tag is None:
        with open(os.path.join(path, _NEWEST), encoding="utf-8") as file:
            name = file.read().strip()
        partial = name.endswith("_partial")
        tag = name[: -len("_partial")] if partial else name
    place = _core.device()
    optimizer = None
    if partial:
        folder = os.path.join(path, f"{tag}_partial")
        model = torch.load(_part(folder, "model"), map_location=place)
        if load_optimizer and os.path.exists(_part(folder, "optimizer")):
            optimizer = torch.load(_part(folder, "optimizer"), map_location=place)
        content = os.path.join(folder, "user_content.pt")
    else:
        model = torch.load(os.path.join(path, tag), map_location=place)
        content = os.path.join(path, f"user_content_{tag}")
    state.resume = _Resume(model, optimizer, strict)
    if state.model is not None:
        state.resume.into_model(state.model)
    if state.optimizer is not None:
        state.resume.into_optimizer(state.optimizer)
    return _user_content(content)


def _user_content(path: str) -> Any:
    """What the user gave, of any type: it is a checkpoint of this very job."""
    if not os.path.exists(path):
        return None
    try:
        return torch.load(path, weights_only=False)
    except TypeError:  # a PyTorch before weights_only
        return torch.load(path)
