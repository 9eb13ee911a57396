"""Every entry of tokenizer and adapter takes the same inputs, and refuses the same ones by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters import make, video
from torch import Tensor

from vidtok_plugin.adapter.tokens import UNPLACED, TokenGrid, video_tokens
from vidtok_plugin.tokenizer.model import VidTok

GRID = TokenGrid(2, 1, 2)
Entries = dict[str, Callable[[Any], Any]]


@pytest.fixture(scope="module")
def discrete() -> Any:
    return make("fsq")


@pytest.fixture(scope="module")
def continuous() -> Any:
    return make("kl", patch_size=(1, 1, 1))


def of_video(adapter: Any) -> Entries:
    tokenizer: VidTok = adapter.tokenizer
    return {
        "encode": tokenizer.encode,
        "forward": tokenizer,
        "encoder stream": lambda x: tokenizer.encoder_stream().push(x),
        "adapter.encode": adapter.encode,
        "adapter.stream": lambda x: adapter.stream().push(x),
    }


def of_latents(adapter: Any) -> Entries:
    tokenizer: VidTok = adapter.tokenizer
    return {
        "decode": tokenizer.decode,
        "decoder stream": lambda x: tokenizer.decoder_stream().push(x),
    }


def of_ids(adapter: Any) -> Entries:
    """Entries that take codes or ids (1, 4), with the axes that they need."""
    return {
        "decode_indices": lambda x: adapter.tokenizer.decode_indices(on_axes(x)),
        "indices_to_latents": lambda x: adapter.tokenizer.indices_to_latents(on_axes(x)),
        "indices_to_ids": lambda x: adapter.indices_to_ids(on_axes(x), GRID),
        "ids_to_indices": lambda x: adapter.ids_to_indices(x, GRID),
        "tokens_from_ids": lambda x: adapter.decode(adapter.tokens_from_ids(x, GRID)),
        "split": lambda x: adapter.join(adapter.split(x)),
    }


def on_axes(x: Any) -> Any:
    return x.view(1, 2, 1, 2) if isinstance(x, Tensor) else x


WRONG_VIDEO = {
    "no clips": (torch.zeros(0, 3, 5, 8, 16), "video must have at least one clip, got"),
    "no frames": (torch.zeros(1, 3, 0, 8, 16), "video must have at least one frame, got"),
    "no rows": (torch.zeros(1, 3, 5, 0, 16), "height must be a multiple of 8"),
    "numpy": (torch.zeros(1, 3, 5, 8, 16).numpy(), "video must be a torch.Tensor, got ndarray; use torch.from_numpy"),
    "a list": ([torch.zeros(3, 5, 8, 16)], "video must be a torch.Tensor, got list; use torch.stack"),
    "nothing": (None, "video must be a torch.Tensor, got NoneType"),
    "int64": (torch.zeros(1, 3, 5, 8, 16).long(), "video must be uint8 in 0-255 or float .* got torch.int64"),
    "uint16": (torch.zeros(1, 3, 5, 8, 16, dtype=torch.uint16), "video must be uint8 .* got torch.uint16"),
    "bool": (torch.zeros(1, 3, 5, 8, 16) > 0, "video must be uint8 .* got torch.bool"),
    "complex": (torch.zeros(1, 3, 5, 8, 16) * 1j, "video must be uint8 .* got torch.complex64"),
    "float8": (torch.zeros(1, 3, 5, 8, 16).to(torch.float8_e5m2), "video must be uint8 .* got torch.float8_e5m2"),
    "nan": (torch.full((1, 3, 5, 8, 16), float("nan")), "must be in .*, got magnitudes up to nan"),
    "infinite": (torch.full((1, 3, 5, 8, 16), float("inf")), "must be in .*, got magnitudes up to inf"),
}
WRONG_LATENTS = {
    "no clips": (torch.zeros(0, 4, 2, 1, 2), "latents must have at least one clip"),
    "numpy": (torch.zeros(1, 4, 2, 1, 2).numpy(), "latents must be a torch.Tensor, got ndarray"),
    "a list": ([0.0], "latents must be a torch.Tensor, got list"),
    "int64": (torch.zeros(1, 4, 2, 1, 2).long(), "latents must be floats, got torch.int64; indices go to"),
    "complex": (torch.zeros(1, 4, 2, 1, 2) * 1j, "latents must be floats, got torch.complex64"),
    "nan": (
        torch.full((1, 4, 2, 1, 2), float("nan")),
        r"latents must be finite, got nan at position \(0, 0, 0, 0, 0\)",
    ),
}
WRONG_IDS = {
    "numpy": (torch.zeros(1, 4).long().numpy(), "must be a torch.Tensor, got ndarray"),
    "a list": ([[0, 0, 0, 0]], "must be a torch.Tensor, got list"),
    "float": (torch.zeros(1, 4), "must be integers, got torch.float32"),
    "bool": (torch.zeros(1, 4) > 0, "must be integers, got torch.bool"),
    "below": (torch.tensor([[0, 0, -1, 0]]), r"must be 0 to 32767, got -1 at position \(0, (2|1, 0, 0)\)"),
    "special": (torch.tensor([[0, 0, 0, 32768]]), r"must be 0 to 32767, got 32768 at position \(0, (3|1, 0, 1)\)"),
    "huge": (torch.tensor([[2**62, 0, 0, 0]]), "must be 0 to 32767, got 4611686018427387904"),
    "uint64": (
        torch.tensor([[0, 2**64 - 1, 0, 0]], dtype=torch.uint64),
        "must be below 2.63, got 18446744073709551615",
    ),
}
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64, torch.int64)


@pytest.mark.parametrize("case", WRONG_VIDEO)
def test_every_entry_refuses_the_same_videos_by_name(case: str, discrete: Any, continuous: Any) -> None:
    """Empty batches and arrays ended in errors of torch and Python."""
    wrong, message = WRONG_VIDEO[case]
    for adapter in (discrete, continuous):
        for entry, call in of_video(adapter).items():
            with pytest.raises(ValueError, match=rf"^\w+: .*{message}"):
                call(wrong)
                pytest.fail(f"{entry} took it")


@pytest.mark.parametrize("case", WRONG_LATENTS)
def test_every_entry_refuses_the_same_latents_by_name(case: str, continuous: Any) -> None:
    wrong, message = WRONG_LATENTS[case]
    for entry, call in of_latents(continuous).items():
        with pytest.raises(ValueError, match=rf"^\w+: {message}"):
            call(wrong)
            pytest.fail(f"{entry} took it")


@pytest.mark.parametrize("case", WRONG_IDS)
def test_every_entry_refuses_the_same_ids_by_name(case: str, discrete: Any) -> None:
    wrong, message = WRONG_IDS[case]
    for entry, call in of_ids(discrete).items():
        with pytest.raises(ValueError, match=rf"^\w+: [a-z ]+{message}"):
            call(wrong)
            pytest.fail(f"{entry} took it")


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_entry_takes_ids_of_any_integer_type(dtype: torch.dtype, discrete: Any) -> None:
    ids = torch.tensor([[0, 1, 2, 127]])
    for entry, call in of_ids(discrete).items():
        got, expected = call(ids.to(dtype)), call(ids)
        assert torch.equal(got, expected) and got.dtype == expected.dtype, entry


def test_other_than_video_tokens_and_patches_are_named(discrete: Any, continuous: Any) -> None:
    with pytest.raises(ValueError, match="tokens must be VideoTokens, got Tensor; make them with tokens_from_ids"):
        discrete.decode(torch.zeros(1, 4).long())
    with pytest.raises(ValueError, match="tokens must be of at least one video to be decoded, got none"):
        discrete.decode(discrete.encode(video(5, b=1))[:0])
    with pytest.raises(ValueError, match="patches must be floats, got torch.int64; ids go to tokens_from_ids"):
        continuous.tokens_from_patches(torch.zeros(1, 4, 4).long(), GRID)
    with pytest.raises(ValueError, match="sequences must be a torch.Tensor, got list"):
        discrete.tokens_from_sequences([[0]], GRID)


def test_a_stream_whose_ids_are_not_checked_at_once_names_them_at_its_end(discrete: Any) -> None:
    """On CUDA, where a check at each push would wait for the device, special ids were decoded without a word."""
    tokens = discrete.tokens_from_ids(torch.tensor([[5, 6, 7, 8]]), GRID, 5)
    for wrong in (False, True):
        stream = discrete.decoder_stream()
        stream.push(tokens)
        stream._outside = torch.tensor(wrong)  # as a push on another device leaves it
        if wrong:
            with pytest.raises(
                ValueError, match="codebook ids must be 0 to 32768, exclusive, got others in an earlier"
            ):
                stream.flush()
        else:
            stream.flush()


@pytest.mark.gpu
def test_ids_outside_the_codebook_are_named_on_cuda() -> None:
    adapter = make("fsq").to("cuda")
    for ids in (torch.tensor([[0, 0, -1, 0]]), torch.tensor([[0, 0, 0, 32768]])):
        for entry, call in of_ids(adapter).items():
            with pytest.raises(ValueError, match=r"must be 0 to 32767, got (-1|32768) at position"):
                call(ids.to("cuda"))
                pytest.fail(f"{entry} took it")
        stream = adapter.decoder_stream()
        stream.push(video_tokens(on_axes(ids.to("cuda")), 5, UNPLACED))
        with pytest.raises(ValueError, match="got others in an earlier push"):
            stream.flush()
