"""Reading the architectures that a user names: a config.json, a directory with one, or a published name."""

import json
from pathlib import Path

from pydantic import ValidationError

from scaling.architecture import Architecture
from scaling.named import all_named, named_architecture


def read_config(path_or_name: str | Path) -> Architecture:
    """The architecture of a config.json, of a directory that holds one, or of a name such as llama-3.2-1b.

    A file without model_type holds the fields of `Architecture` and nothing else: there a misspelt one is refused.

    Raises:
        ValueError: there is no such file or name, it is not JSON, or not a dense Llama-style decoder.
    """
    text = str(path_or_name)
    path = Path(text)
    if text.lower() in {named.name for named in all_named()} and not path.exists():
        return named_architecture(text)
    try:
        file = path / "config.json" if path.is_dir() else path
    except OSError as error:  # a name longer than names can be
        raise ValueError(f"{text:.200}: cannot be read: {error.strerror}") from None
    config = _read_json_object(file, text)
    try:
        if "model_type" not in config:  # archfleet's own words: the same names, and no others
            return Architecture.model_validate(config)
        return Architecture.from_hf_config(config)
    except ValidationError as error:  # a ValueError too, but with lines of its own
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{file}: not a legal architecture: {problems}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _read_json_object(file: Path, given: str) -> dict[str, object]:
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        known = ", ".join(named.name for named in all_named())
        raise ValueError(f"{given}: no such file; expected a config.json, its directory, or one of: {known}") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not a text file; expected a config.json") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or a nest of thousands of lists
        raise ValueError(f"{file}: not a config.json: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected a JSON object with config.json's fields, got {type(config).__name__}")
    return config
