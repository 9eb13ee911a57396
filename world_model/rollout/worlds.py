"""Worlds: a world model together with the adapter of its tokens, from the package, a folder or the hub."""

from importlib.resources import files
from pathlib import Path

import torch

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.common.errors import nearest
from vidtok_plugin.common.hub_source import PLAIN, HubOptions, hub_folder, is_repository
from vidtok_plugin.common.paths import user_path
from vidtok_plugin.common.url_path import local_copy
from world_model.model import WorldModel
from world_model.rollout.checks import check_adapter
from world_model.weights import ADAPTER_FOLDER, PROMPTS_FOLDER, SAVED_FILES, WORLD_FILES


def load_world(
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> tuple[WorldModel, TokenizerAdapter]:
    """The world model and the adapter of a world, in eval mode.

    source: the name of a world in the package (`shipped_worlds()`), a folder that `WorldModel.save_pretrained` wrote
        with an adapter, or `user/name` on the Hugging Face hub with the files of such a folder. A folder of that name
        comes first.
    device: the GPU if there is one, else the CPU, by default.
    revision: of the hub's repository: a branch, tag or commit; the newest by default. `user/name@revision` says the
        same.
    subfolder: of the repository.
    token: for private repositories; by default that of `hf auth login` or HF_TOKEN.
    local_files_only: use the hub's cache, without a connection.

    Raises:
        FileNotFoundError: a file or folder is missing, or the download failed.
        PermissionError: the login may not read the repository.
        ValueError: the name is unknown, the repository has no such revision, or the files are damaged.

    Example:
        >>> model, adapter = load_world("boxing", device="cpu")
        >>> model.tokens.actions.kind, model.tokens.actions.size
        ('discrete', 18)
    """
    folder = world_folder(
        source,
        HubOptions(revision=revision, subfolder=subfolder, token=token, local_files_only=local_files_only),
    )
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


def world_prompts(
    source: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> list[Path]:
    """The videos, with actions beside them, that a world brings along to start from; see `load_world`.

    Raises:
        FileNotFoundError: it has none, or there is no such world.
        ValueError: the name is unknown.

    Example:
        >>> len(world_prompts("boxing"))
        8
    """
    options = HubOptions(revision=revision, subfolder=subfolder, token=token, local_files_only=local_files_only)
    prompts = sorted((world_folder(source, options) / PROMPTS_FOLDER).glob("*.mp4"))
    if not prompts:
        raise FileNotFoundError(f"world_prompts: {source} has no prompts; give a video of your own (--prompt).")
    return prompts


def world_folder(source: str | Path, options: HubOptions = PLAIN) -> Path:
    """The local folder of a world; see `load_world`."""
    path, name = local_copy(user_path(source)), str(source)
    shipped = not path.exists() and name in shipped_worlds()
    if path.exists() or shipped or not is_repository(source):
        options.refuse("load_world", name)
    if path.exists():
        return path
    if shipped:
        return _shipped() / name
    if is_repository(source):
        return hub_folder("load_world", name, options, wanted=WORLD_FILES, needed=SAVED_FILES)
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"load_world: there is no folder {name}; check the path.")
    raise ValueError(
        f"load_world: there is no folder or shipped world {name!r}; the nearest shipped world is "
        f"{nearest(name, shipped_worlds())!r}."
    )


def _shipped() -> Path:
    return Path(str(files("world_model") / "pretrained"))
