"""Secrets are recognized by their names, and the environments of other processes do not have them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core import secrets
from cluster.core.addresses import shown_text, shown_url, url_problem, without_url_secrets
from cluster.core.config import RunConfig
from cluster.core.secrets import hide_secrets, hub_variables, is_secret_name, verifier_environment
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.actor_logs import SETUP_HOOK
from reward.sandbox.pool import Sandbox
from reward.sandbox.spec import Limits, RunnerSpec

OWNERS = ["WANDB", "HF", "GITHUB", "OPENAI", "MY_SERVICE", "DB", "x"]
KINDS = ["TOKEN", "API_KEY", "SECRET", "PASSWORD", "CREDENTIALS", "ACCESS_KEY", "PRIVATE_KEY", "PASSPHRASE"]
NAMES = st.builds(
    "{}_{}{}".format, st.sampled_from(OWNERS), st.sampled_from(KINDS), st.sampled_from(["", "_FILE", "_2"])
)
KNOWN = [
    *(
        "WANDB_API_KEY",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
    ),
    *(
        "GOOGLE_APPLICATION_CREDENTIALS",
        "AZURE_CLIENT_SECRET",
        "GITHUB_TOKEN",
        "GH_PAT",
        "KUBECONFIG",
        "PGPASSWORD",
    ),
    *(
        "SLACK_WEBHOOK_URL",
        "STRIPE_SK",
        "STORAGE_CONNECTION_STRING",
        "SAS_URL",
        "SESSION_ID",
        "X_KEY1",
        "X_KEY_2",
    ),
    *("X509_USER_PROXY", "KRB5CCNAME"),
    *("SSH_AUTH_SOCK", "DATABASE_DSN", "NETRC", "KAGGLE_KEY", "openai_api_key", "hfToken", "SENTRY_DSN"),
]
ORDINARY = [
    *(
        "PATH",
        "PYTHONPATH",
        "HOME",
        "PWD",
        "OLDPWD",
        "TOKENIZERS_PARALLELISM",
        "VLLM_MAX_TOKENS",
        "MAX_TOKENS",
    ),
    *(
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "LD_LIBRARY_PATH",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "WANDB_MODE",
    ),
    *("SORT_KEY_FUNCTION", "TASK_ID", "SKIP", "KEYBOARD"),
    *("NCCL_SOCKET_IFNAME", "TMPDIR", "LANG", "VIRTUAL_ENV", "DS_ACCELERATOR", "HTTP_PROXY", "MONKEY"),
]


@pytest.mark.parametrize("name", KNOWN)
def test_known_secrets_are_recognized(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_variables_are_not_secrets(name: str) -> None:
    assert not is_secret_name(name)


@given(NAMES, st.booleans())
def test_names_of_secrets_are_recognized(name: str, lower: bool) -> None:
    assert is_secret_name(name.lower() if lower else name)


def planted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put secrets into the environment of this process, and return their names."""
    names = sorted({f"{owner}_{kind}".upper() for owner in OWNERS for kind in KINDS} | set(KNOWN))
    for name in names:
        monkeypatch.setenv(name, f"PLANTED-{name}")
    return names


def test_an_actor_hides_the_secrets_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_hidden", {})
    names = planted(monkeypatch)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "needed by Ray")
    hide_secrets()
    assert not set(names) & os.environ.keys()
    assert os.environ["RAY_AUTH_TOKEN"] == "needed by Ray"
    with hub_variables():
        assert os.environ["HF_TOKEN"] == "PLANTED-HF_TOKEN"
        assert "WANDB_API_KEY" not in os.environ
    assert "HF_TOKEN" not in os.environ


def test_the_hook_of_worker_processes_exists() -> None:
    from importlib import import_module

    module, _, function = SETUP_HOOK.rpartition(".")
    assert callable(getattr(import_module(module), function))


