"""What the package's own code is, for caches of what it made."""

import hashlib
from functools import cache
from pathlib import Path


@cache
def code_hash() -> str:
    """A hash of the modules that decide which tokens and masks a row becomes.

    `datasets` finds what a `map` has made before by a hash of its function. Of a function in a package it takes the
    name alone, so that a new release would be given what an old one made. A field with this hash tells them apart.
    """
    package = Path(__file__).resolve().parents[1]
    modules = sorted(path for folder in ("data", "edits", "utils") for path in (package / folder).glob("*.py"))
    modules.append(package / "ppo" / "prompts.py")
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()
