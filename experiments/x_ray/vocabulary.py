"""Vocabularies: from text to the tokens that a checkpoint was trained on."""

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTE_VOCAB = 256
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
BYTE_PAIRS = "vocab.json", "merges.txt"
OTHER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm", "*.tiktoken", "tekken.json")
"""Names of the files of other tokenizers."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A vocabulary: the way from text to tokens, and back.

    Args:
        name: for people.
        read: text -> token ids.
        spell: a token id -> what it stands for.
        mask: the token that hides another.
        before: tokens that stand in front of every text, as of its beginning.
        after: tokens behind every text.
    """

    name: str
    read: Callable[[str], list[int]]
    spell: Callable[[int], str]
    mask: int = 0
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def _spell_byte(token: int) -> str:
    return chr(token) if 32 < token < 127 else {10: "↵", 32: "␣"}.get(token, f"x{token:02x}")


BYTES = Vocabulary(name="UTF-8 bytes", read=lambda text: list(text.encode()), spell=_spell_byte)


def of_folder(folder: Path, kind: str, vocab: int) -> Vocabulary:
    """The vocabulary of a checkpoint: its tokenizer, or bytes where it has none and there are as many as bytes.

    Args:
        folder: of the checkpoint. A tokenizer.json is read, and the vocab.json and merges.txt of a gpt2.
        kind: its architecture.
        vocab: V of the model.

    Raises:
        ValueError: a tokenizer that cannot be read, or none and another vocabulary than bytes.
    """
    if (folder / TOKENIZER).is_file():
        tokenizer = _load(folder / TOKENIZER, lambda library: library.Tokenizer.from_file(str(folder / TOKENIZER)))
        return _of_tokenizer(tokenizer, folder)
    if kind == "gpt2" and all((folder / name).is_file() for name in BYTE_PAIRS):
        return _of_tokenizer(_load(folder / BYTE_PAIRS[0], lambda library: _byte_pairs(library, folder)), folder)
    others = sorted({path.name for pattern in OTHER_FILES for path in folder.glob(pattern)})
    if others:
        raise ValueError(
            f"{folder} has no {TOKENIZER}, and {', '.join(others)} is not read here; AutoTokenizer of transformers "
            f"makes one: from_pretrained(folder).save_pretrained(folder)"
        )
    if vocab != BYTE_VOCAB:
        raise ValueError(f"{folder} has no {TOKENIZER}, and a vocabulary of {vocab:,} is not of bytes ({BYTE_VOCAB})")
    return BYTES


def _load(path: Path, make: Callable[[Any], Any]) -> Any:
    """Tokenizer that the library makes of a file, whatever goes wrong in it as a ValueError."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        raise ValueError(f"to read {path}, install the package tokenizers") from None
    try:
        return make(library)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _byte_pairs(library: Any, folder: Path) -> Any:
    """The tokenizer of GPT-2, byte pairs over bytes, from its older files."""
    level = library.pre_tokenizers.ByteLevel
    tokenizer = library.Tokenizer(library.models.BPE.from_file(*(str(folder / name) for name in BYTE_PAIRS)))
    lacking = set(level.alphabet()) - set(tokenizer.get_vocab())
    if lacking:
        raise ValueError(f"{len(lacking)} of the 256 bytes are not in it")
    tokenizer.pre_tokenizer = level(add_prefix_space=bool(_settings(folder).get("add_prefix_space")))
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _of_tokenizer(tokenizer: Any, folder: Path) -> Vocabulary:
    """A tokenizer that cuts and pads nothing, whatever was stored with it."""
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def spell(token: int) -> str:
        return tokenizer.decode([token], skip_special_tokens=False).replace(" ", "␣").replace("\n", "↵")

    encoding = tokenizer.encode("a")
    text_places = [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
    first, last = (text_places[0], text_places[-1] + 1) if text_places else (len(encoding.ids), len(encoding.ids))
    return Vocabulary(
        name=f"{type(tokenizer.model).__name__} tokens",
        read=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        spell=spell,
        mask=next(filter(None, map(tokenizer.token_to_id, ("[MASK]", "<mask>"))), 0),
        before=_with_beginning(tokenizer, folder, tuple(encoding.ids[:first])),
        after=tuple(encoding.ids[last:]),
    )


def _with_beginning(tokenizer: Any, folder: Path, before: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens that stand before a text, that of its beginning included where only the settings beside say so."""
    settings = _settings(folder)
    wanted, token = settings.get("add_bos_token"), settings.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is None or not isinstance(wanted, bool):
        return before
    beginning = tokenizer.token_to_id(str(token))
    if wanted and beginning is None:
        raise ValueError(f"{folder / SETTINGS} puts {token!r} before a text, which the tokenizer does not know")
    if not wanted and beginning in before:
        raise ValueError(
            f"{folder / TOKENIZER} puts {token!r} before a text, and {SETTINGS} says add_bos_token false; make "
            "them agree"
        )
    return (beginning, *before) if wanted and beginning not in before else before


def _settings(folder: Path) -> dict[str, Any]:
    """The settings beside a tokenizer; none if there is no file of them."""
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object; it holds {type(settings).__name__}")
    return settings
