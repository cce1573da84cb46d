"""Each kind of model name is resolved to a directory, and the cache contains complete models only."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.configuration.loading import load_config
from cluster.core.config import ModelConfig, RunConfig, TaskConfig
from cluster.models import source as models
from cluster.models.source import ModelSource, locate, prepare_model, ready_directory
from reward.task import StarterRecipe
from reward.tasks.countdown.task import CountdownOptions, CountdownTask
from tests import PROJECT


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an importable package with a file `data/model.gguf`."""
    root = tmp_path / "site" / "package_with_a_model"
    (root / "data").mkdir(parents=True)
    (root / "__init__.py").write_text("raise ImportError('the package must not be imported')")
    (root / "data" / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return root.name


def config(cache: Path, source: str = "starter", **options: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"model": {"source": source, "cache_directory": str(cache)}, "task": {"options": options}}
    )


def make_model(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(bytes(10))
    return directory


def building(monkeypatch: pytest.MonkeyPatch, build: Callable[[Path], object]) -> list[Path]:
    """Replace the training of a starter model by `build(directory)`. Return the list of directories, which grows."""
    built: list[Path] = []

    def build_starter(_task: object, directory: Path, _progress: object) -> None:
        built.append(directory)
        build(directory)

    monkeypatch.setattr(models, "build_starter", build_starter)
    return built


# --- Names


def test_the_starter_is_a_kind(tmp_path: Path) -> None:
    assert locate(ModelConfig(source="starter")) == ModelSource("starter", "starter")


def test_a_directory_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "organization" / "name")
    monkeypatch.chdir(tmp_path)
    for source in (str(model), "organization/name", "./organization/name"):
        assert locate(ModelConfig(source=source)) == ModelSource("directory", str(model))


def test_a_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = make_model(tmp_path / "model")
    assert locate(ModelConfig(source="~/model")) == ModelSource("directory", str(model))


def test_a_gguf_file_is_found_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and more")
    assert locate(ModelConfig(source=str(file))) == ModelSource("gguf", str(file))


def test_a_file_without_the_magic_of_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"git-lfs pointer")
    with pytest.raises(ValueError, match=r"model\.gguf is not a GGUF file"):
        locate(ModelConfig(source=str(file)))


def test_a_file_in_a_package_is_found(tmp_path: Path, package: str) -> None:
    source = locate(ModelConfig(source=f"package:{package}/data/model.gguf"))
    assert source == ModelSource("gguf", str(tmp_path / "site" / package / "data" / "model.gguf"))


