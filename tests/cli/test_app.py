"""Arguments, help, completion, notices and messages, in this process."""

import logging
import re
import sys
from typing import get_type_hints

import pytest

from cervseg_jax import extras
from cervseg_jax.cli import environment, failures, main, options
from cervseg_jax.cli.app import app
from cervseg_jax.errors import ConfigError, DataError, InterruptedRunError
from tests.helpers import refused, run

COMMANDS = [info.name or info.callback.__name__.replace("_", "-") for info in app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_short_help_with_an_example(command):
    code, stdout, _ = run(command, "-h")
    assert code == 0
    assert f"Example: cervseg-jax {command}" in stdout
    assert run(command, "--help")[1] == stdout


def test_the_list_of_commands_is_not_cut_off():
    code, stdout, _ = run("-h")
    assert code == 0
    lines = stdout[stdout.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in lines] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_no_arguments_show_the_help():
    code, _, stderr = run()
    assert code == 2
    assert "Commands:" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "train: needs a config or --data FOLDER"),
        (["trian"], "no such command 'trian'. Did you mean 'train'?"),
        (["train", "x", "--sed", "1"], "no such option"),
        (["infer", "r"], "missing option '--images'"),
        (["infer", "r", "--images", "i", "--out", "o", "--overwrite", "--resume"], "cannot be used together"),
        (["train", "quickstart", "--coordinator", "here"], "must be HOST:PORT"),
        (["train", "quickstart", "--num-processes", "2", "--process-id", "2"], "--process-id: must be less than"),
        (["infer", "r", "--images", "i", "--out", "o", "--shard", "0/4"], "--shard: must be K/N with K from 1 to N"),
        (["infer", "r", "--images", "i", "--out", "o", "--shard", "5/4"], "got '5/4'"),
        (["merge", "a", "b"], "several folders need --out"),
        (["merge", "."], "is not an output folder of infer"),
        (["prepare", "s", "--out", "o", "--folds", "1"], "--fold: needs at least 2 --folds"),
        (["prepare", "s", "--out", "o", "--fold", "1"], "--fold: needs --folds"),
        (["compile", "quickstart", "--topology", "v5e:1x1", "--against", "plane"], "--against: unknown name 'plane'"),
        (["compare", "a"], "compare: needs at least two runs"),
        (["recipes", "-o", "x.yaml"], "needs the name of a recipe"),
        (["recipes", "quickstrt"], "did you mean 'quickstart'?"),
        (["train", "quickstrt"], "quickstrt: no such config file or recipe; did you mean 'quickstart'?"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    text = refused(2, *arguments)
    assert message in text
    assert len(text.splitlines()) == 1


NUMBERS = [
    ("infer r --images i --out o --mpp", ["0", "-1", "inf", "nan", "-inf", "x", "1e300", "1e-300"]),
    ("infer r --images i --out o --nucleus-px", ["0", "-1", "nan", "inf"]),
    ("infer r --images i --out o --num-processes", ["0"]),
    ("infer r --images i --out o --process-id", ["-1"]),
    ("eval r --num-processes", ["0"]),
    ("eval r --process-id", ["-1"]),
    ("prepare s --out o --valid", ["-0.1", "1", "nan", "inf"]),
    ("prepare s --out o --test", ["-0.1", "0.95", "1.1", "nan"]),
    ("prepare s --out o --seed", ["-1", "1.5", str(2**32)]),
    ("prepare s --out o --folds", ["-1", "x"]),
    ("prepare s --out o --fold", ["-1"]),
    ("prepare s --out o --variants", ["-1", "100"]),
    ("prepare s --out o --size 0", ["0", "8"]),
    ("prepare s --out o --tile 64", ["0", "1000000", "nan"]),
    ("suggest r --images i --out o --count", ["0", "-1", "1.5", "nan"]),
    ("suggest r --images i --out o --crop-px", ["63", "0", "1000000"]),
    ("suggest r --images i --out o --nucleus-px", ["0", "nan"]),
    ("synth o --images", ["0", "-3", "1e3", "nan"]),
    ("synth o --seed", ["-1"]),
    ("synth o --size 64", ["63", "1000000"]),
    ("models unet --size 0", ["0", "64"]),
    ("models unet --batch-size", ["0", "-1"]),
    ("report r --layers", ["-1"]),
    ("bench --rounds", ["0", "inf"]),
    ("train quickstart --seeds", ["0", "-1", "2.5"]),
    ("train quickstart --num-processes", ["0"]),
    ("train quickstart --process-id", ["-1"]),
]


@pytest.mark.parametrize(("command", "value"), [(command, value) for command, values in NUMBERS for value in values])
def test_numbers_out_of_range_are_refused_before_anything_runs(command, value, monkeypatch):
    monkeypatch.setattr(environment, "check_limits", pytest.fail)
    text = refused(2, *command.split(), value)
    assert "invalid value for '--" in text
    assert len(text.splitlines()) == 1


def test_every_numeric_option_is_among_those_tried():
    tried = {(command.split()[0], word) for command, _ in NUMBERS for word in command.split() if word[:2] == "--"}
    for info, command in zip(app.registered_commands, COMMANDS, strict=True):
        for name, hint in get_type_hints(info.callback).items():
            if re.search(r"\b(int|float)\b", str(hint)):
                assert (command, f"--{name.replace('_', '-')}") in tried, (command, name)


def test_warnings_of_the_package_are_shown_once_each(monkeypatch):
    def warn(*_, **__):
        for text in ("old name", "old name", "other"):
            logging.getLogger("cervseg_jax.somewhere").warning(text)
        return 0

    monkeypatch.setattr("cervseg_jax.cli.app.app", warn)
    handlers = list(logging.getLogger("cervseg_jax").handlers)
    assert run("doctor") == (0, "", "notice: old name\nnotice: other\n")
    assert logging.getLogger("cervseg_jax").handlers == handlers


def test_a_renamed_output_is_accepted_with_a_notice(finished, tmp_path):
    config, folder, _ = finished
    images = config.parent / "data" / "test" / "images"
    code, _, stderr = run("infer", folder, "--images", images, "--out", tmp_path, "--output", "colour", "--quiet")
    assert code == 0, stderr
    assert "notice: --output colour is now --output color" in stderr
    assert len(list((tmp_path / "color").iterdir())) == 5


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("a.png: is empty"), 3, "a.png: is empty"),
        (InterruptedRunError("SIGTERM: stopped"), 75, "SIGTERM: stopped"),
        (KeyboardInterrupt(), 130, "interrupted before there was anything to save"),
        (MemoryError(), 2, "too little memory"),
        (RuntimeError("can't start new thread"), 2, "too little memory"),
        (OSError(28, "No space left on device", "out/a.png"), 2, "out/a.png: No space left on device"),
        (ImportError("libGL.so.1: cannot open shared object file"), 2, "libgl1"),
        (ImportError("long text\nx.so: failed to map segment from shared object\n"), 2, "to load a library: x.so"),
        (ImportError("No module named 'optax'"), 2, "install again with: pip install"),
    ],
)
def test_errors_are_one_message_and_a_traceback_with_debug(error, code, message, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("cervseg_jax.cli.app.app", fail)
    assert message in refused(code, "doctor")
    monkeypatch.setattr(sys, "argv", ["cervseg-jax", "doctor", "--debug"])
    with pytest.raises(type(error)):
        main()


def test_defects_are_not_hidden(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a defect")

    monkeypatch.setattr("cervseg_jax.cli.app.app", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        run("doctor")


@pytest.mark.parametrize(
    "reason", [RuntimeError("Unable to initialize backend 'tpu': no libtpu (set ...)"), AssertionError()]
)
def test_a_missing_platform_is_named(reason, monkeypatch):
    def fail(*_, **__):
        raise reason

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr("jax.devices", fail)
    monkeypatch.setattr("cervseg_jax.cli.app.app", fail)
    message = refused(2, "infer")
    assert message.startswith("error: JAX_PLATFORMS=tpu: JAX finds no such device")
    assert "cervseg-jax doctor" in message
    monkeypatch.undo()
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr("jax.devices", fail)
    code, stdout, _ = run("doctor")
    assert code == 1
    assert "unset JAX_PLATFORMS (now tpu)" in stdout


def test_limits_of_the_system(monkeypatch):
    resource = pytest.importorskip("resource")
    limits = {resource.RLIMIT_AS: (3 * 2**29, -1), resource.RLIMIT_NOFILE: (32, 32)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[kind])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, values: None)
    with pytest.raises(ConfigError, match="address space is limited to 1.5 GiB"):
        environment.check_limits(needs_jax=True)
    with pytest.raises(ConfigError, match="open files is limited to 32"):
        environment.check_limits(needs_jax=False)
    limits[resource.RLIMIT_NOFILE] = (1024, 1024)
    environment.check_limits(needs_jax=False)
    limits[resource.RLIMIT_AS] = (-1, -1)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(ConfigError, match="refuses to start 8 threads"):
        environment.check_limits(needs_jax=False)


def test_few_open_files_are_raised_where_the_system_allows(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (32, 4096) if kind == resource.RLIMIT_NOFILE else (-1, -1))
    got = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: got.append(limits))
    environment.check_limits(needs_jax=True)
    assert got == [(environment.MIN_OPEN_FILES, 4096)]


def test_completion_of_values(tmp_path, monkeypatch):
    from cervseg_jax.models import MODELS
    from cervseg_jax.segmentation.outputs import OUTPUTS

    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").mkdir()
    (tmp_path / "quiet.yaml").touch()
    (tmp_path / "quiet.txt").touch()
    assert options.complete_config("qui") == ["quickstart", "quick/", "quiet.yaml"]
    assert options.complete_recipe("til") == ["tiled"]
    assert set(options.complete_model("")) == set(MODELS)
    assert options.complete_output("masks,g") == ["masks,geojson"]
    assert set(options.complete_output("")) == {*OUTPUTS, "all"}
    assert options.complete_split("t") == ["train", "test"]


def test_the_help_of_infer_names_every_output():
    from cervseg_jax.segmentation.outputs import OUTPUTS

    stdout = run("infer", "-h")[1]
    assert all(name in stdout for name in OUTPUTS)


def test_install_commands_fit_the_installation(monkeypatch, tmp_path):
    assert extras.install_command("slides").startswith("pip install -e '")
    assert extras.install_command("slides").endswith("[slides]'")
    monkeypatch.chdir(extras._SOURCE_TREE)
    assert extras.install_command("slides") == "pip install -e '.[slides]'"
    monkeypatch.setattr(extras, "_SOURCE_TREE", tmp_path)
    requirements = ["numpy>=2", "tiffslide>=2.4; extra == 'slides'", 'jax[tpu]>=0.10; extra == "tpu"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    assert extras.install_command("slides") == "pip install 'tiffslide>=2.4'"
    assert extras.install_command("tpu") == "pip install 'jax[tpu]>=0.10'"
    assert extras.reinstall_command() == "pip install --force-reinstall 'numpy>=2'"


def test_failures_has_no_message_for_system_exit():
    assert failures.explain(SystemExit(3)) is None
