"""``spatial-diffusion group``: lay many volumes in one unbiased space."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .parser import PROGRAM, Commands, UsageError, add_command
from .progress import Progress
from .selection import volume_files

if TYPE_CHECKING:
    from ..many.group import GroupRegistration, PairAnswer

GROUP = """\
Lays many VOLUMES in one space that favours none of them, from registrations of their pairs: writes each volume's
transform, the mean image, each volume's cycle error in mm (how far going around three volumes misses the start), and
which pairs and volumes contradict the others. Of two volumes, two visits for instance, it is the space halfway. Pairs
that are there already, by content and settings, are not registered again.
"""

GROUP_EXAMPLES = """\
EXAMPLES
  spatial-diffusion group subjects/*.nii.gz -o group/ --jobs 8
  Two visits of one person:
    spatial-diffusion group visit1.nii.gz visit2.nii.gz -o halfway/ --transform rigid
"""


def add_parser(commands: Commands) -> None:
    """Put the command's parser among ``commands``."""
    parser = add_command(commands, "group", "lay many volumes in one unbiased space", GROUP, GROUP_EXAMPLES)
    parser.add_argument("volumes", nargs="+", metavar="VOLUME", help="volumes, or folders of them; two at least")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for what is written")
    parser.add_argument("--modality", default="auto", metavar="M", help="what all show (default: auto)")
    parser.add_argument(
        "--transform",
        default="affine",
        metavar="KIND",
        choices=("rigid", "similarity", "affine"),
        help="rigid, similarity or affine (default: affine)",
    )
    parser.add_argument("--jobs", metavar="N|ADDRESS", help="processes of one thread each, or a Dask scheduler")
    parser.add_argument("--review", metavar="DIR", help="folder for a page to look at the volumes on the mean")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the points drawn (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")


class _Pairs:
    """Answers of pairs, each in a file named by the content of both volumes, so that none is found twice."""

    def __init__(self, folder: Path, contents: list):
        self.folder, self.contents = folder, contents
        folder.mkdir(exist_ok=True)

    def _place(self, i: int, j: int) -> Path:
        return self.folder / f"{self.contents[i]}_{self.contents[j]}.json"

    def known(self, i: int, j: int) -> PairAnswer | None:
        """The answer of a pair, or None."""
        from ..many.group import PairAnswer

        try:
            return PairAnswer.from_dict(json.loads(self._place(i, j).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, i: int, j: int, answer: PairAnswer) -> None:
        """Write an answer."""
        from ..files import written_whole

        with written_whole(self._place(i, j)) as temporary:
            temporary.write_text(json.dumps(answer.to_dict()), encoding="utf-8")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    volumes = volume_files(arguments.volumes)
    if len(volumes) < 2:
        raise UsageError("Give two volumes at least.")
    from ..many.group import group_steps, write_group
    from ..many.record import begin, content_key, digest_of, holds, mark_folder
    from ..registration import run_steps
    from .outputs import prepared_page

    settings = {name: getattr(arguments, name) for name in ("modality", "transform", "seed")}
    contents = [digest_of(path) for path in volumes]
    key = content_key([], {"command": "group", "contents": sorted(contents), **settings})
    page = prepared_page(arguments.review)
    if holds(arguments.output, key, page):
        if not arguments.quiet:
            print(f"{arguments.output} holds this already; nothing to do.")
        return 0
    what = f"group of {len(volumes)} volumes"
    begin(arguments.output, key, what)
    pairs = _Pairs(Path(arguments.output) / "pairs", contents)
    progress = Progress(arguments.quiet or not sys.stderr.isatty())
    steps = group_steps(volumes, jobs=arguments.jobs, known=pairs.known, on_pair=pairs.keep, **settings)
    try:
        result = run_steps(steps, progress)
    finally:
        progress.close()
    paths = write_group(result, arguments.output)
    if page:
        from ..review.pages import review_group

        review_group(result, page)
    mark_folder(arguments.output, key, what, complete=not result.failed, page=page)
    _tell(result, paths, arguments.quiet)
    return 1 if result.failed else 0


def _tell(result: GroupRegistration, paths: dict, quiet: bool) -> None:
    for words in result.warnings:
        print(f"{PROGRAM}: warning: {words}", file=sys.stderr)
    for why in result.failed.values():
        print(f"{PROGRAM}: {why}", file=sys.stderr)
    for index, why in sorted(result.doubts.items()):
        print(f"{PROGRAM}: {result.names[index]} is doubtful: {why}.", file=sys.stderr)
    if quiet:
        return
    print(f"{len(result.names)} volumes, {len(result.pairs)} pairs, {len(result.dropped)} of them dropped")
    for path in paths.values():
        print(f"  wrote {path}")
