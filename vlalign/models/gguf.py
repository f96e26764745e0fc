"""Language models that come as a GGUF file, made into a folder that transformers loads, once."""

import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from vlalign.files import cache_folder
from vlalign.models.fetching import fetching
from vlalign.types import UserError


def converted(file: Path) -> Path:
    """The folder of a GGUF file's weights (bfloat16), config and tokenizer, kept in the user's cache.

    Raises UserError.
    """
    told = file.stat()
    cache = cache_folder() / "models"
    folder = cache / f"{file.stem}-{told.st_size}-{told.st_mtime_ns}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # every process of a run asks at once
        if not folder.is_dir():
            new = Path(tempfile.mkdtemp(dir=cache))
            try:
                with fetching(str(file), "transformers"):
                    _convert(file, new)
                new.rename(folder)
            except (struct.error, LookupError) as error:  # of a file that ends too early
                raise UserError(f"{file}: it is no whole GGUF file ({error}); fetch it again") from error
            finally:
                shutil.rmtree(new, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        import gguf  # noqa: F401  # what transformers reads the file with
    except ImportError as error:
        raise UserError(f"{file}: reading it needs another package; run: pip install gguf") from error
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    if hasattr(read.config, "quantization_config"):  # it tells of the file, and not of the numbers read
        del read.config.quantization_config
    auto: Any = AutoModelForCausalLM
    net = auto.from_config(read.config, dtype=torch.bfloat16)
    net.load_state_dict(read.state_dict())
    net.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(**where).save_pretrained(str(folder))
