import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from features.errors import ConfigError
from pipelines.scheduling import register
from pipelines.workspace import Workspace


def ask(question):
    from prefect.client.orchestration import get_client

    async def answer():
        async with get_client() as client:
            return await question(client)

    return asyncio.run(answer())


@pytest.mark.parametrize(
    ("cron", "timezone", "message"),
    [
        ("every night", "UTC", 'Invalid cron string: "every night"'),
        ("0 3 * * *", "Mars/Base", "Invalid timezone"),
    ],
)
def test_a_bad_schedule_is_one_line(shop_config, cron, timezone, message):
    with pytest.raises(ConfigError, match=message):
        register(shop_config, [], cron, timezone)


def test_without_a_server_the_error_says_how_to_start_one(shop_config):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ConfigError, match="start one with `prefect server start`"),
    ):
        register(shop_config, [], "0 3 * * *", "UTC")


def test_a_server_that_does_not_answer_is_named(shop_config):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9/api does not answer"),
    ):
        register(shop_config, [], "0 3 * * *", "UTC")


def test_a_deployment_is_registered_with_its_clock_and_its_folder(prefect_server, shop_config):
    _, deployment_id, _ = register(shop_config, ["seed=5"], "0 3 * * *", "Europe/Vienna")
    deployment = ask(lambda client: client.read_deployment(deployment_id))
    assert deployment.name == "tiny"
    assert deployment.entrypoint == "pipelines.flows.twotower_run"
    (schedule,) = deployment.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 3 * * *", "Europe/Vienna")
    assert schedule.active
    assert deployment.parameters == {
        "config": str(shop_config),
        "overrides": ["seed=5"],
        "directory": str(Path.cwd()),
    }
    _, again, _ = register(shop_config, [], "30 4 * * *", "UTC")
    assert again == deployment_id
    (schedule,) = ask(lambda client: client.read_deployment(deployment_id)).schedules
    assert schedule.schedule.cron == "30 4 * * *"


@pytest.mark.slow
def test_the_command_runs_what_the_server_asks_for_until_it_is_interrupted(
    prefect_server, shop_config, tmp_path
):
    from prefect.settings import get_current_settings

    command = [sys.executable, "-m", "pipelines.cli", "schedule", str(shop_config), "--cron", "0 3 * * *"]
    environment = {**os.environ, "PREFECT_API_URL": get_current_settings().api.url}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        deployment_id = process.stdout.readline().split()[1]
        flow_run = ask(lambda client: client.create_flow_run_from_deployment(deployment_id))
        for _ in range(120):
            state = ask(lambda client: client.read_flow_run(flow_run.id)).state
            if state.is_final():
                break
            time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.stdout.close()
    assert state.name == "Completed"
    (record,) = Workspace(tmp_path / "store").records("runs")
    assert record["promotion"]["promoted"]
    assert ask(lambda client: client.read_deployment(deployment_id)).paused  # by Ctrl-C
