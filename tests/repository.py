"""The repository's pages and files."""

import re
import subprocess
from pathlib import Path

from processes import ROOT

PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md")
]


PAGES += sorted((ROOT / "docs").glob("*.md"))


BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROOMS = (  # from the top down
    "cli",
    "serve",
    "benchmarks",
    "experiments",
    "train",
    "eval",
    "data",
    "adapters",
    "model",
    "files",
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def tracked() -> list[str]:
    """Files of the repository, also outside of a git checkout (a downloaded archive)."""
    try:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return [name for name in run.stdout.splitlines() if (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        skip = {".venv", "runs", "models", "__pycache__", ".pytest_cache", ".ruff_cache"}
        files = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
        return [str(path) for path in files if not skip & set(path.parts)]
