"""Read and write linear transforms in the files of ITK, Slicer, FreeSurfer and FSL.

In memory a transform is a 4×4 float64 matrix that maps moving → fixed points in RAS millimeters. In files:

=========  =====================  ==========================================================================
format     extensions             holds
=========  =====================  ==========================================================================
``itk``    .tfm .txt .mat .h5     the map that resamples, fixed → moving, in LPS; the center is honored
``ras``    .txt                   the same matrix as in memory, four lines of four numbers
``flirt``  .mat                   moving → fixed in FSL's scaled voxels; means nothing without both images
``lta``    .lta                   moving (src) → fixed (dst), in RAS or, in files of others, in voxels
=========  =====================  ==========================================================================

What a .txt or a .mat holds is told by its content when it is read, and by ``format`` when it is written.
Every file written here reads back without saying ``format``.
"""

from __future__ import annotations

import re
import struct
import tempfile
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import extension, written_whole
from .geometry import LPS_RAS, as_affine, spacing

#: What can be written under each extension, the default first.
FORMATS = {
    ".tfm": ("itk",),
    ".h5": ("itk",),
    ".txt": ("ras", "itk"),
    ".mat": ("itk", "flirt"),
    ".lta": ("lta",),
}

# A linear transform takes less than 10 kB; larger files hold displacements or B-spline coefficients.
_LARGEST = 4 * 2**20

# How many parameters ITK's linear types have: where some are missing, ITK may read past the end of the list.
_PARAMETERS = {
    "AffineTransform": 12,
    "CenteredAffineTransform": 15,
    "CenteredEuler3DTransform": 9,
    "ComposeScaleSkewVersor3DTransform": 12,
    "Euler3DTransform": 6,
    "FixedCenterOfRotationAffineTransform": 12,
    "IdentityTransform": 0,
    "MatrixOffsetTransformBase": 12,
    "QuaternionRigidTransform": 7,
    "ScalableAffineTransform": 12,
    "ScaleLogarithmicTransform": 3,
    "ScaleSkewVersor3DTransform": 15,
    "ScaleTransform": 3,
    "ScaleVersor3DTransform": 9,
    "Similarity3DTransform": 7,
    "TranslationTransform": 3,
    "VersorRigid3DTransform": 6,
    "VersorTransform": 3,
}

_ONLY_LINEAR = "only linear transforms (rigid, similarity, affine) can be used"
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_transform(path, moving=None, fixed=None, format=None) -> np.ndarray:
    """Read a linear transform.

    ``moving`` and ``fixed`` are volumes, of which ``shape`` and ``voxel_to_ras`` are used: FLIRT needs
    both, and so does an LTA in voxels that lacks its volume information. ``format`` ("itk", "ras", "flirt",
    "lta") settles what a matrix of bare numbers is, where the extension (.mat: FLIRT, .txt: RAS) would
    mislead.

    Returns the 4×4 float64 matrix, moving → fixed points, RAS, mm. Raises InputError where the file is
    missing, unknown, damaged, not linear, not three-dimensional or not invertible.
    """
    known = _known_extension(path)
    if format not in (None, "itk", "ras", "flirt", "lta"):
        raise InputError(f"Unknown transform format '{format}'; choose one of: itk, ras, flirt, lta.")
    content = _content(path)
    found = _kind(content, path)
    bare = {".mat": "flirt", ".txt": "ras"}.get(known)
    wanted = format or {"numbers": bare, "lta": "lta"}.get(found, "itk")
    if (found == "numbers") != (wanted in ("ras", "flirt")) or (found == "lta") != (wanted == "lta"):
        holds = {"numbers": "bare numbers", "lta": "a FreeSurfer LTA"}.get(found, "an ITK transform")
        advice = (
            "name it .txt if they are a 4×4 RAS matrix, or .mat if they are FLIRT's"
            if wanted is None
            else f"leave out the format '{format}' or choose another file"
        )
        raise InputError(f"'{path}' holds {holds}; {advice}.")
    if wanted == "lta":
        return _read_lta(_text(content), path, moving, fixed)
    if wanted == "itk":
        return _to_lps_inverse(_read_itk(content, found, path))
    matrix = _matrix(_text(content).splitlines(), path)
    if wanted == "ras":
        return matrix
    moving_scaled, fixed_scaled = _both_scaled(path, moving, fixed)
    return as_affine(np.linalg.inv(fixed_scaled) @ matrix @ moving_scaled, f"The matrix in '{path}'")


