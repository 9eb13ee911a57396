"""JSON files that may be damaged or foreign: read whole, within bounds, or one error that names file and remedy."""

import json
from pathlib import Path
from typing import Any

from vidtok_plugin.common.paths import is_regular_file

MAX_BYTES = 64 << 20


def read_json(path: Path, remedy: str, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file; `remedy` ends the error's sentence.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, too large, not UTF-8, not JSON, or nested too deeply.
    """
    if not is_regular_file(path):
        raise ValueError(f"{path} must be a regular file; {remedy}.")
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"{path} must have at most {max_bytes} bytes, got {size}; {remedy}.")
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError as error:  # not only JSONDecodeError: also a number with too many digits
        problem = f"is not valid JSON ({error})"
    raise ValueError(f"{path} {problem}; {remedy}.")


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file; errors as in `read_json`, also for a value of another kind."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}; {remedy}.")
    return value
