"""Recognize secrets by their names, and keep them out of the environment of other processes. Torch-free, Ray-free.

W&B's key, the hub's token and the keys of clouds are in the environment of the command that a user starts. The driver
needs them. A rollout worker, a reward actor and above all a verifier, which may run code that a model wrote, do not.

This module stays light: every Ray worker process imports it first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

HUB_VARIABLES = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN")
"""The variables in which the hub's library finds its token. Only the process that downloads the model needs them."""
_WORDS = re.compile(
    r"_(APIKEYS?|AUTHORIZATION|AUTHTOKEN|BEARER|COOKIE|CONNECTION_STRING|CREDENTIALS?|CREDS|DSN|JWT|KEYFILE|KUBECONFIG"
    r"|NETRC|OTP|PASS|PASSCODE|PASSPHRASE|PASSWD|PASSWORDS?|PAT|PGPASSFILE|PRIVKEY|PW|PWD|SAS|SECRETS?|SECRETKEY"
    r"|SESSION_ID|SIG|SIGNATURE|SK|TOKEN|TOKENFILE|WEBHOOK|(API|ACCESS|PRIVATE|SECRET|ENCRYPTION)_KEYS?|KEYS?_?[0-9]+)_"
)
"""Words of names. A plural such as MAX_TOKENS is a number of tokens, and PWD alone is the working directory."""
_PREFIXES = (
    "AWS_",
    "AZURE_",
    "GCP_",
    "GOOGLE_",
    "DOCKER_AUTH",
    "KAGGLE_",
    "NETRC",
    "VAULT_",
    "CI_JOB_",
    "SSH_",
    "KRB5",
    "X509_",
)
_ENDINGS = (
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "APIKEY",
    "CREDENTIALS",
    "_KEY",
    "_KEYS",
    "_AUTH",
)
_PLURALS = re.compile(r"(API|ACCESS|AUTH|REFRESH|SESSION|BEARER|DEPLOY|HUB|HF)_?TOKENS")
_ORDINARY = ("PWD", "OLDPWD")
_SECRET_VALUE = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@]+@"  # a URL with a user
    # The mark of an issuer and then random letters and digits. A folder such as hf_models_cache has no such part.
    r"|(?<![A-Za-z0-9])(hf_|gh[opsur]_|github_pat_|glpat-|xox[abprs]-|sk-|sk_live_|rk_live_|pypi-|npm_)[A-Za-z0-9_-]*?"
    r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{16}"
    r"|(?<![A-Za-z0-9])(AKIA|ASIA)[A-Z0-9]{12}"
    r"|(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{30}"
    r"|eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\."  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|(?i:(account|access|shared)_?key|password|pwd|token|secret|sig)\s*=\s*[^\s;&]"  # connection strings, queries
)
"""Values that are secrets whatever their names: addresses with a password, and keys with the marks of their issuers."""
_hidden: dict[str, str] = {}
"""The hub's variables that this process had in its environment when it started."""


def is_secret_name(name: str) -> bool:
    """Return True if a variable of this name probably has a secret as its value, or the path of one."""
    upper = re.sub(r"[^A-Z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()).strip("_")
    if upper in _ORDINARY:
        return False
    return (
        upper.startswith(_PREFIXES)
        or f"_{upper}".endswith(_ENDINGS)
        or _WORDS.search(f"_{upper}_") is not None
        or _PLURALS.search(upper) is not None
    )


def secret_names(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that have a secret, without those of Ray, whose processes need its token."""
    return [name for name in environment if is_secret_name(name) and not name.startswith("RAY_")]


def verifier_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that a verifier process gets: no secret by name or by value, and no variable
    of Ray, with which it could reach the cluster."""
    return {
        name: value
        for name, value in environment.items()
        if not (is_secret_name(name) or name.startswith("RAY_") or _SECRET_VALUE.search(value))
    }


def hide_secrets() -> None:
    """Remove the secrets from the environment of this process, so that none of its children inherits them.

    The hub's variables can be had back for the download of a model (`hub_variables`).
    """
    for name in secret_names(os.environ):
        value = os.environ.pop(name)
        if name in HUB_VARIABLES and value:
            _hidden[name] = value


@contextmanager
def hub_variables() -> Iterator[None]:
    """Restore the hub's variables that `hide_secrets` has removed, while the block runs."""
    missing = {name: value for name, value in _hidden.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