def write_transform(matrix, path, moving=None, fixed=None, format=None) -> None:
    """Write ``matrix`` (4×4, moving → fixed points, RAS, mm) in the format of the extension.

    ``format`` chooses where an extension serves two ("itk" for .txt, "flirt" for .mat). ``moving`` and
    ``fixed``, as in :func:`read_transform`, are needed by FLIRT and recorded in an LTA where given. The
    file appears whole or not at all. Raises InputError where the matrix, the extension, the format or the
    folder is no good.
    """
    known = _known_extension(path)
    chosen = format or FORMATS[known][0]
    if chosen not in FORMATS[known]:
        raise InputError(
            f"Cannot write '{path}' in the format '{chosen}': {known} holds {' or '.join(FORMATS[known])}; "
            f"choose among the extensions {_extensions()}."
        )
    matrix = as_affine(matrix, "The transform to write")
    if chosen == "itk":
        content = _itk_content(_to_lps_inverse(matrix), known)
    elif chosen == "lta":
        content = _lta_text(matrix, moving, fixed).encode()
    elif chosen == "flirt":
        moving_scaled, fixed_scaled = _both_scaled(path, moving, fixed)
        content = _rows(fixed_scaled @ matrix @ np.linalg.inv(moving_scaled)).encode()
    else:
        content = _rows(matrix).encode()
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _extensions() -> str:
    return ", ".join(sorted(FORMATS))


def _known_extension(path) -> str:
    known = extension(path)
    if known not in FORMATS:
        raise InputError(f"'{path}' has no extension of a linear transform; these are known: {_extensions()}.")
    return known


def _content(path) -> bytes:
    try:
        size = Path(path).stat().st_size
        if size <= _LARGEST:
            content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"There is no transform file '{path}'; check its name.") from None
    except OSError as error:
        raise InputError(
            f"Cannot read the transform file '{path}' ({(error.strerror or str(error)).lower()}); "
            "check that it is a file and that you may read it."
        ) from error
    if size > _LARGEST:
        raise InputError(f"'{path}' is {size / 2**20:.0f} MB, too large for a linear transform; {_ONLY_LINEAR}.")
    if not content.strip():
        raise InputError(f"The transform file '{path}' is empty; write it again.")
    return content


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig", errors="replace")


def _kind(content: bytes, path) -> str:
    """``hdf5``, ``text`` or ``matlab`` (three ways of ITK), ``lta``, or ``numbers``."""
    if content.startswith(_HDF5):
        return "hdf5"
    if b"\0" in content:
        if content[:4] in (b"\0\0\0\0", b"\x0a\0\0\0"):
            return "matlab"
        raise _damaged(path)
    if re.match(r"\s*#\s*Insight Transform File", _text(content)):
        return "text"
    if re.search(r"^\s*(src|dst) volume info|^\s*1 +4 +4\s*$", _text(content), re.MULTILINE):
        return "lta"
    if extension(path) == ".lta":
        raise InputError(f"'{path}' is not a FreeSurfer LTA file; a plain matrix belongs in a .txt file.")
    return "numbers"


def _rows(matrix: np.ndarray) -> str:
    # repr gives the shortest text that reads back to the same double; adding 0 turns -0.0 into 0.0.
    return "".join(" ".join(repr(float(value) + 0.0) for value in row) + "\n" for row in matrix)


def _numbers(words, path) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError:
        raise InputError(
            f"'{path}' contains text where numbers are expected; give a file of ITK, an LTA or a 4×4 matrix."
        ) from None


def _matrix(lines, path) -> np.ndarray:
    """The affine in lines of numbers, apart by blanks or commas; ``#`` starts a comment."""
    rows = [line.split("#")[0].replace(",", " ").split() for line in lines]
    rows = [_numbers(row, path) for row in rows if row]
    if len(rows) not in (3, 4) or any(len(row) != 4 for row in rows):
        counts = ", ".join(str(len(row)) for row in rows[:6]) + (", …" if len(rows) > 6 else "")
        raise InputError(
            f"'{path}' has lines of {counts or 'no'} numbers; expected four lines (or three) of four numbers."
        )
    return as_affine(rows, f"The matrix in '{path}'")


