"""Pages of the site that lie elsewhere in the tree: the folders' READMEs, the changelog. None of them is copied.

A page is named by its path in the tree, without ``docs/``. Links in it are those of the tree, so that they work where
the file is read beside the code: here they are turned into those of the site.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
FOREIGN_SCRIPT = "https://unpkg.com/iframe-worker/shim"
LINK = re.compile(r"(?P<open>!?\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\()(?P<path>[^)\s#:]+)(?P<rest>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Folders in ``nav`` become their pages; what is outside of ``docs/`` is watched by ``mkdocs serve`` as well."""
    config.nav = _listed(config.nav)
    return config


def _listed(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_listed(part) for part in entry]
    if isinstance(entry, dict):
        return {title: _listed(part) for title, part in entry.items()}
    if not entry.endswith("/"):
        return entry
    pages = sorted((ROOT / "docs" / entry).glob("*.md"), key=lambda page: (page.stem != "index", page.stem))
    return [entry + page.name for page in pages]


def _paths(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [path for part in (entry.values() if isinstance(entry, dict) else entry) for path in _paths(part)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of ``nav`` that lie outside of ``docs/``."""
    for path in _paths(config.nav):
        if files.get_file_from_path(path) is None and (ROOT / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the tree become links between pages; of what is no page only the name stays."""
    assert page.file.abs_src_path
    folder = Path(page.file.abs_src_path).parent

    def replace(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / link["path"]))
        if not target.exists():
            return link[0]  # which the strict build reports
        path = page_of(target, Path(config.docs_dir))
        if files.get_file_from_path(path) is None:
            return link["text"] if link["text"].startswith("`") else f"`{link['text']}`"
        here = os.path.dirname(page.file.src_uri)
        return f"{link['open']}{os.path.relpath(path, here or '.')}{link['rest'] or ''})"

    return LINK.sub(replace, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The theme's offline search takes one script from the network; ours does the same."""
    return output.replace(FOREIGN_SCRIPT, os.path.relpath("search_in_frame.js", os.path.dirname(page.url) or "."))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """The same in 404.html, which is shown at any depth."""
    return output_content.replace(FOREIGN_SCRIPT, "/search_in_frame.js")


def page_of(target: Path, docs: Path) -> str:
    """The name of the page that a file or a folder of the tree has on the site, if it has one."""
    target = target / "README.md" if target.is_dir() else target
    if target == ROOT / "README.md":
        return "index.md"
    return target.relative_to(docs if target.is_relative_to(docs) else ROOT).as_posix()
