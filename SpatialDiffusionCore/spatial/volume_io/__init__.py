"""Volumes in files, one format a module; ``volume_file`` is the face.

Each reader returns a ``Stored``. The rule for headers: a volume lies where Slicer's own reader, which is ITK's, puts
it; where a header contradicts itself, a sentence says so and which part was used.
"""