def test_a_verifier_process_has_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real process of the sandbox reports its whole environment."""
    planted(monkeypatch)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "PLANTED")
    monkeypatch.setenv("RAY_ADDRESS", "PLANTED:6379")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:PLANTED@proxy:3128")
    monkeypatch.setenv("ORDINARY", "is passed on")
    (tmp_path / "reporter.py").write_text(
        "import os\nfrom cluster.core.types import Verdict\n"
        "class Runner:\n    batched = False\n    def score(self, problem, response):\n"
        "        with open('/proc/self/environ') as file:\n"
        "            found = str(os.environ) + file.read()\n"
        '        reason = f\'{os.environ.get("ORDINARY")}, secret: {"PLANTED" in found}\'\n'
        "        return Verdict('correct', 1.0, None, reason)\n"
    )
    spec = RunnerSpec("reporter:Runner", (), (str(tmp_path),))

    async def reported() -> str:
        async with Sandbox(spec, Limits(), 1) as sandbox:
            async for verdicts in sandbox.score([(None, "")]):
                return verdicts[0][1].reason
        raise AssertionError("no verdict")

    reason = asyncio.run(reported())
    assert reason == "is passed on, secret: False"
    assert not [name for name in verifier_environment(os.environ) if name.startswith("RAY_")]


LETTERS = st.text("abcdefghijkmnpqrstuvwxyzABCDEFGHIJKLMNPQRSTUVWXYZ", min_size=20, max_size=30)
RANDOM = st.builds("{}{}{}".format, LETTERS, st.integers(0, 10**6), LETTERS)


@given(
    st.sampled_from(
        ["hf_", "ghp_", "github_pat_", "glpat-", "xoxb-", "sk-", "sk-proj-", "pypi-", "AIza", "npm_"]
    ),
    RANDOM,
    st.sampled_from(["{}", "Bearer {}", "--token {}", "key: {}"]),
)
def test_a_key_is_recognized_by_its_value(mark: str, rest: str, around: str) -> None:
    assert verifier_environment({"INNOCENT": around.format(mark + rest)}) == {}


@pytest.mark.parametrize(
    "value",
    [
        "AKIA2EXAMPLE3KEY4567",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
        "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=PLANTED",
        "Server=x;Password=PLANTED",
        "http://host/x?token=PLANTED",
        "postgres://user:PLANTED@host/db",
    ],
)
def test_other_secrets_are_recognized_by_their_values(value: str) -> None:
    assert verifier_environment({"INNOCENT": value}) == {}


@pytest.mark.parametrize(
    "value",
    [
        "/usr/bin:/bin",
        "C.UTF-8",
        "http://proxy:3128",
        "task-123456789012",
        "shf_conversion_table_v2",
        "1",
        "/data/hf_models_cache_directory/hub:/x",
        "/opt/sk-learn-experiments-2024/bin",
        "/work/hf_datasets-v2",
    ],
)
def test_ordinary_values_are_passed_on(value: str) -> None:
    assert verifier_environment({"INNOCENT": value}) == {"INNOCENT": value}


SECRET_URLS = st.builds(
    "http://{}127.0.0.1:9/score?mode=strict&{}={}".format,
    st.sampled_from(["", "user:PLANTED@", "PLANTED@"]),
    st.sampled_from(["token", "api_key", "key", "sig", "access_token", "password", "auth", "code"]),
    st.sampled_from(["PLANTED", "PLANTED0123456789abcdef"]),
)


@given(SECRET_URLS)
def test_a_url_with_a_secret_is_refused_and_never_shown(url: str) -> None:
    problem = url_problem(url)
    assert problem is not None
    assert "PLANTED" not in problem
    assert shown_url(url) == "http://127.0.0.1:9/score"
    assert shown_text(f"cannot reach {url} (refused)") == "cannot reach http://127.0.0.1:9/score (refused)"
    assert without_url_secrets({"a": [url]}) == {"a": ["http://127.0.0.1:9/score?mode=strict"]}


def test_a_url_without_a_secret_stays() -> None:
    url = "https://host:8000/v1/score?model=Qwen2.5-Coder-1.5B-Instruct&mode=strict"
    assert url_problem(url) is None
    assert without_url_secrets(url) == url


@given(SECRET_URLS)
def test_the_configuration_is_written_without_secrets(url: str) -> None:
    """The same dump is sent to W&B and shown in the report."""
    config = RunConfig.model_validate({"task": {"name": "http", "options": {"url": url, "data": "x.jsonl"}}})
    assert "PLANTED" not in str(config.model_dump(mode="json"))
    assert config.task.options["url"] == url  # for the actors


def test_config_yaml_is_written_without_secrets(tmp_path: Path) -> None:
    url = "http://user:PLANTED@127.0.0.1:9/score?token=PLANTED"
    values = {"directory": str(tmp_path), "task": {"name": "http", "options": {"url": url}}}
    config = RunConfig.model_validate(values)
    run = RunDirectory(config.run_directory)
    run.create()
    run.write_config(config)
    assert "PLANTED" not in run.config_file.read_text()
    assert "http://127.0.0.1:9/score" in run.config_file.read_text()
