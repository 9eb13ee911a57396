"""Whether PyTorch's private operations are those that this package was written for."""

from collections.abc import Mapping, Sequence

import torch


def unknown_operation(namespace: str, known: Mapping[str, Sequence[str]]) -> str | None:
    """The first of the operations that this PyTorch lacks or has with other arguments, as `mkl::name(types)`.

    known: the types of each operation's arguments, by its name.
    """
    for name, types in known.items():
        operation = getattr(getattr(torch.ops, namespace), name, None)
        found = None if operation is None else [str(argument.type) for argument in operation.default._schema.arguments]
        if found != types:
            return f"{namespace}::{name}({', '.join(types)})"
    return None
