"""Sequences for language models: clips of ids, each between its bos and its eos, there and back."""

import torch
from torch import Tensor

from vidtok_plugin.adapter.tokens import TokenGrid
from vidtok_plugin.adapter.vocabulary import Vocabulary


def to_sequences(ids: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Codebook ids (b, n) -> bos, ids, eos: (b, n + 2)."""
    vocabulary.check_codebook_ids(ids)
    bos, eos = (torch.full_like(ids[:, :1], _special(vocabulary, name)) for name in ("bos", "eos"))
    return torch.cat([bos, ids, eos], dim=1)


def from_sequences(sequences: Tensor, grid: TokenGrid, vocabulary: Vocabulary) -> Tensor:
    """Sequences (b, m) or (m,) of whole clips -> their codebook ids (clips, n), row after row.

    A row holds one clip or several, each as bos, `grid.num_tokens` codes and eos, and after them at most pads.

    Raises:
        ValueError: names the first place where a row has another id than such clips have.
    """
    if sequences.is_floating_point() or sequences.ndim not in (1, 2):
        raise ValueError(
            f"TokenizerAdapter: sequences must be whole numbers of shape (b, m) or (m,), got {sequences.dtype} of "
            f"{tuple(sequences.shape)}."
        )
    rows = sequences.reshape(-1, sequences.shape[-1]).tolist()
    clips = [clip for number, row in enumerate(rows) for clip in _clips(row, grid, vocabulary, f"row {number}")]
    return torch.tensor(clips, dtype=torch.int64, device=sequences.device).reshape(-1, grid.num_tokens)


def _clips(row: list[int], grid: TokenGrid, vocabulary: Vocabulary, whose: str) -> list[list[int]]:
    special, length = vocabulary.special_ids, grid.num_tokens + 2
    bos, eos, pad = _special(vocabulary, "bos"), _special(vocabulary, "eos"), special.get("pad")
    names = {number: name for name, number in special.items()}
    used = row.index(pad) if pad in row else len(row)  # ids before the first pad
    for place, got in enumerate(row):
        within = place % length
        if place >= used and (used % length == 0):
            wanted, fits = "pad", got == pad
        elif within in (0, length - 1):
            wanted, fits = ("bos", got == bos) if within == 0 else ("eos", got == eos)
        else:
            wanted, fits = "a code", 0 <= got < vocabulary.codebook_size
        if not fits:
            raise ValueError(
                f"TokenizerAdapter: sequences must be bos, the {grid.num_tokens} codes of {grid} and eos, once or more,"
                f" and then pads; {whose} must have {wanted} at position {place}, got {names.get(got, got)}."
            )
    if used % length:
        raise ValueError(
            f"TokenizerAdapter: sequences must be of whole clips, each {length} ids with bos and eos for {grid}, but "
            f"{whose} ends {used % length} ids into one; let the generator go on to its eos."
        )
    return [row[start + 1 : start + length - 1] for start in range(0, used, length)]


def _special(vocabulary: Vocabulary, name: str) -> int:
    if name not in vocabulary.special_ids:
        raise ValueError(
            f"TokenizerAdapter: special_tokens must have bos and eos for sequences, got {vocabulary.special_tokens}."
        )
    return vocabulary.special_ids[name]
