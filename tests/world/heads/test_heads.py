"""Heads are distributions: over codes, factor by factor; over patches, by a flow."""

import math

import pytest
import torch
from torch import Tensor

from vidtok_plugin.adapter.vocabulary import factor_levels
from world_model.architecture import FACTORED_ABOVE, FlowConfig, TokenSpec, WorldModelConfig
from world_model.heads.codes import CodeHead
from world_model.heads.flow import FlowHead, normal_numbers
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.transformer.block import TransformerConfig

FACTORS = ((4, (2, 2)), (3, (3,)))


def random_head(factors: tuple[tuple[int, tuple[int, ...] | None], ...] = FACTORS, copy_size: int = 3) -> CodeHead:
    torch.manual_seed(0)
    head = CodeHead(factors, 8, copy_size)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def all_losses(head: CodeHead, hidden: Tensor, neighbor_codes: Tensor | None) -> Tensor:
    """The loss of each of the 12 codes at each of n positions, (n, 12)."""
    codes = torch.arange(12).expand(len(hidden), 12)
    neighbor_codes = None if neighbor_codes is None else neighbor_codes[:, None].expand(-1, 12, -1)
    losses, _ = head.scores(hidden[:, None].expand(-1, 12, -1), neighbor_codes, codes, head.tables())
    return losses.sum(-1)


@pytest.mark.parametrize("factors", [FACTORS, ((12, (4, 3)),), ((12, None),)])
@pytest.mark.parametrize("copying", [False, True])
@torch.no_grad()
def test_the_probabilities_of_all_codes_sum_to_one(factors: tuple, copying: bool) -> None:  # type: ignore[type-arg]
    head, hidden = random_head(factors), torch.randn(5, 8)
    neighbor_codes = torch.randint(-1, 12, (5, 9)) if copying else None
    losses = all_losses(head, hidden, neighbor_codes)
    torch.testing.assert_close((-losses).exp().sum(1), torch.ones(5))
    assert losses.std() > 0.1


@torch.no_grad()
def test_factored_codes_are_drawn_by_their_probabilities() -> None:
    head, hidden, neighbor_codes = random_head(), torch.randn(1, 8), torch.tensor([[3, -1, 3, 7, -1, -1, 0, 11, 5]])
    draws = 40_000
    noise = torch.rand(1, draws, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = head.draw(
        hidden.expand(1, draws, -1), neighbor_codes[:, None].expand(1, draws, -1), noise, Sampler(), head.tables()
    )
    frequency = torch.bincount(drawn.tokens[0], minlength=12) / draws
    losses = all_losses(head, hidden, neighbor_codes)[0]
    torch.testing.assert_close(frequency, (-losses).exp(), atol=0.01, rtol=0)
    assert drawn.confidence is not None
    torch.testing.assert_close(drawn.confidence[0], -losses[drawn.tokens[0]], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_copying_raises_the_probability_of_the_copied_code() -> None:
    for factors in (FACTORS, ((12, None),)):
        head, hidden = random_head(factors, copy_size=1), torch.randn(6, 8)
        assert head.copy is not None
        for bias in head.copy:
            torch.nn.init.zeros_(bias.amounts.weight)  # type: ignore[union-attr,arg-type]
            torch.nn.init.constant_(bias.amounts.bias, 20.0)  # type: ignore[union-attr,arg-type]
        losses = all_losses(head, hidden, torch.tensor([[5]] * 6))
        assert (losses.argmin(1) == 5).all() and (losses[:, 5] < 0.01).all()


def test_a_large_codebook_needs_no_row_per_code() -> None:
    spec = TokenSpec(codebook_size=8**6, fsq_levels=(8,) * 6, height=2, width=2, temporal_factor=4)
    config = WorldModelConfig(tokens=spec, max_steps=3, transformer=TransformerConfig(width=24, depth=1, heads=2))
    assert config.factors() == ((512, (8, 8, 8)), (512, (8, 8, 8)))
    model = WorldModel(config)
    assert max(parameter.numel() for parameter in model.parameters()) < 100_000
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, Tensor))
            return out

    codes = torch.randint(8**6, (2, 3, 2, 2))
    with Watch():
        loss = model.loss(codes)
    assert loss.item() == pytest.approx(math.log(8**6), abs=0.2)
    assert max(sizes) < 8**6 / 4  # tables of 512 rows are the largest
    with pytest.raises(ValueError, match="fsq_levels"):
        WorldModelConfig(tokens=TokenSpec(codebook_size=5, height=1, width=1, temporal_factor=1), vocabulary="factored")


