"""Print the sizes of the package: lines, modules, dialect names, README bytes; the slowest tests if durations are given.

    python tests/house.py [pytest's output with --durations]
"""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIALECT = {"each", "found", "said", "told", "place", "places", "wanted", "made", "heard", "known", "beside", "some",
           "others", "mine", "theirs", "there", "shown", "listed", "asked", "luck", "room", "rooms", "seen"}
"""Filler and metaphors as identifiers: names that say neither what a thing is nor which kind it has."""


def bound_names(tree: ast.AST) -> list[str]:
    """Every identifier that a module binds: variables, arguments, functions, classes, import aliases."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
        elif isinstance(node, ast.arg):
            names.append(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.alias) and node.asname:
            names.append(node.asname)
    return names


def measure() -> dict:
    """Sizes of the tree."""
    modules = sorted((ROOT / "tts_kit").rglob("*.py"))
    names = Counter(name.strip("_").lower() for path in modules for name in bound_names(ast.parse(path.read_text())))
    return {"lines": sum(path.read_text().count("\n") for path in modules), "modules": len(modules),
            "dialect": {name: count for name, count in names.most_common() if name in DIALECT},
            "readme_bytes": (ROOT / "README.md").stat().st_size}


def main() -> None:
    sizes = measure()
    print(f"tts_kit: {sizes['lines']} lines of Python in {sizes['modules']} modules (at most 11,500 in 90)")
    print(f"README: {sizes['readme_bytes']} bytes (at most 10,240)")
    print(f"dialect names: {sum(sizes['dialect'].values())} {sizes['dialect'] or ''}")
    if len(sys.argv) > 1:
        durations = re.findall(r"^ *([\d.]+)s (?:call|setup|teardown) +(\S+)", Path(sys.argv[1]).read_text(), re.MULTILINE)
        print("slowest tests:", *(f"\n  {seconds:>7} s {test}" for seconds, test in durations[:50]))


if __name__ == "__main__":
    main()
