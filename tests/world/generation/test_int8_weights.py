"""Rollouts with int8 weights: products are those of the rounded weights, and the given model stays as it is."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from recordings import tiny_adapter
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from world_models import CONFIG, of_step, random_actions, random_model, random_tokens

from world_model import Decoding, Sampler, StepGenerator
from world_model.generation import precision as precision_module
from world_model.generation.precision import with_int8_weights
from world_model.rollout.imagination import Imagination
from world_model.transformer import transformer as transformer_module
from world_model.transformer.fast.int8 import MAX_ROWS, Int8Weight
from world_model.transformer.fast.prepack import prepack_linear

INT8 = Decoding(precision="int8")


@pytest.mark.parametrize("columns", [6, 32, 40])
@pytest.mark.parametrize("rows", [1, MAX_ROWS, MAX_ROWS + 1])
def test_products_are_those_of_the_rounded_weight(columns: int, rows: int) -> None:
    """For columns that are no multiple of 32, PyTorch's kernel read what follows the weight, or crashed."""
    generator = torch.Generator().manual_seed(0)
    given, x = torch.randn(5, columns, generator=generator), torch.randn(rows, columns, generator=generator)
    weight = Int8Weight(given)
    product = prepack_linear(weight, rows)(x)
    assert product.dtype == torch.float32
    if rows > MAX_ROWS:
        torch.testing.assert_close(product, F.linear(x, weight), rtol=1e-5, atol=1e-5)
    else:  # inputs and sums are rounded to bfloat16
        expected = F.linear(x.bfloat16().float(), weight)
        torch.testing.assert_close(product, expected, rtol=2**-8, atol=1e-3)


def test_a_weight_is_rounded_to_the_nearest_step_of_its_channel() -> None:
    given = (
        torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0, 1e-30, 1e-3, 1, 50, 1e9])[:, None]
    )
    weight = Int8Weight(given)
    step = given.abs().amax(1, keepdim=True) / 127
    assert ((weight - given).abs() <= 0.51 * step).all() and weight.quantized.abs().max() == 127
    assert torch.equal(Int8Weight(weight), weight)  # rounding again changes nothing
    assert torch.equal(deepcopy(weight).quantized, weight.quantized)


@pytest.mark.parametrize("decoding", [INT8, replace(INT8, order="diagonal"), replace(INT8, draft_tokens=4)], ids=str)
def test_a_rollout_reads_the_rounded_weights(decoding: Decoding) -> None:
    """Its entropies are those of a float32 rollout of the rounded model, but for bfloat16 inputs."""
    model, actions = random_model(), random_actions(CONFIG, 1, 4)
    before = deepcopy(model.state_dict())
    assert actions is not None
    generators = [
        StepGenerator(given, random_tokens(CONFIG, 1, 3), actions[:3], Sampler(seed=0), decoding=how)
        for given, how in ((model, decoding), (with_int8_weights(model), replace(decoding, precision="float32")))
    ]
    qkv = generators[0].model.transformer.blocks[0].attention.qkv.weight
    assert isinstance(qkv, Int8Weight)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    int8, rounded = (generator.step(of_step(actions, 3), entropy=True) for generator in generators)
    assert int8.shape == rounded.shape == (1, 2, 3)
    first = [generator.entropy[:, 0, 0] for generator in generators if generator.entropy is not None]
    torch.testing.assert_close(*first, rtol=0.02, atol=0.02)


class Int8Products(TorchDispatchMode):
    """Counts products that read int8 weights."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._weight_int8pack_mm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("decoding", "calls"), [(INT8, 6), (replace(INT8, order="diagonal"), 4)], ids=str)
def test_all_products_of_a_blocks_drawn_tokens_read_int8(
    monkeypatch: pytest.MonkeyPatch, decoding: Decoding, calls: int, packed: bool
) -> None:
    """Whether or not the processor is one on which steps go through `PackedBlocks`."""
    monkeypatch.setattr(transformer_module, "decodes_packed", lambda *_: packed)
    actions = random_actions(CONFIG, 1, 4)
    assert actions is not None
    tokens = random_tokens(CONFIG, 1, 3)
    generator = StepGenerator(random_model(), tokens, actions[:3], Sampler(seed=0), decoding=decoding)
    with Int8Products() as products:
        generator.step(actions[3:])
    assert products.count == calls * CONFIG.transformer.depth * 4


def test_frames_are_decoded_in_float32() -> None:
    tokens = replace(CONFIG.tokens, width=2, temporal_factor=4)  # type: ignore[type-var]
    model, adapter = random_model(replace(CONFIG, tokens=tokens)), tiny_adapter()
    imagination = Imagination(model, adapter, prompts=torch.zeros(1, 3, 5, 16, 16), decoding=INT8)
    assert imagination._frame_decoder is adapter.tokenizer
    assert imagination.step(torch.zeros(1, 4, dtype=torch.int64)).frames.dtype == torch.float32


def test_other_models_and_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="int8 is for a float32 model on a CPU, got torch.bfloat16 on cpu"):
        with_int8_weights(random_model().bfloat16())
    with pytest.raises(ValueError, match="compiled calls have no int8 weights"):
        Decoding(precision="int8", compiled=True)
    monkeypatch.setattr(precision_module, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs PyTorch's aten::_weight_int8pack_mm"):
        with_int8_weights(random_model())
