"""Sphinx extension: a page for every public name, and tables of options."""

import inspect
import re
from pathlib import Path

import public_names
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.errors import ExtensionError


def setup(app):
    """Connects the extension to Sphinx."""
    app.connect("builder-inited", _write_pages)
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", _literal_blocks, priority=400)
    app.add_directive("options", Options)
    return {"version": "1", "parallel_read_safe": True}


class Options(Directive):
    """Table of the arguments of a public name, from signature and docstring, on a page of MyST."""

    required_arguments = 1

    def run(self):
        value = public_names.public_names().get(self.arguments[0])
        if value is None:
            raise self.error(f"Expected a public name. Received: {self.arguments[0]}.")
        rows = [
            (f"`{name}`", "" if default is inspect.Parameter.empty else _shown(default), text)
            for name, default, text in public_names.options(value)
        ]
        table = [("argument", "default", "what it is"), ("---", "---", "---"), *rows]
        lines = ["| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in table]
        parent = nodes.Element()
        self.state.nested_parse(StringList(lines, self.arguments[0]), self.content_offset, parent)
        return parent.children


def _shown(default):
    return f"`{getattr(default, '__name__', None) or repr(default)}`"


def _write_pages(app):
    missing = public_names.undocumented()
    if missing:
        raise ExtensionError("These public names or arguments have no text: " + ", ".join(missing))
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    names = public_names.public_names()
    pages = {f"{name}.rst": _page(name, value) for name, value in names.items()}
    for module in public_names.modules():
        pages[f"{module}.rst"] = _module_page(module, names)
    pages["index.rst"] = _index(names)
    for old in folder.glob("*.rst"):
        if old.name not in pages:
            old.unlink()
    for file, text in pages.items():
        path = folder / file
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _titled(title, *lines):
    return "\n".join([title, "=" * len(title), "", *lines, ""])


def _page(name, value):
    if not inspect.isclass(value):
        return _titled(name, f".. autofunction:: keras_mikd.{name}")
    own = [
        key
        for key, each in vars(value).items()
        if key[0] != "_" and getattr(each, "__doc__", None) and not _is_plain(each)
    ]
    members = [f"   :members: {', '.join(own)}"] if own else []
    return _titled(name, f".. autoclass:: keras_mikd.{name}", *members)


def _is_plain(value):
    return isinstance(value, (int, float, str, bool, tuple, dict, list))


def _module_page(module, names):
    own = [name for name in names if name.startswith(module + ".")]
    return _titled(module, f".. automodule:: keras_mikd.{module}", "", *_toctree(own))


def _index(names):
    plain = [name for name in names if "." not in name]
    modules = list(public_names.modules())
    text = "Every public name of ``keras_mikd`` has a page. Modules come first."
    return _titled("API reference", text, "", *_toctree([*modules, *sorted(plain, key=str.lower)]))


def _toctree(names):
    return [".. toctree::", "   :maxdepth: 1", "", *[f"   {name} <{name}>" for name in names]]


def _literal_blocks(_app, _what, _name, _value, _options, lines):
    """Makes code of a docstring, fenced or indented, a literal block of reStructuredText."""
    _indent_fenced(lines)
    for i in range(len(lines) - 1, 1, -1):
        if not (lines[i].startswith("    ") and not lines[i - 1].strip()):
            continue
        before = next((each for each in reversed(lines[: i - 1]) if each.strip()), "")
        if before and not before.startswith(" ") and not re.fullmatch(r"[A-Z]\w+:", before):
            lines[i:i] = ["::", ""]


def _indent_fenced(lines):
    inside = False
    for i, line in enumerate(lines):
        if line.startswith("```"):
            inside, lines[i] = not inside, ""
        elif inside and line:
            lines[i] = "    " + line
