"""A Prefect deployment that runs a configuration by the clock."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import httpx
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from features.errors import ConfigError
from pipelines.config import load_config
from pipelines.flows import twotower_run
from pipelines.output import OUTPUT


def serve_deployment(config: Path, overrides: Sequence[str], cron: str, timezone: str) -> None:
    """Register a deployment and run what its schedule asks for, until interrupted.

    Raises:
        ConfigError: If the configuration, the cron expression or the Prefect server cannot be used.
    """
    runner, deployment_id, url = register(config, overrides, cron, timezone)
    say = OUTPUT.console.out
    say(f"deployment {deployment_id} is registered at {url}: {cron} ({timezone})", highlight=False)
    say("this process runs it; stop it with Ctrl-C, which pauses the schedule", highlight=False)
    asyncio.run(runner.start())


def register(config: Path, overrides: Sequence[str], cron: str, timezone: str) -> tuple[Runner, str, str]:
    """Create or update the deployment of a configuration on the Prefect server in PREFECT_API_URL.

    The deployment remembers the working directory, so that relative paths mean the same at night.

    Returns:
        The runner that executes its runs once started, the deployment's id, and the server's address.

    Raises:
        ConfigError: If the configuration, the cron expression or the Prefect server cannot be used.
    """
    resolved = load_config(config, overrides)
    try:
        CronSchedule(cron=cron, timezone=timezone)  # checks both, which `Cron` does not
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f'{reason}; write for example --cron "0 3 * * *" --timezone UTC') from None
    url = server_url()
    parameters: dict[str, Any] = {
        "config": str(config.resolve()),
        "overrides": list(overrides),
        "directory": str(Path.cwd()),
    }
    deployment = twotower_run.to_deployment(
        name=resolved.name,
        schedule=Cron(cron, timezone=timezone),
        parameters=parameters,
        description=f"twotower run {config}",
        tags=["twotower"],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    runner = Runner(name=f"twotower-{resolved.name}", limit=1)
    return runner, str(runner.add_deployment(cast(RunnerDeployment, deployment))), url


def server_url() -> str:
    """Return the address of the Prefect server, after it has answered.

    Raises:
        ConfigError: If none is configured or it does not answer.
    """
    url = get_current_settings().api.url
    start = "start one with `prefect server start` and set PREFECT_API_URL=http://127.0.0.1:4200/api"
    if url is None:
        raise ConfigError(f"a schedule needs a Prefect server that keeps running; {start}")
    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        raise ConfigError(f"the Prefect server at {url} does not answer ({error}); {start}") from None
    return url
