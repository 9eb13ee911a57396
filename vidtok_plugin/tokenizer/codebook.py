"""Codebook usage: how many of its codes a tokenizer uses, and how evenly."""

from torch import Tensor


def count_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """Occurrences of each code: indices of any shape -> (codebook_size,) float32."""
    return indices.flatten().bincount(minlength=codebook_size).float()


def code_statistics(counts: Tensor) -> dict[str, Tensor]:
    """The fraction of codes that occur, and the perplexity of their distribution.

    counts: occurrences of each code (codes,). The perplexity is the exponential of the entropy: from 1, if a single
    code occurs, to the number of codes, if all are equally frequent.

    Example:
        >>> from torch import tensor
        >>> code_statistics(tensor([5.0, 5.0, 0.0, 0.0]))
        {'codebook_usage': tensor(0.5000), 'codebook_perplexity': tensor(2.)}
    """
    p = counts / counts.sum().clamp(min=1)
    entropy = -(p * p.clamp(min=1e-30).log()).sum()
    return {"codebook_usage": (counts > 0).float().mean(), "codebook_perplexity": entropy.exp()}
