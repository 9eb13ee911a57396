"""A pretended Windows: without what only POSIX has, and with file operations that refuse what is open or mapped.

Run as a script it does what users do, in one process: imports every module, records, tokenizes, updates a store, saves
and loads models, imagines, trains two batches. `tests/common/test_windows.py` runs it.
"""

import builtins
import importlib
import io
import os
import pkgutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MISSING = {
    os: ("register_at_fork", "fork", "killpg", "getpgid", "setsid", "sysconf", "geteuid", "getuid", "memfd_create"),
    signal: ("alarm", "pthread_sigmask"),  # signals themselves are needed by Lightning, which saw another system
}
MODULES = ("fcntl", "resource", "pwd", "grp", "termios")


def pretend() -> None:
    """Makes this process see Windows. Other packages, which have their own ways there, must be imported before."""
    for module, names in MISSING.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    sys.platform = "win32"
    for name in ("replace", "rename"):
        setattr(os, name, _checked(getattr(os, name), both=True))
    for name in ("unlink", "remove"):
        setattr(os, name, _checked(getattr(os, name), both=False))
    os.rmdir = _checked(os.rmdir, both=False)
    os.fsync = _fsync(os.fsync)
    os.open = _os_open(os.open)
    builtins.open = io.open = _text_open(builtins.open)


def _held() -> set[tuple[int, int]]:
    """Device and inode of what this process has open or mapped."""
    held = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            status = os.stat(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            held.add((status.st_dev, status.st_ino))
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            path = os.fsdecode(line.split(maxsplit=5)[-1].strip())
            if path.startswith("/") and os.path.isfile(path):
                held.add((os.stat(path).st_dev, os.stat(path).st_ino))
    return held


def _checked(call: Callable[..., Any], *, both: bool) -> Callable[..., Any]:
    def checked(*paths: Any, **settings: Any) -> Any:
        held = None
        for path in paths[: 2 if both else 1]:
            if settings.get("dir_fd") is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{settings['dir_fd']}"), path)
            files = [path] if os.path.isfile(path) else []
            if both and os.path.isdir(path):
                files = [os.path.join(place, name) for place, _, names in os.walk(path) for name in names]
            held = _held() if files and held is None else held
            for file in files:
                status = os.stat(file)
                if held is not None and (status.st_dev, status.st_ino) in held:
                    raise PermissionError(13, "The process cannot access the file because it is in use", str(file))
        return call(*paths, **settings)

    return checked


def _os_open(call: Callable[..., int]) -> Callable[..., int]:
    def checked(path: Any, flags: int, *more: Any, **settings: Any) -> int:
        inside = "shutil.py" in sys._getframe(1).f_code.co_filename  # which walks by descriptors where there are any
        if os.path.isdir(path) and not inside:
            raise PermissionError(13, "Permission denied", str(path))
        return call(path, flags, *more, **settings)

    return checked


def _fsync(call: Callable[[int], None]) -> Callable[[int], None]:
    def checked(descriptor: int) -> None:
        with builtins.open(f"/proc/self/fdinfo/{descriptor}", "rb") as facts:
            flags = int(next(line for line in facts if line.startswith(b"flags:")).split()[1], 8)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        call(descriptor)

    return checked


def _text_open(call: Callable[..., Any]) -> Callable[..., Any]:
    """Without an encoding, text is in the code page of the country."""

    def checked(file: Any, mode: str = "r", *more: Any, **settings: Any) -> Any:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.endswith("pathlib.py"):
            frame = frame.f_back
        ours = frame.f_globals.get("__name__", "").startswith(("vidtok_plugin", "world_model"))
        encoding = settings.get("encoding", more[1] if len(more) > 1 else None)
        if ours and "b" not in mode and encoding in (None, "locale"):
            raise AssertionError(f"{file} is opened without an encoding")
        return call(file, mode, *more, **settings)

    return checked


def ours() -> list[str]:
    """The names of all modules of both packages."""
    names = []
    for package in ("vidtok_plugin", "world_model"):
        path = importlib.import_module(package).__path__
        names += [module.name for module in pkgutil.walk_packages(path, f"{package}.")]
    return names


def main(folder: Path) -> None:
    import numpy as np
    import torch

    from vidtok_plugin import TokenizerAdapter, VidTok, cli
    from vidtok_plugin.video import write_video
    from world_model import cli as world_cli

    def run(command: Any, *arguments: str) -> None:
        code = command.main([*arguments, "--traceback"])
        assert code == 0, arguments

    torch.manual_seed(0)
    toy = VidTok.from_preset("vidtok_tiny", ch=4, ch_mult=(1, 1, 1, 1), num_res_blocks=1).eval()
    toy.save_pretrained(folder / "tokenizer")
    TokenizerAdapter(toy).save_pretrained(folder / "adapter")
    TokenizerAdapter.from_pretrained(folder / "adapter").save_pretrained(folder / "adapter")  # over the loaded one
    videos, store = folder / "videos", folder / "store"
    for number in range(3):
        frames = np.random.default_rng(number).integers(0, 255, (21, 16, 16, 3), np.uint8)
        write_video(videos / f"{number} ä.mp4", frames, fps=10)
    for split in ("train", "validation"):
        arguments = ["tokenize", str(videos), "--output", str(store), "--split", split, "--processes", "1"]
        run(cli, *arguments, "--model", str(folder / "adapter"))
    run(cli, "check", str(store))
    write_video(videos / "0 ä.mp4", frames[::-1], fps=10)
    run(cli, *arguments, "--model", str(folder / "adapter"), "--update")
    run(
        cli,
        "reconstruct",
        str(videos / "1 ä.mp4"),
        "--model",
        str(folder / "tokenizer"),
        "--output",
        str(folder / "a.mp4"),
    )
    small = ["model.max_steps=4", "model.transformer={width: 24, depth: 1, heads: 2}", "data.window_steps=4"]
    small += ["trainer.max_steps=2", "trainer.accelerator=cpu", "data.num_workers=0", "data.validation_windows=2"]
    small += ["checkpoint_every=1", "trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=1"]
    (folder / "empty.yaml").write_text("seed: 3\n", encoding="utf-8")
    fit = ["fit", "--config", str(folder / "empty.yaml"), f"data.store={store}", f"output={folder / 'run'}", *small]
    run(world_cli, *fit)
    run(world_cli, *fit, "trainer.max_steps=3")  # resumed
    rollout = ["rollout", "--model", str(folder / "run" / "model"), "--prompt", str(videos / "1 ä.mp4")]
    rollout += ["--prompt-frames", "5", "--frames", "4", "--output", str(folder / "imagined.mp4")]
    run(world_cli, *rollout)
    run(world_cli, *rollout)  # over the file of before


if __name__ == "__main__":
    for name in ours():
        importlib.import_module(name)
    main(Path(sys.argv[1], "before"))  # both import the other packages
    pretend()
    for name in list(sys.modules):
        if name.partition(".")[0] in ("vidtok_plugin", "world_model"):
            del sys.modules[name]
    for name in ours():
        importlib.import_module(name)
    main(Path(sys.argv[1], "after"))
    print("done")