def test_auto_factors_only_large_codebooks() -> None:
    for levels, factors in (((8,) * 4, 1), ((8,) * 5, 2), ((8, 8, 8, 5, 5, 5), 2)):
        size = math.prod(levels)
        spec = TokenSpec(codebook_size=size, fsq_levels=levels, height=1, width=1, temporal_factor=1)
        assert len(WorldModelConfig(tokens=spec).factors()) == factors == 1 + (size > FACTORED_ABOVE)
        assert len(WorldModelConfig(tokens=spec, vocabulary="flat").factors()) == 1
        assert len(WorldModelConfig(tokens=spec, vocabulary="factored").factors()) == 2
    assert factor_levels((3, 2, 2)) == ((3,), (2, 2))


def test_box_muller_gives_standard_normal_numbers() -> None:
    x = normal_numbers(torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(x.mean(0), torch.zeros(4), atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), torch.eye(4), atol=0.05, rtol=0)
    assert normal_numbers(torch.tensor([[0.0, 0.5], [1.0, 1.0]])).isfinite().all()


@torch.no_grad()
def test_a_half_precision_head_draws_finite_patches() -> None:
    """One in 500 uniform numbers rounded to 1 in bfloat16, and gave infinity."""
    head = FlowHead(2, 4, FlowConfig(width=8, depth=1, sampling_steps=2)).to(torch.bfloat16)
    noise = torch.tensor([[[0.9999, 0.25], [1.0, 0.0]]])
    drawn = head.draw(torch.zeros(1, 2, 4, dtype=torch.bfloat16), None, noise, Sampler(), ()).tokens
    assert drawn.dtype == torch.bfloat16 and drawn.isfinite().all()


def test_the_flow_learns_a_conditional_distribution() -> None:
    """Two modes, at -c and c, conditioned on c. Their mean is neither."""
    torch.manual_seed(0)
    head = FlowHead(1, 2, FlowConfig(width=32, depth=2, repeats=4, sampling_steps=16))
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(250):
        c = torch.rand(256, 1) + 0.5
        patch = c * (2 * torch.randint(2, (256, 1)) - 1)
        losses, _ = head.scores(torch.cat([c, torch.ones_like(c)], dim=1), None, patch, ())
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    head.eval()
    for c in (0.6, 1.4):
        noise = torch.rand(1, 2000, 2, generator=torch.Generator().manual_seed(1))
        hidden = torch.tensor([c, 1.0]).expand(1, 2000, 2)
        with torch.no_grad():
            drawn = head.draw(hidden, None, noise, Sampler(), ()).tokens.flatten()
        near = ((drawn.abs() - c).abs() < 0.25).float().mean()
        assert near > 0.85 and 0.35 < (drawn > 0).float().mean() < 0.65, (c, near)


@torch.no_grad()
def test_more_steps_approximate_the_flow_better() -> None:
    torch.manual_seed(0)
    head = FlowHead(3, 4, FlowConfig(width=16, depth=1, sampling_steps=4)).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    hidden, noise = torch.randn(2, 5, 4), torch.rand(2, 5, 4)
    fine = head.draw(hidden, None, noise, Sampler(flow_steps=256), ()).tokens
    errors = [
        (head.draw(hidden, None, noise, Sampler(flow_steps=steps), ()).tokens - fine).abs().max().item()
        for steps in (2, 16, 64)
    ]
    assert errors[0] > errors[1] > 2 * errors[2]
    default = head.draw(hidden, None, noise, Sampler(), ()).tokens
    assert torch.equal(default, head.draw(hidden, None, noise, Sampler(flow_steps=4), ()).tokens)


@torch.no_grad()
def test_guided_velocities_are_as_defined() -> None:
    torch.manual_seed(0)
    head = FlowHead(3, 4, FlowConfig(width=16, depth=1)).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    conditional, unconditional, x = torch.randn(2, 5, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    level = torch.tensor(0.3)
    given = head._guided(x, level, torch.cat([conditional, unconditional]), Sampler(guidance=2.5))
    with_, without = (head.velocity(x, level.expand(2, 5, 1), hidden) for hidden in (conditional, unconditional))
    torch.testing.assert_close(given, without + 2.5 * (with_ - without))