def _read_itk(content: bytes, kind: str, path) -> np.ndarray:
    """The 4×4 LPS matrix of an ITK file, as ITK maps points with it.

    Text and MATLAB files are parsed here and handed to ITK as a composite. Left to itself, ITK drops
    without a word all transforms but the first, parameters that no fixed ones follow, and numbers too many;
    and SimpleITK cannot load some linear types outside a composite.
    """
    if kind == "hdf5":
        _check_hdf5(content, path)
        transform = _itk_transform(content, ".h5", path)
        # ITK stores no count, but the name of each type appears once; a composite names itself and its parts.
        names = re.findall(rb"\w+_(?:double|float)_\d_\d", content)
        if len(names) > 1 and not any(name.startswith(b"CompositeTransform") for name in names):
            raise _several(path)
        return _linear(transform, path)
    entries = _parse_text(_text(content), path) if kind == "text" else _parse_matlab(content, path)
    composite = bool(entries) and entries[0][0].startswith("CompositeTransform")
    entries = [entry for entry in entries if not entry[0].startswith("CompositeTransform")]
    if not entries:
        raise InputError(f"'{path}' holds no transform; write it again with the program it is from.")
    if len(entries) > 1 and not composite:
        raise _several(path)
    lines = ["#Insight Transform File V1.0", "#Transform 0", "Transform: CompositeTransform_double_3_3"]
    for index, (name, parameters, fixed_parameters) in enumerate(entries, start=1):
        base, _, dimension = name.partition("_")
        if not dimension.endswith("3_3"):
            raise InputError(f"'{path}' holds '{name}', which is not three-dimensional; give a 3D one.")
        if len(parameters) != _PARAMETERS.get(base, len(parameters)):
            raise InputError(
                f"The {base} in '{path}' has {len(parameters)} parameters, expected {_PARAMETERS[base]}; "
                "write it again."
            )
        values = [" ".join(repr(value) for value in given) for given in (parameters, fixed_parameters)]
        lines += [f"#Transform {index}", f"Transform: {base}_double_3_3"]
        lines += [f"Parameters: {values[0]}", f"FixedParameters: {values[1]}"]
    return _linear(_itk_transform(("\n".join(lines) + "\n").encode(), ".tfm", path), path)


def _several(path) -> InputError:
    return InputError(
        f"'{path}' holds several transforms side by side; save the one that you want in a file of its own."
    )


def _damaged(path) -> InputError:
    return InputError(f"'{path}' is damaged or no transform file; copy it again or write it again.")


def _parse_text(text: str, path) -> list[tuple[str, list[float], list[float]]]:
    """(type, parameters, fixed parameters) of each transform in an ITK text file."""
    entries: list[dict] = []
    for line in text.splitlines():
        tag, colon, value = line.partition(":")
        tag, value = tag.strip(), value.strip()
        if not colon or tag.startswith("#"):
            continue
        if tag == "Transform":
            entries.append({"Transform": value})
        elif tag in ("Parameters", "FixedParameters") and entries:
            entries[-1][tag] = _finite(_numbers(value.split(), path), path)
    for entry in entries:
        for tag in ("Parameters", "FixedParameters"):
            if tag not in entry and not entry["Transform"].startswith("CompositeTransform"):
                raise InputError(
                    f"The {entry['Transform'] or 'transform'} in '{path}' has no line '{tag}:'; add it "
                    "(the fixed parameters of a transform without center are 0 0 0)."
                )
    return [(one["Transform"], one.get("Parameters", []), one.get("FixedParameters", [])) for one in entries]


def _parse_matlab(content: bytes, path) -> list[tuple[str, list[float], list[float]]]:
    """(type, parameters, fixed parameters) of each transform in ITK's MATLAB file.

    It is MATLAB's level 4: for each array a header of five 32-bit integers (type, rows, columns, is it
    complex, length of the name), the name, and the numbers. Type 0 is float64 and type 10 float32,
    little-endian. The arrays are named, by turns, after the type of transform and "fixed".
    """
    arrays, position = [], 0
    while position < len(content):
        try:
            kind, rows, columns, is_complex, length = struct.unpack_from("<5i", content, position)
            number = {0: "<f8", 10: "<f4"}[kind]
            if is_complex or min(rows, columns) < 0 or length < 1:
                raise ValueError
            name = content[position + 20 : position + 20 + length].rstrip(b"\0").decode("ascii")
            values = np.frombuffer(content, number, rows * columns, position + 20 + length)
        except (struct.error, KeyError, ValueError):
            raise _damaged(path) from None
        arrays.append((name, _finite(values.astype(float).tolist(), path)))
        position += 20 + length + values.nbytes
    if len(arrays) % 2 or any(name != "fixed" for name, _ in arrays[1::2]):
        raise InputError(f"'{path}' is a MATLAB file but holds no transform of ITK; choose another file.")
    return [(name, values, fixed) for (name, values), (_, fixed) in zip(arrays[::2], arrays[1::2])]


