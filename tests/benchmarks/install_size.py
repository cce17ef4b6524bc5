"""Size of what `pip install "tts-kit[all]"` puts on disk: python -m tests.benchmarks.install_size

Sums the files of the packages that it asks for, as they are installed here. Writes results/install_size.json.
"""

import importlib.metadata
import json
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tts_kit import device
from tts_kit.io import write_json

RESULTS = Path(__file__).parent / "results" / "install_size.json"


def packages(requirement: Requirement, found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Add a package and all that it requires, name -> extras."""
    name, extras = canonicalize_name(requirement.name), {"", *requirement.extras}
    if extras <= found.get(name, set()):
        return found
    found.setdefault(name, set()).update(extras)
    for line in importlib.metadata.distribution(name).requires or []:
        other = Requirement(line)
        if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in extras):
            packages(other, found)
    return found


def size(name: str) -> int:
    """Bytes of a package's files."""
    distribution = importlib.metadata.distribution(name)
    paths = [Path(distribution.locate_file(file)) for file in distribution.files or []]
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    sizes = {name: size(name) for name in packages(Requirement("tts-kit[all]"), {})}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:8]
    result = {"what": 'pip install "tts-kit[all]", torch without CUDA', "packages": len(sizes),
              "GB": round(sum(sizes.values()) / 1e9, 1), "largest, MB": {name: round(sizes[name] / 1e6) for name in largest},
              "machine": device.machine(), "versions": device.versions(),
              "command": "python -m tests.benchmarks.install_size"}
    write_json(RESULTS, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
