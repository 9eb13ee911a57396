"""Which positions of a masked step are kept: those drawn with the highest confidence, with annealed noise (MaskGIT).

Shapes: b rollouts, n positions of a step.
"""

from torch import Tensor

from world_model.heads.base import DrawnTokens


def choice_confidence(drawn: DrawnTokens, chance: Tensor, temperature: float | Tensor) -> Tensor:
    """The confidence (b, n) of drawn tokens plus `temperature` times Gumbel noise, from `chance` (b, n), uniform in
    [0, 1). Patches have no confidence, so random ones are kept."""
    chance = chance.float().clamp(1e-6, 1 - 1e-6)
    if drawn.confidence is None:
        return chance
    gumbel = -(-chance.log()).log()
    return drawn.confidence + temperature * gumbel
