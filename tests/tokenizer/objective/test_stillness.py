"""The stillness loss: latents that change where the picture does not, and nothing else, are penalized."""

import pytest
import torch
from torch import Tensor
from toy_tokenizers import toy_tokenizer

from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig
from vidtok_plugin.tokenizer.objective.stillness import still_places, stillness
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.video.data import VideoDataConfig

PLAIN = {"perceptual": "none", "learn_logvar": False, "discriminator": "none"}


def black_video(frames: int = 9, size: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(1, 3, frames, size, size, dtype=dtype)


@pytest.mark.parametrize(("frame", "still"), [(0, False), (1, False), (4, False), (8, False), (None, True)])
def test_a_place_is_still_if_no_frame_of_its_step_or_the_one_before_changes(frame: int | None, still: bool) -> None:
    """Three steps of 4 frames, 2x2 pixels a latent: only the last has a whole step before it."""
    video = black_video()
    if frame is not None:
        video[:, 1, frame, 0, 3] = 0.2
    assert still_places(video, (3, 2, 2)).tolist() == [[[[True, still], [True, True]]]]


def test_changes_within_the_tolerance_count_as_none() -> None:
    noise = 0.049 * torch.rand(1, 3, 9, 4, 4, generator=torch.Generator().manual_seed(0))
    assert still_places(noise, (3, 2, 2)).all()
    assert not still_places(10 * noise, (3, 2, 2)).any()


def test_the_loss_is_the_latents_squared_change_at_still_places() -> None:
    video, latents = black_video(), torch.zeros(1, 2, 3, 2, 2)
    latents[0, :, 2, 0, 0] = torch.tensor([0.5, 1.0])
    assert stillness(video, latents).item() == pytest.approx(1.25 / 4)
    video[:, :, 6, 0, 0] = 1.0  # the picture changes there as well
    assert stillness(video, latents).item() == 0


def test_a_change_from_the_first_steps_single_frame_is_free() -> None:
    latents = torch.zeros(1, 2, 3, 2, 2)
    latents[:, :, 0] = 1.0
    assert stillness(black_video(), latents).item() == 0


def test_the_objective_adds_the_weighted_loss_and_logs_it() -> None:
    tokenizer = toy_tokenizer("vidtok_fsq_causal_488_262144").train()
    video = black_video(17, 16, torch.float64)
    video[:, :, 0] = 1.0  # so that the latents of the first steps change, and the picture then stays
    out, last_weight = tokenizer(video), tokenizer.decoder.last_weight
    plain, plain_terms = Objective(ObjectiveConfig(**PLAIN)).generator_loss(video, out, 0, last_weight)
    loss, terms = Objective(ObjectiveConfig(**PLAIN, still_weight=10.0)).generator_loss(video, out, 0, last_weight)
    assert "stillness" not in plain_terms
    assert terms["stillness"] > 0
    torch.testing.assert_close(loss, plain + 10 * terms["stillness"])


def test_the_gradient_reaches_the_encoder() -> None:
    tokenizer = toy_tokenizer("vidtok_fsq_causal_488_262144").train()
    video = black_video(17, 16, torch.float64)
    video[:, :, 0] = 1.0
    stillness(video, tokenizer(video).latents).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in tokenizer.encoder.parameters())
    assert all(parameter.grad is None for parameter in tokenizer.decoder.parameters())


@pytest.mark.parametrize(("frames", "steps"), [(5, 2), (16, 3)])
def test_clips_that_do_not_fit_are_refused(frames: int, steps: int) -> None:
    with pytest.raises(ValueError, match="at least 3 latent steps of a causal tokenizer"):
        stillness(black_video(frames), torch.zeros(1, 2, steps, 2, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "vidtok_fsq_noncausal_488_262144"}, "still_weight is for causal tokenizers, got 1.0"),
        ({"clip_length": 5}, r"data.clip_length must be 1 \+ k \* 4 with k of at least 2, got 5"),
        ({"clip_length": 16}, r"data.clip_length must be 1 \+ k \* 4 with k of at least 2, got 16"),
        ({"trained": "decoder"}, "still_weight trains the encoder, which trained=decoder freezes"),
        ({"still_weight": -1.0}, "still_weight must not be negative, got -1.0"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    settings = {"preset": "vidtok_fsq_causal_488_262144", "clip_length": 17, "still_weight": 1.0, **changes}
    data = {"train": ("play",), "height": 64, "width": 64, "clip_length": settings.pop("clip_length")}
    weight = settings.pop("still_weight")
    with pytest.raises(ValueError, match=message):
        TokenizerRunConfig(
            data=VideoDataConfig(**data), objective=ObjectiveConfig(**PLAIN, still_weight=weight), **settings
        )
