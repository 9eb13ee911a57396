"""Worlds: a world model together with the adapter of its tokens, from the package, a folder or the hub."""

from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.common.downloads import hub_errors
from vidtok_plugin.common.errors import nearest
from vidtok_plugin.common.paths import user_path
from vidtok_plugin.common.url_path import local_copy
from world_model.model import WorldModel
from world_model.rollout.checks import check_adapter
from world_model.weights import ADAPTER_FOLDER, CONFIG_FILE, WEIGHTS_FILE

PROMPTS_FOLDER = "prompts"


def load_world(
    source: str | Path, *, device: torch.device | str | None = None, revision: str | None = None
) -> tuple[WorldModel, TokenizerAdapter]:
    """The world model and the adapter of a world, in eval mode.

    source: the name of a world in the package (`shipped_worlds()`), a folder that `WorldModel.save_pretrained` wrote
        with an adapter, or `user/repository` on the Hugging Face hub with the files of such a folder. A folder of that
        name comes first.
    device: the GPU if there is one, else the CPU, by default.
    revision: of the hub's repository: a branch, tag or commit; the newest by default.

    Raises:
        FileNotFoundError: a file or folder is missing, or the download failed.
        ValueError: the name is unknown, the repository has no such revision, or the files are damaged.

    Example:
        >>> model, adapter = load_world("boxing", device="cpu")
        >>> model.tokens.actions.kind, model.tokens.actions.size
        ('discrete', 18)
    """
    folder = world_folder(source, revision)
    model = WorldModel.from_pretrained(folder)
    if not (folder / ADAPTER_FOLDER).is_dir():
        raise FileNotFoundError(
            f"load_world: {folder} has a world model but no adapter; save both: model.save_pretrained(folder, adapter)."
        )
    adapter = TokenizerAdapter.from_pretrained(folder / ADAPTER_FOLDER)
    check_adapter(model, adapter, "load_world")
    device = default_device() if device is None else torch.device(device)
    return model.to(device), adapter.to(device)


def shipped_worlds() -> list[str]:
    """The names of the worlds in the package."""
    return sorted(path.name for path in _shipped().iterdir() if path.is_dir())


def world_prompts(source: str | Path) -> list[Path]:
    """The videos, with actions beside them, that a world brings along to start from; see `load_world`.

    Raises:
        FileNotFoundError: it has none, or there is no such world.
        ValueError: the name is unknown.

    Example:
        >>> len(world_prompts("boxing"))
        8
    """
    prompts = sorted((world_folder(source) / PROMPTS_FOLDER).glob("*.mp4"))
    if not prompts:
        raise FileNotFoundError(f"world_prompts: {source} has no prompts; give a video of your own (--prompt).")
    return prompts


def world_folder(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a world; see `load_world`."""
    path, name = local_copy(user_path(source)), str(source)
    on_hub = isinstance(source, str) and not path.exists() and _is_repository(name)
    if revision is not None and not on_hub:
        raise ValueError(
            f"load_world: revision={revision!r} is for hub repositories, and {name} is none; leave it out."
        )
    if path.exists():
        return path
    if name in shipped_worlds():
        return _shipped() / name
    if on_hub:
        return _download(name, revision)
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"load_world: there is no folder {name}; check the path.")
    raise ValueError(
        f"load_world: there is no folder or shipped world {name!r}; the nearest shipped world is "
        f"{nearest(name, shipped_worlds())!r}."
    )


def _shipped() -> Path:
    return Path(str(files("world_model") / "pretrained"))


def _is_repository(name: str) -> bool:
    user, _, repository = name.partition("/")
    return bool(user.strip(".~")) and bool(repository) and "/" not in repository


def _download(repository: str, revision: str | None) -> Path:
    wanted = [CONFIG_FILE, WEIGHTS_FILE, f"{ADAPTER_FOLDER}/*", f"{PROMPTS_FOLDER}/*"]
    failed = (
        f"load_world: there is no folder {repository}, and no such repository could be downloaded from the hub "
        "({cause}); check the name, or download it by other means and pass its folder."
    )
    with hub_errors("load_world", repository, revision, failed):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
