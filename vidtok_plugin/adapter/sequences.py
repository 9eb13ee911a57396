"""Sequences for language models: clips of ids between bos and eos, packed into rows and parsed back."""

import torch
from torch import Tensor

from vidtok_plugin.adapter.tokens import TokenGrid
from vidtok_plugin.adapter.vocabulary import Vocabulary
from vidtok_plugin.common.tensor_checks import as_int64, check_tensor


def to_sequences(ids: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Codebook ids (b, n) -> bos, ids, eos: (b, n + 2)."""
    ids = vocabulary.checked_codebook_ids(ids)
    bos, eos = (torch.full_like(ids[:, :1], _special(vocabulary, name)) for name in ("bos", "eos"))
    return torch.cat([bos, ids, eos], dim=1)


def from_sequences(sequences: Tensor, grid: TokenGrid, vocabulary: Vocabulary) -> Tensor:
    """Sequences (b, m) or (m,) -> the codebook ids (clips, n) of every clip, row after row.

    A row holds one or more whole clips, each as bos, `grid.num_tokens` codes and eos. Only pads may follow.

    Raises:
        ValueError: names the first position whose id breaks that rule, or the row that ends within a clip.
    """
    check_tensor(sequences, who="TokenizerAdapter", name="sequences")
    if sequences.is_floating_point() or sequences.ndim not in (1, 2):
        raise ValueError(
            f"TokenizerAdapter: sequences must be integers of shape (b, m) or (m,), got {sequences.dtype} of shape "
            f"{tuple(sequences.shape)}."
        )
    rows = torch.atleast_2d(as_int64(sequences, who="TokenizerAdapter", name="sequences"))
    length = grid.num_tokens + 2  # of a clip
    bos, eos = _special(vocabulary, "bos"), _special(vocabulary, "eos")
    pad = vocabulary.special_ids.get("pad")
    is_pad = torch.zeros_like(rows, dtype=torch.bool) if pad is None else rows == pad
    is_code = (rows >= 0) & (rows < vocabulary.codebook_size)
    position = torch.arange(rows.shape[1], device=rows.device)
    begins, ends = position % length == 0, position % length == length - 1
    used = (is_pad.cumsum(1) == 0).sum(1, keepdim=True)  # ids before the first pad, (b, 1)
    padding = (position >= used) & (used % length == 0)

    fits = torch.where(begins, rows == bos, torch.where(ends, rows == eos, is_code))
    fits = torch.where(padding, is_pad, fits)
    wrong_rows = (~fits.all(1) | (used[:, 0] % length != 0)).nonzero()
    if len(wrong_rows):
        row = int(wrong_rows[0])
        _refuse(rows[row], fits[row], padding[row], row, grid, vocabulary)
    return rows[~(begins | ends | padding)].view(-1, grid.num_tokens)


def _refuse(row: Tensor, fits: Tensor, padding: Tensor, number: int, grid: TokenGrid, vocabulary: Vocabulary) -> None:
    """Raise a ValueError that names the first id of a row that does not fit, or the row's unfinished last clip."""
    length = grid.num_tokens + 2
    if fits.all():
        raise ValueError(
            f"TokenizerAdapter: sequences must hold whole clips, each {length} ids with bos and eos for {grid}, but "
            f"row {number} ends {len(row) % length} ids into one; let the generator continue to its eos."
        )
    position = int(fits.int().argmin())
    expected = "pad" if padding[position] else {0: "bos", length - 1: "eos"}.get(position % length, "a code")
    names = {id_: name for name, id_ in vocabulary.special_ids.items()}
    got = int(row[position])
    raise ValueError(
        f"TokenizerAdapter: sequences must be bos, the {grid.num_tokens} codes of {grid} and eos, once or more, "
        f"and then pads; row {number} must have {expected} at position {position}, got {names.get(got, got)}."
    )


def _special(vocabulary: Vocabulary, name: str) -> int:
    if name not in vocabulary.special_ids:
        raise ValueError(
            f"TokenizerAdapter: special_tokens must include bos and eos for sequences, got {vocabulary.special_tokens}."
        )
    return vocabulary.special_ids[name]
