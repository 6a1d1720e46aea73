"""Every program and command explains itself: a single % in a text would end --help in an error."""

from __future__ import annotations

import argparse
import importlib

import pytest

TRAINING = ("anatomies", "necks", "partners", "masks", "focus", "sides", "benchmark_speed", "retina.files")
PROGRAMS = [
    ("SpatialDiffusionCore.cli.command_line", ""),
    ("Benchmark.__main__", ""),
    ("Golden.__main__", ""),
    *(("SpatialDiffusionTraining.train", words) for words in ("", "export", "preview", "adapt")),
    *((f"SpatialDiffusionTraining.{name}", "") for name in TRAINING),
]


@pytest.mark.parametrize(("program", "words"), PROGRAMS)
def test_help_of_every_command(program, words, monkeypatch, capfd):
    if not program.startswith("SpatialDiffusionCore"):
        pytest.importorskip("SpatialDiffusionTraining.train", reason="needs the training package")
    main = importlib.import_module(program).main
    found: list[str] = []

    def noticed(parser, *arguments, **options):
        choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        found.extend(name for names in choices for name in names if name not in found)
        return parse(parser, *arguments, **options)

    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", noticed)

    def help_of(*command: str) -> None:
        try:
            status = main([*command, "--help"])  # a command of another package returns it
        except SystemExit as ended:
            status = ended.code
        assert status == 0 and capfd.readouterr().out.startswith("usage:")

    help_of(*words.split())
    for name in list(found):
        help_of(name)
