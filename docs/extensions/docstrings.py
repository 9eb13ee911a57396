"""A griffe extension: docstrings as this code base writes them, as Markdown for the API reference.

Three things change. An `Example:` becomes a code block. Paragraphs that begin with the names of parameters, such as
`source: a preset's name`, become a list. A dataclass's fields are listed with the comments beside them, which are their
documentation.
"""

import re
from typing import Any

import griffe

NAMED = re.compile(r"^(\w+(?:, \w+)*): (.*)$")
COMMENT = re.compile(r"^[^#\"']*?(?:(?:\"[^\"]*\"|'[^']*')[^#\"']*)*#\s?(.*)$")


class Docstrings(griffe.Extension):
    def on_class(self, *, cls: griffe.Class, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        names = {*cls.members, *(parameter.name for parameter in cls.parameters)}
        self.rewrite(cls, names, fields=field_list(cls) if "dataclass" in cls.labels else "")

    def on_function(self, *, func: griffe.Function, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        self.rewrite(func, {parameter.name for parameter in func.parameters})

    def rewrite(self, obj: griffe.Object, names: set[str], fields: str = "") -> None:
        if obj.docstring is not None:
            text, mark, sections = obj.docstring.value.partition("\n\nRaises:")
            text = list_names(fence_examples(text), names)
            obj.docstring.value = text + (f"\n\n{fields}" if fields else "") + fence_examples(mark + sections)


def fence_examples(text: str) -> str:
    """Each `Example:` section as a paragraph and a code block."""
    lines: list[str] = []
    block: list[str] | None = None
    for line in [*text.splitlines(), None]:
        if block is not None and (line is None or (line.strip() and not line.startswith("    "))):
            code = [row[4:].split("  # doctest:")[0] for row in block]
            while code and not code[-1].strip():
                code.pop()
            language = "pycon" if any(row.startswith(">>>") for row in code) else "python"
            lines += ["**Example**", "", f"```{language}", *code, "```", ""]
            block = None
        if line is None:
            break
        if block is not None:
            block.append(line)
        elif line.rstrip() == "Example:":
            block = []
        else:
            lines.append(line)
    return "\n".join(lines)


def list_names(text: str, names: set[str]) -> str:
    """Paragraphs of `name: text` lines as a list, where all of them are known names."""
    lines: list[str] = []
    in_list = in_code = False
    for line in text.splitlines():
        in_code ^= line.startswith("```")
        match = None if in_code else NAMED.match(line)
        if match and set(match[1].split(", ")) <= names:
            if not in_list and lines and lines[-1].strip():
                lines.append("")
            lines.append(f"- {', '.join(f'`{name}`' for name in match[1].split(', '))}: {match[2]}")
            in_list = True
        else:
            in_list = in_list and line.startswith("    ")
            lines.append(line)
    return "\n".join(lines)


def field_list(cls: griffe.Class) -> str:
    """The fields of a dataclass that have a comment, as a list."""
    items = []
    for name, member in cls.members.items():
        if member.is_attribute and not name.startswith("_") and (comment := comment_of(member)):
            items.append(f"- `{name}`: {comment}")
    return "\n".join(items)


def comment_of(field: griffe.Object) -> str:
    """The comment on the line of a field, or on the lines above that hold nothing else."""
    lines, number = field.module.lines_collection[field.filepath], field.lineno or 0
    match = COMMENT.match(lines[(field.endlineno or number) - 1])
    if match:
        return str(match[1])
    above: list[str] = []
    while number > 1 and lines[number - 2].strip().startswith("#"):
        number -= 1
        above.insert(0, lines[number - 1].strip().lstrip("# "))
    return " ".join(above)
