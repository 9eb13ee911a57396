"""A pretended Apple GPU: tensors that say that they are on it, and refuse float64 and tensors of the CPU.

Tensors of the CPU are inside, and compute. A function mode serves `to`, `cpu` and what makes new tensors, which PyTorch
would send to a device that is not there. As a script it runs what models do on their device, and compares with the CPU;
`tests/common/test_devices.py` starts it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

# Views of wrappers have no version in inference mode.
torch.inference_mode = lambda mode=True: torch.set_grad_enabled(torch.is_grad_enabled() and not mode)  # type: ignore
_setup_privateuseone_for_python_backend("apple")
torch.apple.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]  # type: ignore[attr-defined]
APPLE = torch.device("apple:0")


class AppleTensor(Tensor):
    """A tensor whose values are in `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "AppleTensor":
        if inner.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        made: AppleTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=APPLE,
        )
        made.inner = inner
        return made

    def __init__(self, inner: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given, _ = tree_flatten((args, kwargs))
        apple = [x for x in given if isinstance(x, AppleTensor)]
        other = [x for x in given if isinstance(x, Tensor) and not isinstance(x, AppleTensor) and x.dim()]
        name = func.overloadpacket.__name__
        if apple and other and name not in ("copy_", "index", "index_put_", "_to_copy"):
            raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
        target = kwargs.pop("device", None)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        result = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))
        if target is not None and torch.device(target).type == "cpu":
            return result
        same = {id(x.inner): x for x in apple}  # of operations in place
        return tree_map(lambda x: _outside(x, same) if isinstance(x, Tensor) else x, result)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"AppleTensor({self.inner})"


_LIBRARY = torch.library.Library("aten", "IMPL")


def _empty(size: Any, **settings: Any) -> AppleTensor:
    return AppleTensor(torch.empty(size, dtype=settings.get("dtype")))


def _empty_strided(size: Any, stride: Any, **settings: Any) -> AppleTensor:
    return AppleTensor(torch.empty_strided(size, stride, dtype=settings.get("dtype")))


_LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
_LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")


def _outside(x: Tensor, same: dict[int, AppleTensor]) -> AppleTensor:
    return same[id(x)] if id(x) in same else AppleTensor(x)


def _inside(x: Any) -> Any:
    return x.inner if isinstance(x, AppleTensor) else x


class OnApple(TorchFunctionMode):
    """While it is active, `to("apple")` and `device="apple"` give pretended tensors."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to:
            return _moved(args[0], *args[1:], **kwargs)
        if func is Tensor.cpu:
            return _inside(args[0])
        if func in (Tensor.untyped_storage, Tensor.data_ptr):
            return func(_inside(args[0]))
        if func in (
            Tensor.item,
            Tensor.tolist,
            Tensor.numpy,
            Tensor.__bool__,
            Tensor.__int__,
            Tensor.__float__,
            Tensor.__index__,
        ):
            if func is Tensor.numpy and isinstance(args[0], AppleTensor):
                raise TypeError("can't convert apple:0 device type tensor to numpy. Use Tensor.cpu() first.")
            return func(_inside(args[0]), *args[1:], **kwargs)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "apple":
            made = func(*tree_map(_inside, args), **{**kwargs, "device": "cpu"})
            return AppleTensor(made)
        return func(*args, **kwargs)


def _moved(x: Tensor, *where: Any, **kwargs: Any) -> Tensor:
    where = tuple(w for w in where if not isinstance(w, bool))
    device = kwargs.pop("device", None)
    dtype = kwargs.pop("dtype", None)
    for w in where:
        if isinstance(w, Tensor):
            device, dtype = w.device, w.dtype
        elif isinstance(w, torch.dtype):
            dtype = w
        elif w is not None:
            device = torch.device(w)
    target = x.device if device is None else torch.device(device)
    inner = _inside(x)
    converted = inner if dtype is None else inner.to(dtype)
    if target.type != "apple":
        return converted
    if isinstance(x, AppleTensor) and converted is inner:
        return x
    return AppleTensor(converted)


def to_apple(module: nn.Module) -> nn.Module:
    """Moves the weights, as `module.to("apple")` would."""
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                part._parameters[name] = nn.Parameter(AppleTensor(weight.detach()), requires_grad=weight.requires_grad)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = AppleTensor(buffer)
    return module


def main() -> None:
    """What runs on a model's device, compared with the CPU: tokenizers, training, rollouts, measures."""
    from copy import deepcopy

    from world_models import VARIANTS, random_actions, random_model, random_tokens

    from vidtok_plugin import VidTok
    from vidtok_plugin.adapter.patches import channel_statistics
    from vidtok_plugin.common import devices
    from world_model import Sampler, load_world, rollout
    from world_model.measures.segments import SegmentStatistics, Sequences, TokenFrequencies
    from world_model.measures.teacher_forcing import StepSums

    devices.NO_FLOAT64 = ()
    try:
        channel_statistics([AppleTensor(torch.ones(1, 2, 3, 4, 4))])
        raise AssertionError("float64 was not refused")
    except TypeError:
        devices.NO_FLOAT64 = ("apple",)
    close = torch.testing.assert_close
    torch.manual_seed(0)
    with torch.no_grad(), OnApple():
        for name in ("vidtok_fsq_causal_488_32768", "vidtok_kl_causal_488_4chn_v1_1", "vidtok_kl_noncausal_488_4chn"):
            model = VidTok.from_preset(name, ch=8, num_res_blocks=1).eval()
            video = torch.rand(1, 3, 16 if "noncausal" in name else 17, 32, 32) * 2 - 1
            there = to_apple(deepcopy(model))
            close(there(video.to(APPLE)).reconstruction.cpu(), model(video).reconstruction, rtol=1e-3, atol=1e-3)
            if model.causal:
                stream = there.encoder_stream()
                parts = [stream.push(video.to(APPLE)[:, :, :6]), stream.push(video.to(APPLE)[:, :, 6:]), stream.flush()]
                latents = torch.cat([part.latents.cpu() for part in parts], dim=2)
                close(latents, model.encode(video).latents, rtol=1e-3, atol=1e-3)
            latents = model.encode(video).latents
            for found, expected in zip(
                channel_statistics([latents.to(APPLE)]), channel_statistics([latents]), strict=True
            ):
                close(found, expected)
        print("tokenizers")

        model, adapter = load_world("boxing", device="cpu")
        prompt, actions = torch.rand(1, 3, 13, 64, 64) * 2 - 1, torch.ones(1, 21, dtype=torch.int64)
        settings = {"num_frames": 8, "sampler": Sampler(temperature=0)}
        expected = rollout(model, adapter, prompt=prompt, actions=actions, **settings)
        to_apple(model), to_apple(adapter)
        found = rollout(model, adapter, prompt=prompt.to(APPLE), actions=actions.to(APPLE), **settings)
        assert torch.equal(found.tokens.ids.cpu(), expected.tokens.ids)
        close(found.video.cpu(), expected.video, rtol=1e-3, atol=1e-3)
        print("rollouts")

        statistics = []
        for video in (expected.video, expected.video.to(APPLE)):
            ids = expected.tokens.grid_values.to(video.device)
            kept = SegmentStatistics(TokenFrequencies([512]))
            kept._add("motion", video.diff(dim=2).abs())
            sums = StepSums()
            sums.add(ids[:, 1:, ..., None].float(), torch.ones(1, ids.shape[1] - 1, dtype=torch.bool))
            statistics.append((kept._sums, sums.mean, Sequences(tokens=ids, video=video)))
        assert statistics[0][:2] == statistics[1][:2]
        print("measures")

    for name, config in VARIANTS.items():
        model = random_model(config).train()
        tokens, actions = random_tokens(config, 2, 3), random_actions(config, 2, 3)
        with OnApple():
            there = to_apple(deepcopy(model))
            acted = None if actions is None else actions.to(APPLE)
            losses = there.losses(tokens.to(APPLE), acted)
            losses.tokens.backward()
            assert all(p.grad is None or p.grad.device == APPLE for p in there.parameters()), name
            assert torch.isfinite(losses.tokens.detach().cpu()), name
    print("training")


if __name__ == "__main__":
    main()
    print("done")
