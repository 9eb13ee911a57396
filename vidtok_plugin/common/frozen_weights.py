"""FrozenWeights: the check that a module's weights are still what they were when it was frozen."""

import itertools
import operator
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidtok_plugin.common.hashing import tensor_bytes

_VERSION, _REQUIRES_GRAD = operator.attrgetter("_version"), operator.attrgetter("requires_grad")
_TRAINING = operator.attrgetter("training")


class FrozenWeight(nn.Parameter):
    """A parameter whose `data` shares its version counter, so that writes through `weight.data` are counted too."""

    @property
    def data(self) -> Tensor:
        return torch.Tensor.detach(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]

    def detach(self) -> Tensor:
        return torch.Tensor._make_subclass(FrozenWeight, self, False)  # `nn.Parameter(weight)` needs its own type


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a weight holds. float64 copies of float32 values have the same checksum."""

    shape: tuple[int, ...]
    checksum: int


class FrozenWeights:
    """Freezes `module` and detects any later change of its weights or of its layers.

    Frozen: no gradients, eval mode, and a mark that keeps Hugging Face libraries from initializing it anew.

    A check compares addresses and version counters, which takes microseconds, and the values only where these differ.
    Writes that no counter sees (through NumPy, for example) are found by `values=True`, which reads all weights.
    Copies of this object go with copies of the module.

    who: begins the errors; name: the module's.
    """

    def __init__(self, module: nn.Module, *, who: str, name: str) -> None:
        self.who, self.name = who, name
        freeze(module)
        self._layers = {path: type(layer) for path, layer in module.named_modules()}
        self._dtypes = {path: weight.dtype for path, weight in module.named_parameters()}
        self._refuse(_without_values(module))
        self._contents = self._read(module)
        self._seen: _Seen | None = _Seen(module, self._contents)

    def check(self, module: nn.Module, *, values: bool = False) -> None:
        """Freezes `module` again if it was unfrozen.

        Raises:
            ValueError: its weights or layers are not those that were frozen; it names the first that differs.
        """
        if self.look(module, values=values).contents is not self._contents:
            self._refuse(self._differences(module))

    @torch.compiler.disable
    def look(self, module: nn.Module, *, values: bool = False) -> "_Seen":
        """The weights of `module` now; the same object as long as they do not change."""
        seen = self._seen
        if seen is None or not seen.is_current(module) or (values and not self._has_values(seen)):
            seen = self._look_anew(module)
        if not seen.is_frozen():
            freeze(module)
        return seen

    def forget(self) -> None:
        """Read the values at the next check, and free weights that were replaced since the last one."""
        self._seen = None

    def _look_anew(self, module: nn.Module) -> "_Seen":
        self._refuse(self._other_layers(module) or _without_values(module))
        contents = self._read(module)
        if contents == self._contents:
            freeze(module)
            contents = self._contents
        self._seen = seen = _Seen(module, contents)
        return seen

    def _has_values(self, seen: "_Seen") -> bool:
        return all(
            checksum(weight, self._dtypes[path]) == seen.contents[path].checksum for path, weight in seen.weights
        )

    def _read(self, module: nn.Module) -> dict[str, Contents]:
        return {
            path: Contents(shape=tuple(weight.shape), checksum=checksum(weight, self._dtypes.get(path, weight.dtype)))
            for path, weight in module.named_parameters()
        }

    def _other_layers(self, module: nn.Module) -> list[str]:
        layers = {path: type(layer) for path, layer in module.named_modules()}
        sharded = [path for path, weight in module.named_parameters() if _is_sharded(weight)]
        if sharded:
            return [f"{path} is sharded" for path in sharded]
        other = [f"{path} is missing" for path in self._layers if path not in layers]
        other += [f"{path} was added" for path in layers if path not in self._layers]
        other += [
            f"{path or 'it'} is a {layers[path].__name__}, not a {kind.__name__}"
            for path, kind in self._layers.items()
            if layers.get(path, kind) is not kind
        ]
        names = {path for path, _ in module.named_parameters()}
        other += [f"{path} is missing" for path in self._dtypes if path not in names]
        return other + [f"{path} was added" for path in names if path not in self._dtypes]

    def _differences(self, module: nn.Module) -> list[str]:
        now = self._read(module)
        return [f"{path} has other values" for path, contents in self._contents.items() if now[path] != contents]

    def _refuse(self, problems: Sequence[str]) -> None:
        if not problems:
            return
        self._seen = None
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(
            f"{self.who}: the weights of its frozen {self.name} must stay as they were, but {problems[0]}{more}; load "
            "it again, and keep initialization, optimizers, averaging, sharding and wrappers away from it (for example "
            "by holding it in a tuple, which a module does not pass on)."
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_seen": None}  # a copy has weights of its own


class _Seen:
    """The addresses and versions of a module's weights, and the contents that they then had."""

    def __init__(self, module: nn.Module, contents: dict[str, Contents]) -> None:
        self.contents = contents
        self.weights: list[tuple[str, Tensor]] = list(module.named_parameters())
        self._tensors = [weight for _, weight in self.weights]
        self._held = [weight.detach() for weight in self._tensors]  # so that no other weight gets their address
        self._counted = [weight for weight in self._tensors if not weight.is_inference()]
        self._versions, self._addresses = self._now()
        self._root = module
        self._layers = list(module.modules())
        self._tables: list[dict[str, Any]] = []
        for layer in self._layers:
            self._tables += [layer._modules, layer._parameters]
        self._entries = [entry for table in self._tables for entry in table.values()]

    def is_current(self, module: nn.Module) -> bool:
        entries = itertools.chain.from_iterable(map(dict.values, self._tables))
        return (
            module is self._root
            and sum(map(len, self._tables)) == len(self._entries)
            and all(map(operator.is_, entries, self._entries))
            and self._now() == (self._versions, self._addresses)
        )

    def is_frozen(self) -> bool:
        return not any(map(_REQUIRES_GRAD, self._tensors)) and not any(map(_TRAINING, self._layers))

    def _now(self) -> tuple[list[int], list[int]]:
        return list(map(_VERSION, self._counted)), list(map(Tensor.data_ptr, self._tensors))


def freeze(module: nn.Module) -> None:
    """No gradients, eval mode, and the mark of Hugging Face libraries for weights that are not to be initialized."""
    module.requires_grad_(False).eval()
    for layer in module.modules():
        layer._is_hf_initialized = True  # type: ignore[assignment]
    for weight in module.parameters():
        weight._is_hf_initialized = True  # type: ignore[attr-defined]
        if type(weight) is nn.Parameter:
            weight.__class__ = FrozenWeight


def checksum(tensor: Tensor, dtype: torch.dtype) -> int:
    """CRC-32 of a tensor's values as `dtype`, or -1 if they are not all exact in it."""
    values = tensor.detach()
    if values.dtype != dtype:
        values = values.to(dtype)
        if not torch.equal(values.to(tensor.dtype), tensor.detach()):
            return -1
    return zlib.crc32(tensor_bytes(values))


def _is_sharded(weight: Tensor) -> bool:
    return hasattr(weight, "placements") or hasattr(weight, "ds_id")  # FSDP2, DeepSpeed


def _without_values(module: nn.Module) -> list[str]:
    return [f"{path} has no values (device meta)" for path, weight in module.named_parameters() if weight.is_meta]
