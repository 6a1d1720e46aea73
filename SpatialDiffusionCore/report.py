"""What a registration found, in words and as fields.

The one list of fields is what the report, its JSON schema, the table of many registrations and the documentation are
made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .spatial.geometry import directions

#: Raised whenever a field changes its name or meaning; new fields leave it as it is.
SCHEMA_VERSION = 1

#: Where the schema is published beside the documentation.
SCHEMA_ID = "https://spatialdiffusion.github.io/SlicerSpatialDiffusionRegistration/report-schema-1.json"


@dataclass(frozen=True)
class Field:
    """One field of the report. name: path in the JSON, joined by "."; kind: JSON type; unit: and frame, for people."""

    name: str
    kind: str
    meaning: str
    unit: str = ""
    optional: bool = False


_NUMBERS = "array of numbers"

#: In the order of the report.
FIELDS = (
    Field("schema_version", "integer", "Version of this list of fields."),
    Field("program", "object", "Name and versions of the program, Python and PyTorch, and the operating system."),
    Field("moving", "string", "Name of the moving volume."),
    Field("fixed", "string", "Name of the fixed volume."),
    Field("moving_file", "string", "Full path of the moving volume, where it came from a file.", optional=True),
    Field("fixed_file", "string", "Full path of the fixed volume, where it came from a file.", optional=True),
    Field("transform", "string", "Degrees of freedom: rigid, similarity or affine."),
    Field(
        "matrix_moving_to_fixed_ras",
        "array of arrays",
        "4×4 matrix that takes points of the moving volume to the fixed one; its inverse resamples.",
        "RAS, mm",
    ),
    Field("in_words", "string", "The transform in a line: R, L, A, P, S and I say where the tissue moves."),
    Field("rotation_deg", "number", "Angle of the whole rotation about its one axis.", "°"),
    Field(
        "rotations_xyz_deg",
        _NUMBERS,
        "The rotation as angles about the x, y and z axes, applied in this order.",
        "°, RAS",
    ),
    Field("translation_mm", _NUMBERS, "Where the point translation_of moves, to the right, front and top.", "mm, RAS"),
    Field(
        "translation_of_mm",
        _NUMBERS,
        "The point that translation_mm is about: the one of the moving volume that comes to lie on the center of the "
        "fixed volume's tissue.",
        "mm, RAS",
    ),
    Field("scales_percent", _NUMBERS, "Size after the transform along x, y and z; 100 is unchanged.", "%"),
    Field("shears", _NUMBERS, "Shear of x along y, x along z and y along z; 0 is none.", "mm per mm"),
    Field("quality.confidence", "string", "good, fair or poor: how far the answer can be relied on unseen."),
    Field("quality.why", "string", "What the word rests on."),
    Field(
        "quality.probability",
        "number",
        "How likely the answer is right, by what was found in answers of known truth.",
        "0…1",
    ),
    Field(
        "quality.similarity_before",
        "number",
        "Mean squared local correlation over the tissue before the registration. It does not depend on contrast being "
        "equal or inverted, but what is high differs between pairs of contrasts: compare it within one pair only.",
        "0…1",
    ),
    Field("quality.similarity_after", "number", "The same where the volumes now lie.", "0…1"),
    Field(
        "quality.overlap", "number", "Share of the fixed tissue inside the moving field of view.", "0…1", optional=True
    ),
    Field(
        "quality.spread_mm",
        "number",
        "RMS distance over the tissue between repeated runs from perturbed starts; empty where none were made.",
        "mm",
        optional=True,
    ),
    Field(
        "quality.network_agreement",
        "number",
        "Share of what the network finds to correspond in both volumes that the answer agrees with; empty where it was "
        "not asked.",
        "0…1",
        optional=True,
    ),
    Field(
        "quality.template_detour_mm",
        "number",
        "How far from the answer one ends that goes from the moving volume to a template and from there to the fixed "
        "volume; empty where this was not done.",
        "mm",
        optional=True,
    ),
    Field(
        "quality.template_confirms",
        "boolean",
        "Whether that detour confirms the answer (true), contradicts it (false), or says neither (empty).",
        optional=True,
    ),
    Field(
        "quality.left_right",
        "object",
        "For the moving and the fixed volume: about 1 where left is left by the asymmetry of the brain, about -1 where "
        "the volume is mirrored; empty where it cannot be told.",
        "-1…1",
        optional=True,
    ),
    Field(
        "quality.similarity_mirrored",
        "number",
        "The similarity if one of the volumes is seen as in a mirror, where that is far larger than as it is: one "
        "of them is probably mirrored.",
        "0…1",
        optional=True,
    ),
    Field(
        "quality.evidence",
        "object",
        "All figures that the probability follows from; lengths are shares of the size of the tissue.",
        optional=True,
    ),
    Field("quality.warnings", "array of strings", "What a person should look at, in sentences."),
    Field("modality", "object", "What the moving and the fixed volume were taken for."),
    Field("recognized", "object", "Whether that was recognized from the volumes (true) or said by the caller (false)."),
    Field("model", "string", "Name of the trained model."),
    Field("model_sha256", "string", "SHA-256 of the model's file, where it came from one.", optional=True),
    Field("sampler", "string", "fast, or reference: the published process."),
    Field("polished", "boolean", "Whether the refinement at the end changed the answer."),
    Field("settings", "object", "The options as they were given (see the documentation of RegistrationOptions)."),
    Field("device", "string", "Where it was computed: cpu, cuda or mps.", optional=True),
    Field("search", "object", "Poses compared before the refinement, and the stage that the answer came from."),
    Field("steps", "array of objects", "What was done, one after the other: index and stage."),
    Field("seconds", "number", "Wall-clock time of the registration, without reading files.", "s"),
)

_TYPES: dict[str, dict[str, Any]] = {
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "object": {"type": "object"},
    _NUMBERS: {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
    "array of strings": {"type": "array", "items": {"type": "string"}},
    "array of objects": {"type": "array", "items": {"type": "object"}},
    "array of arrays": {
        "type": "array",
        "minItems": 4,
        "maxItems": 4,
        "items": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
    },
}


def schema() -> dict:
    """The JSON schema (2020-12) of a report."""
    top: dict = {"properties": {}, "required": []}
    quality: dict = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    for field in FIELDS:
        head, _, name = field.name.rpartition(".")
        where = quality if head else top
        entry = dict(_TYPES[field.kind], description=field.meaning + (f" Unit: {field.unit}." if field.unit else ""))
        if field.optional:
            entry["type"] = [entry["type"], "null"]
        where["properties"][name] = entry
        where["required"].append(name)
    top["properties"]["schema_version"]["const"] = SCHEMA_VERSION
    top["properties"]["quality"] = quality
    top["required"].append("quality")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "Report of a registration by Spatial Diffusion Registration",
        "type": "object",
        **top,
        "additionalProperties": False,
    }


def field_table() -> str:
    """The fields as a table in Markdown, for "Reading the report" in the documentation."""
    lines = ["| field | unit, frame | what it says |", "|---|---|---|"]
    lines += [f"| `{field.name}` | {field.unit or '–'} | {field.meaning} |" for field in FIELDS]
    return "\n".join(lines) + "\n"


#: Columns of the table of many registrations, in the words of the report; "translation" as the shell says it.
COLUMNS = (
    "moving",
    "fixed",
    "confidence",
    "why",
    "warnings",
    "probability",
    "similarity_before",
    "similarity_after",
    "spread_mm",
    "overlap",
    "in_words",
    "rotation_deg",
    "translation_mm",
    "scales_percent",
    "modality_moving",
    "modality_fixed",
    "model",
    "seconds",
    "moving_file",
    "fixed_file",
    "transform_file",
)


def row(report: dict, transform_file: str = "") -> dict:
    """One line of the table of many registrations, of a report: a text for each of COLUMNS."""
    quality = report["quality"]
    values: dict = {name: report.get(name, quality.get(name)) for name in COLUMNS}
    values["warnings"] = " ".join(quality["warnings"])
    values["modality_moving"], values["modality_fixed"] = (report["modality"][role] for role in ("moving", "fixed"))
    values["transform_file"] = transform_file
    return {name: _text(name, value) for name, value in values.items()}


def failed_row(moving: str, fixed: str, sentence: str) -> dict:
    """The line of a volume that could not be registered."""
    return {**dict.fromkeys(COLUMNS, ""), "moving": moving, "fixed": fixed, "confidence": "failed", "why": sentence}


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "translation_mm":
        return directions(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(f"{number:.2f}" for number in value)
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return str(value)
