"""Models on the hub: pushed and loaded by the hub's own client over HTTP, with logins, revisions, and offline."""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from docs_blocks import code_blocks
from huggingface_hub import ModelCard, constants
from model_hub import READER, WRITER, ModelHub, model_hub, offline, use_hub
from places import ROOT
from recordings import contents, tiny_adapter, tiny_kl_adapter, write_episode
from world_models import save_tiny_world

from vidtok_plugin import CardInfo, TokenizerAdapter, VidTok
from vidtok_plugin.cli import main as vidtok
from vidtok_plugin.common.hub_source import HubOptions
from vidtok_plugin.store.adapter import load_adapter
from world_model import WorldModel, load_world
from world_model.cli import main as world
from world_model.rollout.worlds import world_prompts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:Use 'content=:DeprecationWarning"
    ),  # the hub's client's own use of its transport
]
TREES = {  # recorded: what `push_to_hub` puts into a repository; a change here leaves older repositories behind
    "tokenizer": ["README.md", "config.yaml", "model.safetensors"],
    "adapter": [
        *("README.md", "adapter.sha256", "adapter.yaml", "latent_statistics.safetensors"),
        *("tokenizer/config.yaml", "tokenizer/model.safetensors"),
    ],
    "world": [
        *("README.md", "adapter/adapter.sha256", "adapter/adapter.yaml", "adapter/tokenizer/config.yaml"),
        *("adapter/tokenizer/model.safetensors", "config.yaml", "model.safetensors", "prompts/0.actions.npy"),
        *("prompts/0.json", "prompts/0.mp4"),
    ],
}
OF_THE_HUB = ".gitattributes"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    with model_hub() as serving:
        use_hub(monkeypatch, serving.address, tmp_path / "cache")
        yield serving


