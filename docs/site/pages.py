"""The site's files: every page of the repository and what the pages link to, at the paths they have there.

So a relative link works on the site as it does on a forge.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *ROOT.glob("docs/**/*.md"),
]
OWN = [*ROOT.glob("docs/site/*.css"), *ROOT.glob("docs/site/*.js")]
_LINK = re.compile(r"\]\(([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Returns the theme's files and these, instead of all that lies in docs."""
    linked = {
        (page.parent / target).resolve() for page in PAGES for target in _LINK.findall(page.read_text())
    }
    paths = {*PAGES, *OWN, *filter(Path.is_file, linked)}
    places = sorted(path.relative_to(ROOT).as_posix() for path in paths)
    ours = [File(place, str(ROOT), config.site_dir, config.use_directory_urls) for place in places]
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *ours])
