"""The benchmark: this project and its peers on the same pairs, in the same run, on the same machine.

    python -m Benchmark run --data DIR --out RESULTS [--task TASK] [--methods ...]
    python -m Benchmark report RESULTS [--readme README.md]

cases.py says what a task and a case are, tasks.py which there are, ours.py and peers.py how they are registered;
worker.py measures it in a child process, results.py keeps it, report.py makes tables and figures of it. Nothing here is
installed with the packages.
"""
