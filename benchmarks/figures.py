"""What the benchmarks of a server's endurance say beside their figures, and where they say it."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def circumstances() -> dict[str, Any]:
    """Return when and on what a benchmark starts; cores are those that this process may use."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 1),
    }


def tell(figures: dict[str, Any], path: Path | None) -> None:
    """Print figures as JSON, and write the same into a file where one is given."""
    text = json.dumps(figures, indent=2)
    print(text)
    if path is not None:
        path.write_text(text + "\n")