def _finite(values: list[float], path) -> list[float]:
    if not np.isfinite(values).all():
        raise InputError(f"The transform in '{path}' contains NaN or infinite numbers; compute it again.")
    return values


def _to_lps_inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse in LPS of a matrix in RAS, and the inverse in RAS of one in LPS."""
    result = LPS_RAS @ np.linalg.inv(matrix) @ LPS_RAS
    result[3] = [0.0, 0.0, 0.0, 1.0]
    return result


def _check_hdf5(content: bytes, path) -> None:
    """Refuse a file that is cut off, on which HDF5 itself would print pages to the terminal."""
    where = {0: 40, 1: 44, 2: 28, 3: 28}.get(content[8] if len(content) > 48 else -1)
    if where is None or int.from_bytes(content[where : where + 8], "little") > len(content):
        raise _damaged(path)


def _simpleitk():
    try:
        import SimpleITK
    except ImportError:
        raise InputError(
            "ITK transform files (.tfm, .mat, .h5) need SimpleITK; install it with: pip install SimpleITK."
        ) from None
    return SimpleITK


def _itk_transform(content: bytes, ending: str, path):
    sitk = _simpleitk()
    # A copy, because ITK goes by extensions, in lower case only.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f"transform{ending}")
        copy.write_bytes(content)
        try:
            return sitk.ReadTransform(str(copy))
        except Exception as error:  # SimpleITK raises more than RuntimeError here
            names = sorted(set(re.findall(r"(\w+?)_(?:double|float)_\d_\d", content.decode("latin-1"))))
            names = " + ".join(name for name in names if name != "CompositeTransform") or "transform"
            raise InputError(
                f"ITK cannot load the {names} in '{path}' (an unknown type, or a wrong number of values); "
                "save it again as an affine transform."
            ) from error


def _linear(transform, path) -> np.ndarray:
    """The 4×4 matrix of a SimpleITK transform, by mapping points: the same for every type and any center."""
    if transform.GetDimension() != 3:
        raise InputError(f"'{path}' holds a {transform.GetDimension()}D transform; give a 3D one.")
    if not transform.IsLinear():
        raise InputError(f"'{path}' holds a non-linear transform; {_ONLY_LINEAR}.")
    matrix = np.eye(4)
    matrix[:3, 3] = transform.TransformPoint([0.0, 0.0, 0.0])
    reach = 1024.0
    for axis in range(3):
        point = np.zeros(3)
        point[axis] = reach
        ahead, behind = transform.TransformPoint(point.tolist()), transform.TransformPoint((-point).tolist())
        matrix[:3, axis] = (np.array(ahead) - np.array(behind)) / (2 * reach)
    return as_affine(matrix, f"The matrix in '{path}'")


def _itk_content(resampling: np.ndarray, ending: str) -> bytes:
    """The bytes of an ITK file of a 4×4 LPS matrix, as AffineTransform with center 0."""
    sitk = _simpleitk()
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((resampling[:3, :3] + 0.0).ravel().tolist())
    transform.SetTranslation((resampling[:3, 3] + 0.0).tolist())
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f"transform{ending}")
        sitk.WriteTransform(transform, str(copy))
        return copy.read_bytes()


def _both_scaled(path, moving, fixed) -> tuple[np.ndarray, np.ndarray]:
    """RAS → FSL's scaled voxels (4×4) of moving and of fixed."""
    missing = [role for role, volume in (("moving", moving), ("fixed", fixed)) if volume is None]
    if missing:
        raise InputError(
            f"A FLIRT matrix ('{path}') means nothing without its two images; give the "
            f"{' and the '.join(missing)} image."
        )
    return _scaled_from_ras(moving), _scaled_from_ras(fixed)


