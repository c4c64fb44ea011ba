"""The key of an exchange, from a file or from two texts; in no message and in no ``repr``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from statestore.errors import CredentialsError

_LONGEST_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """An exchange key. Never printed: its ``repr`` shows neither name nor secret."""

    api_key: str = field(repr=False)
    api_secret: str = field(repr=False)


def read_credentials(
    key_file: Path | None, api_key: str | None, api_secret: str | None
) -> Credentials:
    """Return the credentials of a key file, or else those given as two texts.

    Raises:
        CredentialsError: none are given, half of them, or the file is not a key file.
    """
    if key_file is not None:
        return _credentials_of(key_file)
    if not api_key and not api_secret:
        raise CredentialsError(
            "no credentials for the exchange; give a key file with --key-file FILE or in "
            "COINBASE_KEY_FILE, or set COINBASE_API_KEY and COINBASE_API_SECRET "
            "(a key with the View permission is enough)"
        )
    if not api_key or not api_secret:
        missing = "COINBASE_API_SECRET" if api_key else "COINBASE_API_KEY"
        raise CredentialsError(f"half of the credentials is missing: set {missing} as well")
    return Credentials(api_key.strip(), api_secret.strip())


def _credentials_of(key_file: Path) -> Credentials:
    # `from None` throughout: a decoder's error carries the text it could not decode.
    try:
        with key_file.open("rb") as file:
            document = json.loads(file.read(_LONGEST_FILE).decode("utf-8-sig"))
    except OSError as error:
        raise CredentialsError(f"cannot read key file {key_file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CredentialsError(
            f"key file {key_file} is not JSON; expected the file the exchange gives out, "
            'as {"name": "organizations/...", "privateKey": "-----BEGIN ..."}'
        ) from None
    if not isinstance(document, dict):
        raise CredentialsError(f"key file {key_file} holds no JSON object with name and privateKey")
    name = document.get("name") or document.get("id")
    secret = document.get("privateKey")
    for what, value in (("name (or id)", name), ("privateKey", secret)):
        if not isinstance(value, str) or not value.strip():
            raise CredentialsError(
                f"key file {key_file} has no {what}; download the key again or make a new one"
            )
    return Credentials(str(name).strip(), str(secret).strip())
