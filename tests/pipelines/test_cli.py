import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.output import EXIT_CODES

COMMANDS = {
    "run",
    "ingest",
    "examples",
    "train",
    "evaluate",
    "export",
    "promote",
    "serve",
    "search",
    "compare",
    "schedule",
    "simulate",
    "doctor",
    "key",
    "bundles",
    "verify",
    "rollback",
    "prune",
    "update",
    "vectors",
    "config",
    "study",
}


def twotower(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
    )


def test_the_commands_are_those_of_the_documentation():
    assert set(typer.main.get_command(app).commands) == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_every_option_has_help(name):
    command = typer.main.get_command(app).commands[name]
    assert command.help
    undocumented = [p.name for p in command.params if not getattr(p, "help", None) and p.name != "help"]
    assert undocumented == []
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert name in shown.stdout


def test_help_lists_the_exit_codes():
    shown = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout.split())
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in shown


def test_help_does_not_import_the_heavy_libraries():
    program = (
        "import sys; from pipelines.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'faiss', 'prefect', 'mlflow', 'pandas', 'duckdb'}\n"
        "print(*(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["run"], 2, "Missing argument 'CONFIG'"),
        (["run", "absent.yaml"], 2, "absent.yaml does not exist; give the path of a YAML configuration"),
        (
            ["run", "absent.yaml", "--refresh", "trainn"],
            2,
            "--refresh trainn: not a stage; stages are ingest",
        ),
        (["compare", "a", "b"], 4, "a is not a directory; to name a run or a bundle by its id, add --store"),
        (["search", "absent", "text"], 4, "absent is not a folder; give the `store` of a configuration"),
        (["prune", "absent"], 2, "Missing option '--keep'. (`twotower prune --help` lists what it takes)"),
        (["study", "none"], 2, "No such command 'none'. (`twotower study --help` lists the commands)"),
        (["serve", "absent"], 4, "absent is not a folder"),
        (["rollback", "absent"], 4, "absent is not a folder"),
        (["prune", "absent", "--keep", "3"], 4, "absent is not a folder"),
        (["simulate", "shop", "--sessions", "0"], 2, "sessions: input should be greater than or equal to 1"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_a_documented_code(tmp_path, arguments, code, message):
    done = twotower(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert code in EXIT_CODES
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("twotower: ")
    assert message in line
    assert not any(tmp_path.iterdir())


def test_json_says_so_too_where_the_usage_is_wrong(tmp_path):
    done = twotower("prune", "absent", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["error"]["exit_code"] == done.returncode == 2


def test_without_a_command_there_is_help_and_no_error(tmp_path):
    done = twotower(cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: " in done.stdout + done.stderr
    assert "twotower:" not in done.stderr


def test_debug_shows_the_traceback_above_the_line(tmp_path):
    done = twotower("run", "absent.yaml", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("twotower: absent.yaml does not exist")


def test_compare_prints_a_table_writes_a_page_and_ends_with_json(tmp_path, make_evaluation):
    a = make_evaluation(tmp_path / "a", {"towers": 0.50})
    b = make_evaluation(tmp_path / "b", {"towers": 0.51})
    page = tmp_path / "pages" / "compare.html"
    done = CliRunner().invoke(app, ["compare", str(a), str(b), "--html", str(page), "--json"])
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["comparison"][0]["difference"] == pytest.approx(0.01)
    assert "+0.0100" in done.stderr
    assert "+0.0100" in page.read_text()
    assert "paired differences" in done.stderr
    same = CliRunner().invoke(app, ["compare", str(a), str(a)])
    assert "A and B have one evaluation, so nothing differs" in " ".join(same.stdout.split())


def test_simulate_then_doctor_needs_nothing_else(tmp_path):
    done = CliRunner().invoke(app, ["simulate", str(tmp_path / "data"), "--sessions", "50", "--json"])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "data" / "impressions.parquet").is_file()
    assert json.loads(done.stdout)["content"]["log"]["lists"] == 50


def test_doctor_names_every_declared_package():
    done = CliRunner().invoke(app, ["doctor", "--json"])
    names = {finding["name"] for finding in json.loads(done.stdout)["findings"]}
    assert {"python", "cores", "faiss", "gpu", "prefect server"} <= names
    assert done.exit_code in (0, 4)
