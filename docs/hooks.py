"""What makes a site of these pages: links that leave the folder work on GitHub and on the site alike.

Pictures that lie elsewhere in the repository come along; links to other files of it go to GitHub.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]

#: Folders of pictures, as pages in docs/ and as included files name them.
PICTURES = ("Screenshots", "Testing/Benchmark/results")

_LINK = re.compile(r"(!?\[[^\]]*\]\()((?:\.\./)?(?:[\w.-]+/)*[\w.-]+)(\))")


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures."""
    for folder in PICTURES:
        for path in sorted((ROOT / folder).glob("*.png")):
            files.append(File(path.relative_to(ROOT).as_posix(), str(ROOT), config["site_dir"], False))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Pictures are beside the pages on the site; other files of the repository are on GitHub."""

    def target(match: re.Match) -> str:
        head, link, tail = match.groups()
        path = link[3:] if link.startswith("../") else link
        if not link.startswith("../") and (ROOT / "docs" / link).exists():
            return match[0]
        if not (ROOT / path).exists():
            return match[0]  # the build says that it leads nowhere
        if path.endswith(".png"):
            return f"{head}{path}{tail}"
        return f"{head}{config['repo_url']}/blob/main/{path}{tail}"

    return _LINK.sub(target, markdown)
