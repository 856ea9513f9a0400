"""Peak bytes of the tensors that a piece of code makes and holds, on any device, ``meta`` too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Adds up the storages that are alive after each operation; ``known`` ones (weights) are left out."""

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.peak = 0
        self._known = {StorageWeakRef(t.untyped_storage()).cdata for t in known}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                ref = StorageWeakRef(storage)
                if ref.cdata not in self._known:
                    self._alive[ref.cdata] = (ref, storage.nbytes())
        self.peak = max(self.peak, sum(n for _, n in self._alive.values()))
        return result
