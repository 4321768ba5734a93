"""Every public name has an entry in the site's API pages."""

import pkgutil
import re
from pathlib import Path

import pytest
from test_public_names import NAMES, OTHERS

FOLDER = Path(__file__).parents[1] / "docs" / "api"
if not FOLDER.exists():
    pytest.skip("a copy of the package without its pages", allow_module_level=True)
ENTRIES = [name for page in FOLDER.glob("*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]


def test_every_public_name_has_an_entry():
    described = {id(pkgutil.resolve_name(entry)) for entry in ENTRIES}
    public = [(module, name) for module, names in {**NAMES, **OTHERS}.items() for name in names]
    missing = [
        f"{module.__name__}.{name}" for module, name in public if id(getattr(module, name)) not in described
    ]
    assert missing == []
