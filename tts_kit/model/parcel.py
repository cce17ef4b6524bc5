"""An adapter's folder: whether it is one, whole, and for this base; all is asked before any weight is loaded."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from tts_kit import checkpoint
from tts_kit.model.load import Base
from tts_kit.problem import Problem
from tts_kit.run import read_json

WEIGHTS, CONFIG, VOICE = "adapter_model.safetensors", "adapter_config.json", "voice.json"
RESTORE = "Restore the folder from a copy, or train again in another run."
PLAIN = {"peft_type": "LORA", "use_dora": False, "lora_bias": False, "bias": "none", "modules_to_save": None,
         "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False, "use_rslora": False}
"""Settings of PEFT, and their values in adapters of this kit; layers that speak know no others."""


def read_voice(folder: Path) -> dict:
    """What an adapter folder says of itself; the folder is checked before any weight is loaded."""
    folder = Path(folder)
    if not folder.exists():
        raise Problem(f"{folder} does not exist: nothing was trained there yet. `python -m tts_kit train --run NAME` makes "
                      "it; to speak with the base alone give --untuned.")
    if folder.is_dir():
        checkpoint.refuse_pickles(folder, [path.name for path in folder.iterdir()])
    for name in (WEIGHTS, CONFIG, VOICE):
        if not (folder / name).is_file():
            raise Problem(f"{folder} is not an adapter of this kit: {name} is missing. Wanted: the folder that "
                          "`python -m tts_kit train` wrote, usually runs/NAME/adapter.")
    belongs = read_json(folder / VOICE, RESTORE)
    if lacking := [name for name in ("base", "revision", "base_fingerprint", "speaker") if name not in belongs]:
        raise Problem(f"{folder / VOICE} does not say {' and '.join(lacking)}. {RESTORE}")
    config = read_json(folder / CONFIG, RESTORE)
    for name, wanted in PLAIN.items():
        if (config.get(name) or wanted) != wanted:
            raise Problem(f"{folder / CONFIG} has {name} {config[name]!r}; wanted {wanted!r}: the kit speaks with plain "
                          "LoRA only. Train with `python -m tts_kit train`, or restore the file.")
    return belongs


def names_of_weights(base: Base, folder: Path, belongs: dict) -> set[str]:
    """What is in an adapter's file, once it is known to be whole, for this base and of the rank it says."""
    if belongs["base_fingerprint"] != base.fingerprint:
        raise Problem(f"{folder} was trained for {belongs['base']} (weights {belongs['base_fingerprint']}), but {base.name} "
                      f"is loaded (weights {base.fingerprint}). Load it with --base {belongs['base']}.")
    shapes = _shapes(folder / WEIGHTS)
    rank = read_json(folder / CONFIG, RESTORE).get("r")
    for name, shape in shapes.items():
        found = shape[0] if ".lora_A." in name else shape[-1]
        if found != rank:
            raise Problem(f"{folder / WEIGHTS} has an adapter of rank {found} ({name} is {' x '.join(map(str, shape))}), "
                          f"and its {CONFIG} says {rank}: they are of two trainings. {RESTORE}")
    return set(shapes)


def _shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of the weights in a file, by the header alone, which also says how long the file has to be."""
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    except SafetensorError as error:
        size = path.stat().st_size
        pointer = path.open("rb").read(20).startswith(b"version https://git")
        why = "a pointer of git-lfs, and no weights: fetch them with `git lfs pull`" if pointer else error
        raise Problem(f"{path} is damaged, or was downloaded by half: {size:,} bytes ({why}). {RESTORE}") from error
