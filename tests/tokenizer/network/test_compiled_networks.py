"""Compiled networks equal eager ones, and compiling leaves the rest of a model unchanged."""

import copy
from typing import Any

import pytest
import torch
from test_activation_checkpointing import KINDS, step, trainee
from toy_tokenizers import difference, random_video, toy_tokenizer

from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig

pytestmark = [  # PyTorch's own warnings: tracing reads the gradient of the decoder's input, inductor uses TorchScript
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
SHALLOW = {"ch_mult": (1, 1), "encoder_temporal_levels": (0,), "decoder_temporal_levels": (1,)}


@pytest.fixture(autouse=True)
def forget_graphs() -> None:
    torch.compiler.reset()


def check_step(name: str, backend: str, checkpointing: bool) -> None:
    model = trainee(name, **SHALLOW).double()  # rounding far below the tolerance
    video, gradients = step(model)
    model.checkpoint_activations(checkpointing)
    model.compile_networks(backend=backend)
    compiled_video, compiled_gradients = step(model)
    assert difference(compiled_video, video) < 1e-11
    assert compiled_gradients.keys() == gradients.keys()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for key, gradient in gradients.items():
        # Softmax is invariant to the bias of the keys, whose gradients are rounding errors.
        scale = max(gradient.abs().max(), 1e-6 * largest)
        assert (compiled_gradients[key] - gradient).abs().max() < 1e-9 * scale, key


def test_a_training_step_traced_with_recomputation_equals_a_plain_one() -> None:
    """Traced as a whole: `compile_networks` refuses graph breaks. The slow tests differentiate and generate code."""
    check_step(KINDS[1], "eager", checkpointing=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "checkpointing"), [(KINDS[0], False), (KINDS[2], True)])
def test_a_compiled_training_step_equals_a_plain_one(name: str, checkpointing: bool) -> None:
    check_step(name, "inductor", checkpointing)


@pytest.mark.slow
def test_a_step_compiled_with_recomputation_in_bfloat16_is_as_exact_as_a_plain_one() -> None:
    """Fused operations round once, separate ones each time, so the two differ; neither may be worse."""
    model = trainee(KINDS[1], **SHALLOW | {"ch": 32})  # norms over few channels would amplify rounding
    latents = torch.randn(1, model.latent_channels, 3, 4, 8)

    def decode(autocast: bool) -> list[torch.Tensor]:
        """The video and all gradients, each as a vector."""
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            video = model.decode(latents).float()
        video.square().mean().backward()
        gradients = [p.grad.flatten() for p in model.decoder.parameters() if p.grad is not None]
        return [video.detach().flatten(), torch.cat(gradients)]

    exact, plain = decode(autocast=False), decode(autocast=True)
    model.checkpoint_activations()
    model.compile_networks()
    for compiled, usual, right in zip(decode(autocast=True), plain, exact, strict=True):
        error = (compiled - right).norm() / right.norm()
        assert 0 < error < 1.2 * (usual - right).norm() / right.norm() < 0.05


def test_compiling_leaves_state_dict_streams_and_copies_unchanged() -> None:
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
    """Encoder and decoder once shared a function: PyTorch made graphs with dynamic sizes, which inductor refused."""
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
    """The adaptive weight takes gradients at the last weight and keeps the graph. While that weight was in the compiled
    part, training stopped with an error from batch 20,001 on."""
    torch.manual_seed(0)
    model, video = trainee(KINDS[1], **SHALLOW), random_video(5, h=16, w=16).float()
    model.float().checkpoint_activations(checkpointing)
    objective = Objective(ObjectiveConfig(perceptual="none", disc_start=0))
    twin = copy.deepcopy(model)
    model.compile_networks(backend="aot_eager")
    model.encoder.compiled = None  # the weight is the decoder's
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
        if not name.endswith("attn_1.k.conv.bias"):  # softmax is invariant to it: its gradient is rounding error
            assert difference(compiled.grad, plain.grad) < 1e-2, name
