"""The API against the bare cost of the same work: see serving_run.py, which this starts.

    python benchmarks/serving.py --help

A script's folder is the first place in which Python looks for imports, and this file has the name of a
package; so it stands in for that package, by handing its folder on.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "serving")]

if __name__ == "__main__":
    from serving_run import main

    main()