def world_folder(folder: Path) -> Path:
    save_tiny_world(folder)
    (folder / "prompts").mkdir()
    write_episode(folder / "prompts" / "0.mp4", 21)
    return folder


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_what_is_pushed_is_loaded_again(hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, folder = tiny_kl_adapter(), world_folder(tmp_path / "world")
    address = adapter.tokenizer.push_to_hub("lab/tokenizer", token=WRITER, card=CardInfo(license="mit"))
    assert address.startswith(f"{hub.address}/lab/tokenizer/commit/")
    adapter.push_to_hub("lab/adapter", token=WRITER)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert world(["push", str(folder), "lab/world"]) == 0
    for kind, names in TREES.items():
        assert sorted(hub.tree(f"lab/{kind}")) == sorted([OF_THE_HUB, *names]), kind
    assert same(VidTok.from_pretrained("lab/tokenizer"), adapter.tokenizer)
    assert TokenizerAdapter.from_pretrained("lab/adapter").hash == adapter.hash
    model, of_world = load_world("lab/world", device="cpu")
    assert same(model, WorldModel.from_pretrained(folder)) and model.token_hash == of_world.token_hash
    assert same(WorldModel.from_pretrained("lab/world"), model)
    assert [path.name for path in world_prompts("lab/world")] == ["0.mp4"]
    assert same(VidTok.from_pretrained("lab/adapter", subfolder="tokenizer"), adapter.tokenizer)
    assert load_adapter("lab/adapter").hash == load_adapter("lab/tokenizer").hash == adapter.hash


def test_cards_name_their_repository(hub: ModelHub) -> None:
    tiny_adapter().tokenizer.push_to_hub("lab/it", token=WRITER, subfolder="small", card=CardInfo(license="mit"))
    card = ModelCard(hub.tree("lab/it")["small/README.md"].decode())
    assert (
        card.data.library_name == "vidtok-plugin" and card.data.license == "mit" and "video-tokenizer" in card.data.tags
    )
    line = 'tokenizer = VidTok.from_pretrained("lab/it", subfolder="small")'
    assert line in card.content
    namespace: dict[str, Any] = {}
    exec(card.content.split("```python\n")[1].split("```")[0], namespace)
    assert same(namespace["tokenizer"], tiny_adapter().tokenizer)


def test_a_card_that_was_edited_on_the_hub_is_kept(hub: ModelHub) -> None:
    tiny_adapter().tokenizer.push_to_hub("lab/it", token=WRITER)
    repository = hub.repositories["lab/it"]
    repository.commit("main", {**hub.tree("lab/it"), "README.md": b"# Edited\n"})
    tiny_adapter(1).tokenizer.push_to_hub("lab/it", token=WRITER, overwrite=True)
    assert hub.tree("lab/it")["README.md"] == b"# Edited\n"
    assert same(VidTok.from_pretrained("lab/it"), tiny_adapter(1).tokenizer)


def test_revisions(hub: ModelHub) -> None:
    first, second, third = (tiny_adapter(seed).tokenizer for seed in range(3))
    first.push_to_hub("lab/it", token=WRITER)
    commit = hub.repositories["lab/it"].refs["main"]
    second.push_to_hub("lab/it", token=WRITER, revision="v2", overwrite=True)
    address = third.push_to_hub("lab/it", token=WRITER, create_pr=True, overwrite=True, commit_message="a third")
    assert address == f"{hub.address}/lab/it/discussions/1" and hub.repositories["lab/it"].messages[-1] == "a third"
    for revision, model in (("main", first), (commit, first), ("v2", second), ("refs/pr/1", third)):
        assert same(VidTok.from_pretrained("lab/it", revision=revision), model), revision
        assert same(VidTok.from_pretrained(f"lab/it@{revision}"), model), revision
    assert 'from_pretrained("lab/it", revision="v2")' in hub.tree("lab/it", "v2")["README.md"].decode()
    with pytest.raises(ValueError, match=r"lab/it on the hub has no revision 'v9'; leave revision out"):
        VidTok.from_pretrained("lab/it", revision="v9")
    with pytest.raises(ValueError, match="lab/it@v2 names its revision, and revision='v3' another; give one"):
        VidTok.from_pretrained("lab/it@v2", revision="v3")
    with pytest.raises(ValueError, match="lab/it has no branch 'v7' for a pull request; leave revision out"):
        third.push_to_hub("lab/it", token=WRITER, create_pr=True, revision="v7")


def test_private_repositories_need_a_login(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_adapter().tokenizer
    model.push_to_hub("lab/secret", token=WRITER, private=True)
    assert hub.repositories["lab/secret"].private
    for token in (None, "hf_wrong"):
        with pytest.raises(FileNotFoundError, match=r"\(RepositoryNotFoundError; if it is private, log in by") as error:
            VidTok.from_pretrained("lab/secret", token=token)
        assert "hf_wrong" not in str(error.value)
    assert same(VidTok.from_pretrained("lab/secret", token=READER), model)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert same(VidTok.from_pretrained("lab/secret"), model)
    with pytest.raises(ValueError, match="lab/secret is private, got private=False; change that in its settings"):
        model.push_to_hub("lab/secret", token=WRITER, private=False)
    assert READER not in repr(HubOptions(token=READER))


def test_a_gated_repository_says_how_to_get_access(hub: ModelHub, tmp_path: Path) -> None:
    tiny_adapter().tokenizer.save_pretrained(tmp_path / "model")
    hub.add("lab/gated", tmp_path / "model", gated=True)
    with pytest.raises(PermissionError, match=r"lab/gated on the hub is gated.*\(HTTP 403\); request it on"):
        VidTok.from_pretrained("lab/gated", token=READER)


@pytest.mark.parametrize(("token", "status"), [(None, 401), (READER, 403)])
def test_who_may_not_write_is_told_so(hub: ModelHub, token: str | None, status: int) -> None:
    hub.add("lab/there")
    for repository in ("lab/there", "lab/new"):
        with pytest.raises(
            PermissionError, match=rf"may not write to {repository} on the hub \(HTTP {status}\); log in"
        ):
            tiny_adapter().tokenizer.push_to_hub(repository, token=token)
    assert list(hub.repositories) == ["lab/there"] and not hub.tree("lab/there")


def test_another_model_is_replaced_only_if_asked(hub: ModelHub) -> None:
    first, second = tiny_kl_adapter(), tiny_adapter()
    first.push_to_hub("lab/it", token=WRITER)
    before = hub.tree("lab/it")
    with pytest.raises(FileExistsError, match=r"lab/it has other files .*\(adapter.sha256, tokenizer/config.yaml,"):
        second.push_to_hub("lab/it", token=WRITER)
    assert hub.tree("lab/it") == before
    hub.repositories["lab/it"].commit("main", {**before, "notes.md": b"mine"})
    second.push_to_hub("lab/it", token=WRITER, overwrite=True)
    assert TokenizerAdapter.from_pretrained("lab/it").hash == second.hash
    left = set(before) - {"latent_statistics.safetensors"}  # of the first, which the second has not
    assert set(hub.tree("lab/it")) == {*left, "notes.md"}


def test_pushing_again_changes_nothing(hub: ModelHub) -> None:
    commits = {tiny_adapter().push_to_hub("lab/it", token=WRITER) for _ in range(2)}
    assert len(commits) == 1 and len(hub.repositories["lab/it"].messages) == 3  # empty, .gitattributes, the model


def test_a_commit_that_came_between_is_not_undone(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidtok_plugin.common import hub_push

    tiny_adapter().push_to_hub("lab/it", token=WRITER)
    repository, there = hub.repositories["lab/it"], hub_push._there

    def changed(*arguments: Any) -> Any:
        found = there(*arguments)
        repository.commit("main", {**hub.tree("lab/it"), "notes.md": b"theirs"})
        return found

    monkeypatch.setattr(hub_push, "_there", changed)
    with pytest.raises(OSError, match="lab/it was changed meanwhile; look at what is new, and push again"):
        tiny_adapter(1).push_to_hub("lab/it", token=WRITER, overwrite=True)
    assert hub.tree("lab/it")["notes.md"] == b"theirs"


def test_a_missing_file_is_named_with_what_to_do(hub: ModelHub, tmp_path: Path) -> None:
    world_folder(tmp_path / "world")
    hub.add("lab/world", tmp_path / "world")
    with pytest.raises(FileNotFoundError, match=r"has no adapter.yaml at revision main; .* by subfolder='adapter'"):
        TokenizerAdapter.from_pretrained("lab/world")
    assert TokenizerAdapter.from_pretrained("lab/world", subfolder="adapter")
    with pytest.raises(ValueError, match="holds a world model; its tokenizer is in its folder adapter/tokenizer"):
        VidTok.from_pretrained("lab/world")
    with pytest.raises(FileNotFoundError, match=r"lab/world on the hub has no no/such/config.yaml at revision main"):
        VidTok.from_pretrained("lab/world", subfolder="no/such")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.ckpt").write_bytes(b"")
    hub.add("lab/other", tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no pickles; download its checkpoint, and convert it"):
        VidTok.from_pretrained("lab/other")


def test_offline_what_is_cached_loads(hub: ModelHub) -> None:
    model = tiny_adapter().tokenizer
    for subfolder in ("a", "b"):
        model.push_to_hub("lab/it", token=WRITER, subfolder=subfolder)
    VidTok.from_pretrained("lab/it", subfolder="a")
    asked = len(hub.requests)
    assert same(VidTok.from_pretrained("lab/it", subfolder="a", local_files_only=True), model)
    assert len(hub.requests) == asked
    for options in ({"subfolder": "b"}, {"subfolder": "a", "revision": "v2"}):
        with pytest.raises(FileNotFoundError, match="not in the hub's cache: unset HF_HUB_OFFLINE, and leave"):
            VidTok.from_pretrained("lab/it", local_files_only=True, **options)
    with offline():
        assert same(VidTok.from_pretrained("lab/it", subfolder="a"), model)
        with pytest.raises(FileNotFoundError, match="not in the hub's cache: unset HF_HUB_OFFLINE"):
            VidTok.from_pretrained("lab/it", subfolder="b")
        with pytest.raises(OSError, match=r"could not be pushed to the hub \(HF_HUB_OFFLINE is set\)"):
            model.push_to_hub("lab/it", token=WRITER)


def test_without_a_network_what_is_cached_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_adapter().tokenizer
    with model_hub() as serving:
        use_hub(monkeypatch, serving.address, tmp_path / "cache")
        model.push_to_hub("lab/it", token=WRITER)
        VidTok.from_pretrained("lab/it")
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # where nothing listens
    assert same(VidTok.from_pretrained("lab/it"), model)
    with pytest.raises(FileNotFoundError, match=r"could be downloaded from the hub \(.*\); check the name and"):
        VidTok.from_pretrained("lab/other")
    with pytest.raises(OSError, match="lab/it could not be pushed to the hub .*; check the connection, and push again"):
        model.push_to_hub("lab/it", token=WRITER)


def test_a_recorded_cache_loads_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's client lays it out: snapshots by commit, a reference by name, files as links to blobs."""
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    world_folder(tmp_path / "world")
    commit, root = "c0ffee" * 6 + "beef", tmp_path / "models--lab--world"
    for number, (name, data) in enumerate(contents(tmp_path / "world").items()):
        place = root / "snapshots" / commit / name
        for folder in (place.parent, root / "blobs", root / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        (root / "blobs" / str(number)).write_bytes(data)
        place.symlink_to(os.path.relpath(root / "blobs" / str(number), place.parent))
    (root / "refs" / "main").write_text(commit)
    for source, settings in (("lab/world", {}), (f"lab/world@{commit}", {}), ("lab/world", {"local_files_only": True})):
        model, adapter = load_world(source, device="cpu", **settings)
        assert same(model, WorldModel.from_pretrained(tmp_path / "world")) and model.token_hash == adapter.token_hash


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["tokenizer", "adapter", "world"])
def test_nothing_of_a_repository_is_run(hub: ModelHub, tmp_path: Path, kind: str) -> None:
    """Pickles and code are not even downloaded, under whatever name; a pickle named as weights is refused unread."""
    trap, folder = tmp_path / "executed", world_folder(tmp_path / "model")
    load: dict[str, Callable[[], object]] = {
        "tokenizer": lambda: VidTok.from_pretrained("lab/evil", subfolder="adapter/tokenizer"),
        "adapter": lambda: TokenizerAdapter.from_pretrained("lab/evil", subfolder="adapter"),
        "world": lambda: load_world("lab/evil", device="cpu"),
    }
    pickled = pickle.dumps(Canary(trap))
    for place in ("", "adapter/", "adapter/tokenizer/", "prompts/"):
        for name in ("pytorch_model.bin", "model.ckpt", "model.pkl", "model.pt", "conftest.py", "modeling.py"):
            content = f"import os; os.mkdir({str(trap)!r})".encode() if name.endswith(".py") else pickled
            (folder / place / name).write_bytes(content)
    hub.add("lab/evil", folder)
    assert load[kind]()
    got = [path for method, path in hub.requests if "/resolve/" in path]
    assert got and not [path for path in got if not path.endswith((".yaml", ".safetensors", ".sha256", *PROMPTS))]
    for place in ("", "adapter/tokenizer/"):
        (folder / place / "model.safetensors").write_bytes(pickled)
    hub.add("lab/evil", folder)
    hub.repositories["lab/evil"].commit("main", hub.tree("lab/evil"))  # another commit than before
    with pytest.raises(ValueError, match="model.safetensors of lab/evil on the hub must be a safetensors file,"):
        load[kind]()
    assert not trap.exists()
    pickle.loads(pickled)
    assert trap.exists(), "the trap works"


PROMPTS = (".mp4", ".npy", ".json")


def test_commands_push_folders(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_kl_adapter().save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").unlink()  # as an earlier version saved it
    (tmp_path / "adapter" / "last.ckpt").write_bytes(b"a pickle")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    options = ["--private", "--revision", "v2", "--message", "an adapter"]
    assert vidtok(["push", str(tmp_path / "adapter"), "lab/adapter", *options]) == 0
    printed = capsys.readouterr()
    assert f"{hub.address}/lab/adapter/commit/" in printed.out
    assert "not pushed: last.ckpt" in " ".join(printed.err.split())
    repository = hub.repositories["lab/adapter"]
    assert repository.private and repository.messages[-1] == "an adapter"
    assert sorted(hub.tree("lab/adapter", "v2")) == sorted([OF_THE_HUB, *TREES["adapter"]])
    assert 'TokenizerAdapter.from_pretrained("lab/adapter", revision="v2")' in (
        hub.tree("lab/adapter", "v2")["README.md"].decode()
    )
    tiny_adapter().tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert vidtok(["push", str(tmp_path / "tokenizer"), "lab/tokenizer"]) == 0
    assert same(VidTok.from_pretrained("lab/tokenizer"), tiny_adapter().tokenizer)
    tiny_adapter(1).tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert vidtok(["push", str(tmp_path / "tokenizer"), "lab/tokenizer"]) == 2
    assert "error: push: lab/tokenizer has other files" in capsys.readouterr().err
    assert vidtok(["push", str(tmp_path / "tokenizer"), "lab/tokenizer", "--overwrite"]) == 0


def test_commands_refuse_what_is_no_whole_model(
    hub: ModelHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world_folder(tmp_path / "world")
    assert vidtok(["push", str(folder), "lab/it"]) == 2
    assert "holds a world model; push it by `world-model push`" in capsys.readouterr().err
    assert vidtok(["push", str(tmp_path / "none"), "lab/it"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert vidtok(["push", str(folder / "adapter"), "it"]) == 2
    assert "the repository must be USER/NAME, got 'it'" in capsys.readouterr().err
    shutil.rmtree(folder / "adapter")
    assert world(["push", str(folder), "lab/it"]) == 2
    assert "has a world model but no adapter" in capsys.readouterr().err
    assert not hub.repositories


def test_the_code_of_the_documentation_runs(hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a world in two revisions, and a login."""
    tiny_adapter().tokenizer.push_to_hub("user/tokenizer", token=WRITER, private=True)
    repository = hub.add("user/world", world_folder(tmp_path / "world"))
    repository.refs["v2"] = repository.refs["main"]
    monkeypatch.setenv("HF_TOKEN", WRITER)
    namespace: dict[str, Any] = {}
    for block in code_blocks(ROOT / "docs" / "hub.md", "python"):
        exec(compile(block, "hub.md", "exec"), namespace)
    assert set(hub.repositories) == {"user/tokenizer", "user/world", "user/adapter"}
    assert "| PSNR, dB | 34.2 |" in hub.tree("user/tokenizer")["README.md"].decode()


def test_sources_here_refuse_what_only_repositories_have(tmp_path: Path) -> None:
    tiny_adapter().save_pretrained(tmp_path)
    for load, source in (
        (TokenizerAdapter.from_pretrained, tmp_path),
        (VidTok.from_pretrained, "vidtok_tiny"),
        (load_world, "boxing"),
    ):
        with pytest.raises(ValueError, match=r"subfolder='a' is for .*hub repositories, and .* is none; give the path"):
            load(source, subfolder="a")
    for subfolder in ("../a", "/a", "a\\b"):
        with pytest.raises(ValueError, match="subfolder must be a folder of the repository"):
            VidTok.from_pretrained("lab/it", subfolder=subfolder)