def test_a_model_in_the_hubs_cache_is_found_offline(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--organization--name"
    make_model(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert locate(ModelConfig(source="organization/name")) == ModelSource("hub", "organization/name")


@pytest.mark.parametrize(
    ("source", "needle"),
    [
        ("nowhere", "no such directory, file or hub id"),
        ("no/where/at/all", "no such directory, file or hub id"),
        ("nowhere.gguf", "no file nowhere.gguf"),
        (
            "organization/nowhere",
            "no directory organization/nowhere, and the Hugging Face hub returned no model",
        ),
        ("package:nowhere/model.gguf", "package nowhere is not installed"),
        ("package:no.where/model.gguf", "package no.where is not installed"),
        ("package:", ""),
        ("~no-such-user/model", "no-such-user"),
        ("", ""),
    ],
)
def test_a_model_that_does_not_exist_is_a_value_error(source: str, needle: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 — the message is checked below
        locate(ModelConfig(source=source))
    assert needle in str(raised.value)


def test_a_package_without_the_file_is_a_value_error(package: str) -> None:
    with pytest.raises(ValueError, match=r"has no file other\.gguf"):
        locate(ModelConfig(source=f"package:{package}/other.gguf"))


def test_a_directory_without_a_configuration_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        locate(ModelConfig(source=str(tmp_path)))


@given(st.text(alphabet="ab-_./~:\n\0é", max_size=12) | st.from_regex(r"\A(package:|~)[ab./]{0,8}\Z"))
def test_no_name_raises_another_error(source: str) -> None:
    with contextlib.suppress(ValueError):
        locate(ModelConfig(source=source))


def test_a_hub_that_cannot_be_reached_is_a_value_error(tmp_path: Path) -> None:
    """This needs its own process, because huggingface_hub reads its address once. Port 9 is closed."""
    code = """
from cluster.core.config import ModelConfig
from cluster.models.source import locate
try:
    locate(ModelConfig(source="organization/nowhere"))
except ValueError as error:
    print(error)
"""
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert "there is no directory organization/nowhere" in process.stdout, process.stderr


# --- The cache


@pytest.mark.parametrize(("name", "key"), [("demo", "4bc4f34e69c0"), ("telelogs_compact", "fda18544d39a")])
def test_a_starter_that_version_0_1_0_built_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    """The keys are those that version 0.1.0 computed for these configurations."""
    built = building(monkeypatch, make_model)
    override = f"model.cache_directory={tmp_path}"
    loaded = load_config(PROJECT / "configs" / f"{name}.yaml", [override]).config
    cached = make_model(tmp_path / f"starter-{key}")
    assert prepare_model(loaded, progress=print) == cached
    assert built == []


def test_a_starter_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = building(monkeypatch, make_model)
    assert ready_directory(config(tmp_path)) is None
    directory = prepare_model(config(tmp_path), progress=print)
    assert (directory / "model.safetensors").read_bytes() == bytes(10)
    assert ready_directory(config(tmp_path)) == directory
    assert prepare_model(config(tmp_path), progress=print) == directory
    assert len(built) == 1
    assert list(tmp_path.iterdir()) == [directory]


def test_a_directory_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = building(monkeypatch, make_model)
    model = make_model(tmp_path / "model")
    assert prepare_model(config(tmp_path / "cache", str(model)), progress=print) == model
    assert built == []
    assert not (tmp_path / "cache").exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_starter_is_shared_by_equal_task_options_only(tmp_path: Path, data: st.DataObject) -> None:
    """Options that are not given have their defaults."""
    draw_options: Any = st.fixed_dictionaries(
        {},
        optional={
            "numbers": st.integers(3, 4),
            "number_max": st.sampled_from([9, 12]),
            "seed": st.integers(0, 1),
            "style": st.sampled_from(["compact", "chat"]),
            "train_puzzles": st.sampled_from([None, 50]),
        },
    )
    one, other = data.draw(draw_options), data.draw(draw_options)
    with pytest.MonkeyPatch.context() as patch:
        building(patch, make_model)
        directories = [prepare_model(config(tmp_path, **options), progress=print) for options in (one, other)]
    same = CountdownOptions.model_validate(one) == CountdownOptions.model_validate(other)
    assert (directories[0] == directories[1]) == same


def test_each_task_has_its_own_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    building(monkeypatch, make_model)
    countdown = config(tmp_path)
    telelogs = countdown.model_copy(
        update={"task": TaskConfig(name="telelogs", options={"style": "compact"})}
    )
    first = prepare_model(countdown, progress=print)
    assert ready_directory(telelogs) is None
    assert prepare_model(telelogs, progress=print) != first


def test_a_starter_of_another_recipe_is_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building(monkeypatch, make_model)
    first = prepare_model(config(tmp_path), progress=print)
    monkeypatch.setattr(
        CountdownTask, "starter", replace(CountdownTask.starter, recipe=StarterRecipe(steps=1))
    )
    assert ready_directory(config(tmp_path)) is None
    assert prepare_model(config(tmp_path), progress=print) != first


def test_a_changed_gguf_file_is_converted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[bytes] = []

    def convert(file: Path, directory: Path) -> None:
        converted.append(file.read_bytes())
        make_model(directory)

    monkeypatch.setattr("learner.model.model_files.convert_gguf", convert)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF one")
    first = prepare_model(config(tmp_path / "cache", str(file)), progress=print)
    assert prepare_model(config(tmp_path / "cache", str(file)), progress=print) == first
    file.write_bytes(b"GGUF another")
    assert prepare_model(config(tmp_path / "cache", str(file)), progress=print) != first
    assert converted == [b"GGUF one", b"GGUF another"]
    assert first.name.startswith("model-"), "the name tells users which model it is"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, OSError])
def test_an_interrupted_build_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def half(directory: Path) -> None:
        make_model(directory)
        raise interruption("interrupted")

    building(monkeypatch, half)
    with pytest.raises(interruption):
        prepare_model(config(tmp_path), progress=print)
    assert list(tmp_path.iterdir()) == []
    assert ready_directory(config(tmp_path)) is None


@contextmanager
def a_build_half_way(cache: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that has written its model and waits. Kill it by SIGKILL at the end of the block."""
    code = """
import sys
from pathlib import Path
from cluster.models import source as models
from tests.cluster.models.test_source import config, make_model

def build(_task, directory, _progress):
    make_model(directory)
    print("written", flush=True)
    sys.stdin.read()

models.build_starter = build
models.prepare_model(config(Path(sys.argv[1])), progress=print)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(cache)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n", process.stderr and process.stderr.read()
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_build_is_not_used_and_is_removed_by_the_next_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_build_half_way(tmp_path):
        pass
    assert ready_directory(config(tmp_path)) is None
    assert len(list(tmp_path.iterdir())) == 1, "a killed process cannot clean up"
    building(monkeypatch, make_model)
    directory = prepare_model(config(tmp_path), progress=print)
    assert directory == ready_directory(config(tmp_path))
    assert list(tmp_path.iterdir()) == [directory]


def test_a_running_build_of_another_process_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building(monkeypatch, make_model)
    with a_build_half_way(tmp_path) as other:
        (written,) = tmp_path.rglob("model.safetensors")
        first = prepare_model(config(tmp_path), progress=print)
        assert written.exists()
        _, errors = other.communicate("")  # it continues
        assert other.returncode == 0, errors
    assert list(tmp_path.iterdir()) == [first]


def test_two_concurrent_builds_both_get_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second build finds the model of the first."""

    def build(directory: Path) -> None:
        if len(built) == 1:
            prepare_model(config(tmp_path), progress=print)
        make_model(directory)

    built = building(monkeypatch, build)
    directory = prepare_model(config(tmp_path), progress=print)
    assert len(built) == 2
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_in_the_directory_of_a_model_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=r"named pipe|has no config\.json"):
        locate(ModelConfig(source=str(tmp_path)))
