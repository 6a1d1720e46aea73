"""The benchmark: this project and its peers on the same pairs, in the same run, on the same machine.

    python -m Benchmark run --data DIR --out RESULTS [--task brains|hard] [--methods ...]
    python -m Benchmark report RESULTS

cases.py says what is registered, methods.py and peers.py how, worker.py measures it in a child process, results.py
keeps it, report.py makes tables and figures of it. Nothing here is installed with the packages.
"""