def _scaled_from_ras(volume) -> np.ndarray:
    """RAS → FSL's scaled voxels: voxel × spacing, the first axis reversed where det(voxel → RAS) > 0."""
    voxel_to_ras = as_affine(volume.voxel_to_ras, "The voxel → RAS matrix")
    steps = spacing(voxel_to_ras)
    scaled = np.diag([*steps, 1.0])
    if np.linalg.det(voxel_to_ras) > 0:
        scaled[0] = [-steps[0], 0.0, 0.0, (volume.shape[0] - 1) * steps[0]]
    return scaled @ np.linalg.inv(voxel_to_ras)


def _read_lta(text: str, path, moving, fixed) -> np.ndarray:
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    header = dict(_pair(line) for line in lines)
    kind, count = header.get("type", "?"), header.get("nxforms", "1")
    starts = [index for index, line in enumerate(lines) if line.split() == ["1", "4", "4"]]
    if count != "1" or len(starts) > 1:
        raise _several(path)
    if kind not in ("0", "1") or not starts:
        raise InputError(
            f"'{path}' is an LTA of type {kind}; types 0 (voxel to voxel) and 1 (RAS to RAS) can be read: "
            "convert it with lta_convert."
        )
    matrix = _matrix(lines[starts[0] + 1 : starts[0] + 5], path)
    if kind == "1":
        return matrix
    source = _lta_geometry(lines, "src", moving, path)
    target = _lta_geometry(lines, "dst", fixed, path)
    return as_affine(target @ matrix @ np.linalg.inv(source), f"The matrix in '{path}'")


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.strip(), value.strip()


def _lta_geometry(lines: list[str], role: str, volume, path) -> np.ndarray:
    """Voxel → RAS (4×4) of the src or dst volume of an LTA, of ``volume`` where the file does not say it."""
    start = next((index for index, line in enumerate(lines) if line == f"{role} volume info"), len(lines))
    info = dict(_pair(line) for line in lines[start + 1 : start + 9])
    if info.get("valid") != "1":
        if volume is None:
            name = {"src": "moving", "dst": "fixed"}[role]
            raise InputError(
                f"'{path}' is an LTA in voxels without its {role} volume information; give the {name} image."
            )
        return as_affine(volume.voxel_to_ras, "The voxel → RAS matrix")
    keys = ("volume", "voxelsize", "xras", "yras", "zras", "cras")
    values = [_numbers(info.get(key, "").split(), path) for key in keys]
    if any(len(value) != 3 for value in values):
        raise InputError(f"The {role} volume information in '{path}' is incomplete; write the file again.")
    size, steps, x, y, z, center = np.array(values)
    result = np.eye(4)
    result[:3, :3] = np.column_stack([x, y, z]) * steps
    result[:3, 3] = center - result[:3, :3] @ (size / 2)
    return as_affine(result, f"The {role} volume information in '{path}'")


def _lta_text(matrix: np.ndarray, moving, fixed) -> str:
    return (
        "type      = 1 # LINEAR_RAS_TO_RAS\nnxforms   = 1\nmean      = 0.0 0.0 0.0\nsigma     = 1.0\n1 4 4\n"
        f"{_rows(matrix)}src volume info\n{_lta_volume(moving)}dst volume info\n{_lta_volume(fixed)}"
    )


def _lta_volume(volume) -> str:
    """FreeSurfer's description of a grid; where there is no volume, its own stand-in, marked as invalid."""
    if volume is None:
        size, steps, center = (256, 256, 256), np.ones(3), np.zeros(3)
        axes = np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    else:
        voxel_to_ras = as_affine(volume.voxel_to_ras, "The voxel → RAS matrix")
        size, steps = volume.shape[:3], spacing(voxel_to_ras)
        axes = (voxel_to_ras[:3, :3] / steps).T
        center = voxel_to_ras[:3, 3] + voxel_to_ras[:3, :3] @ (np.array(size) / 2)
    fields = zip(("voxelsize", "xras  ", "yras  ", "zras  ", "cras  "), (steps, *axes, center))
    return (
        f"valid = {int(volume is not None)}  # volume info {'' if volume is not None else 'in'}valid\n"
        f"filename = unknown\nvolume = {' '.join(str(int(n)) for n in size)}\n"
        + "".join(f"{key} = {_rows(np.array([value]))}" for key, value in fields)
    )
