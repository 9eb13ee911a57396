"""Compiled networks compute what plain ones do, and leave the rest of a model as it is."""

import copy
from typing import Any

import pytest
import torch
from test_activation_checkpointing import KINDS, step, trainee
from tokenizers import difference, random_video, toy_tokenizer

from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig

pytestmark = [  # PyTorch's own: tracing looks at the gradient of the decoder's input, inductor uses TorchScript
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
SHALLOW = {"ch_mult": (1, 1), "encoder_temporal_levels": (0,), "decoder_temporal_levels": (1,)}


@pytest.fixture(autouse=True)
def forget_graphs() -> None:
    torch.compiler.reset()


def assert_close_steps(first: Any, second: Any, tolerance: float) -> None:
    assert difference(first[0], second[0]) < tolerance
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        assert difference(gradient, second[1][name]) < tolerance, name


def check_step(name: str, backend: str, checkpointing: bool, autocast: bool, tolerance: float) -> None:
    model = trainee(name, **SHALLOW)
    if not autocast:
        model.double()  # so that rounding is far below the tolerance
    plain = step(model, autocast)
    model.checkpoint_activations(checkpointing)
    model.compile_networks(backend=backend)
    assert_close_steps(step(model, autocast), plain, tolerance)


def test_a_training_step_traced_with_recomputation_equals_a_plain_one() -> None:
    """Traced whole: `compile_networks` refuses breaks. The slow tests differentiate the graphs and generate code."""
    check_step(KINDS[1], "eager", checkpointing=True, autocast=False, tolerance=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checkpointing", "autocast"),
    [(KINDS[0], False, False), (KINDS[1], True, True), (KINDS[2], True, False)],
)
def test_a_compiled_training_step_equals_a_plain_one(name: str, checkpointing: bool, autocast: bool) -> None:
    # In bfloat16, fused operations round once where plain ones round each.
    check_step(name, "inductor", checkpointing, autocast, tolerance=0.1 if autocast else 1e-11)


def test_compiling_leaves_state_dict_streams_and_copies_as_they_are() -> None:
    model, video = toy_tokenizer(KINDS[1], **SHALLOW), random_video(9)
    plain = copy.deepcopy(model)
    calls = []

    def count_and_run(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.append(graph)
        return graph.forward

    with torch.no_grad():
        expected = plain.encode(video).latents
        model.compile_networks(backend=count_and_run)
        stream, twin = model.encoder_stream(), copy.deepcopy(model)
        pushed = [stream.push(video).latents, stream.flush().latents]
        assert difference(torch.cat(pushed, dim=2), expected) < 1e-12
        assert torch.equal(twin.encode(video).latents, expected)
        assert not calls
        assert torch.equal(model.encode(video).latents, expected)
        assert len(calls) == 1
    assert list(model.state_dict()) == list(plain.state_dict())
    twin.load_state_dict(model.state_dict())


@pytest.mark.slow
def test_each_size_compiles_once_with_gradients_and_once_without() -> None:
    """Encoder and decoder once shared a function, so that PyTorch made graphs for all sizes, which inductor refused."""
    model, graphs = trainee(KINDS[0], **SHALLOW), []

    def count_and_run(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        assert all(isinstance(size, int) for x in inputs for size in x.shape)
        graphs.append(graph)
        return graph.forward

    model.compile_networks(backend=count_and_run)
    for _ in range(2):
        for frames, h, w in ((5, 8, 16), (9, 16, 8)):
            video = random_video(frames, h=h, w=w).float()
            model(video)
            with torch.no_grad():
                model(video)
    assert len(graphs) == 2 * 2 * 2


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_compiled_tokenizer_trains_beyond_the_start_of_the_discriminator(checkpointing: bool) -> None:
    """The adaptive weight takes gradients at the last weight, keeping the graph: while that weight was in the compiled
    part, training stopped there with an error, batches 20,001 on."""
    torch.manual_seed(0)
    model, video = trainee(KINDS[1], **SHALLOW), random_video(5, h=16, w=16).float()
    model.float().checkpoint_activations(checkpointing)
    objective = Objective(ObjectiveConfig(perceptual="none", disc_start=0))
    twin = copy.deepcopy(model)
    model.compile_networks(backend="aot_eager")
    losses = []
    for tokenizer in (model, twin):
        torch.manual_seed(1)  # of dropout
        loss, parts = objective.generator_loss(video, tokenizer(video), 0, tokenizer.decoder.last_weight)
        loss.backward()
        assert parts["disc_weight"] > 0
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for (name, compiled), plain in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert compiled.grad is not None and plain.grad is not None, name
        assert difference(compiled.grad, plain.grad) < 1e-2, name
