"""How much of its codebook a tokenizer uses."""

from torch import Tensor


def count_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs: indices of any shape -> (codebook_size,) float32."""
    return indices.flatten().bincount(minlength=codebook_size).float()


def code_statistics(counts: Tensor) -> dict[str, Tensor]:
    """Of how often each code occurs (codes,): the share of codes that do, and their perplexity.

    The perplexity is that of the codes' distribution, the exponential of its entropy: between 1, where one code is all,
    and the number of codes, where all are as frequent.

    Example:
        >>> from torch import tensor
        >>> code_statistics(tensor([5.0, 5.0, 0.0, 0.0]))
        {'codebook_usage': tensor(0.5000), 'codebook_perplexity': tensor(2.)}
    """
    p = counts / counts.sum().clamp(min=1)
    entropy = -(p * p.clamp(min=1e-30).log()).sum()
    return {"codebook_usage": (counts > 0).float().mean(), "codebook_perplexity": entropy.exp()}
