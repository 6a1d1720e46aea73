"""Points, surfaces and segmentations, moved: against VTK's readers and 3D Slicer's storage nodes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from SpatialDiffusionCore.cli import main
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry as g
from SpatialDiffusionCore.spatial import segmentation_file, volume_file
from SpatialDiffusionCore.spatial.point_file import EXTENSIONS, extension_of, move_points
from SpatialDiffusionCore.spatial.transform_file import write_transform
from SpatialDiffusionCore.spatial.volume import Volume, resample

MATRIX = np.array([[0.9, 0.2, -0.1, 11.5], [-0.3, 1.1, 0.15, -22.2], [0.05, -0.1, 1.3, 33.1], [0, 0, 0, 1]])
LPS = np.array([-1.0, -1.0, 1.0])
POINTS = np.array([[0, 0, 0], [100, 0, 0], [0, -90, 0], [0, 0, 80], [-70, 60, -50]], float)  # RAS


@pytest.fixture(scope="module")
def slicer():
    reason = "3D Slicer's own readers and writers come with the wheel slicer-core"
    vtk, slicer = pytest.importorskip("vtk", reason=reason), pytest.importorskip("slicer", reason=reason)
    vtk.vtkObject.GlobalWarningDisplayOff()
    yield slicer
    vtk.vtkObject.GlobalWarningDisplayOn()


def surface(kind="vtkPolyData"):
    """An ellipsoid of triangles in RAS, with normals and a scalar for every point."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    source = vtk.vtkSphereSource()
    source.SetRadius(30)
    source.SetCenter(5, -10, 20)
    source.Update()
    data = vtk.vtkPolyData()
    data.DeepCopy(source.GetOutput())
    scalars = numpy_to_vtk(np.arange(data.GetNumberOfPoints(), dtype=np.float32), deep=True)
    scalars.SetName("temperature")
    data.GetPointData().AddArray(scalars)
    return data


def array(data, name="points"):
    from vtk.util.numpy_support import vtk_to_numpy

    if name == "points":
        return vtk_to_numpy(data.GetPoints().GetData()).astype(float)
    found = data.GetPointData().GetNormals() if name == "normals" else data.GetPointData().GetArray(name)
    return vtk_to_numpy(found)


def in_slicer(slicer, path):
    """The points of a model (RAS), as Slicer's storage node reads them, and its mesh."""
    node, storage = slicer.vtkMRMLModelNode(), slicer.vtkMRMLModelStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return array(node.GetMesh()), node.GetMesh()


def write_in_slicer(slicer, mesh, path, frame, packed):
    node, storage = slicer.vtkMRMLModelNode(), slicer.vtkMRMLModelStorageNode()
    node.SetAndObserveMesh(mesh)
    storage.SetFileName(str(path))
    system = storage.CoordinateSystemRAS if frame == "RAS" else storage.CoordinateSystemLPS
    storage.SetCoordinateSystem(system)
    storage.SetUseCompression(packed)
    assert storage.WriteData(node)


@pytest.mark.parametrize("packed", [0, 1])
@pytest.mark.parametrize("frame", ["RAS", "LPS"])
@pytest.mark.parametrize("ending", [".vtk", ".vtp", ".stl", ".ply"])
def test_a_model_of_slicer_moves_as_slicer_would_move_it(slicer, tmp_path, ending, frame, packed):
    source, target = tmp_path / f"in{ending}", tmp_path / f"out{ending}"
    write_in_slicer(slicer, surface(), source, frame, packed)
    before, mesh = in_slicer(slicer, source)
    move_points(source, target, MATRIX)
    after, moved = in_slicer(slicer, target)
    assert before.shape == after.shape
    assert np.abs(after - g.transform_points(MATRIX, before)).max() < 1e-3
    assert moved.GetNumberOfCells() == mesh.GetNumberOfCells()
    if ending in (".vtk", ".vtp"):
        expected = array(mesh, "normals") @ np.linalg.inv(MATRIX[:3, :3])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.abs(array(moved, "normals") - expected).max() < 1e-5
        assert np.array_equal(array(moved, "temperature"), array(mesh, "temperature"))
    move_points(target, tmp_path / f"back{ending}", np.linalg.inv(MATRIX))
    assert np.abs(in_slicer(slicer, tmp_path / f"back{ending}")[0] - before).max() < 1e-3


@pytest.mark.parametrize("encoding", ["ascii", "binary", "appended", "raw"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_vtks_own_files_in_xml_are_read_however_they_are_packed(slicer, tmp_path, encoding, packed, double):
    import vtk

    mesh = surface()
    if double:
        points = vtk.vtkPoints()
        points.SetDataTypeToDouble()
        points.DeepCopy(mesh.GetPoints())
        mesh.SetPoints(points)
    for ending, name in ((".vtp", "PolyData"), (".vtu", "UnstructuredGrid")):
        data = mesh
        if ending == ".vtu":
            change = vtk.vtkAppendFilter()
            change.AddInputData(mesh)
            change.Update()
            data = change.GetOutput()
        writer = getattr(vtk, f"vtkXML{name}Writer")()
        writer.SetInputData(data)
        writer.SetFileName(str(tmp_path / f"in{ending}"))
        {"ascii": writer.SetDataModeToAscii, "binary": writer.SetDataModeToBinary}.get(
            encoding, writer.SetDataModeToAppended
        )()
        writer.SetEncodeAppendedData(encoding != "raw")
        if packed:
            writer.SetCompressorTypeToZLib()
        else:
            writer.SetCompressorTypeToNone()
        writer.Write()
        move_points(tmp_path / f"in{ending}", tmp_path / f"out{ending}", MATRIX)
        reader = getattr(vtk, f"vtkXML{name}Reader")()
        reader.SetFileName(str(tmp_path / f"out{ending}"))
        reader.Update()
        moved = array(reader.GetOutput())
        expected = g.transform_points(g.LPS_RAS @ MATRIX @ g.LPS_RAS, array(data))  # the file says nothing: LPS
        assert np.abs(moved - expected).max() < 1e-3
        assert np.array_equal(array(reader.GetOutput(), "temperature"), array(data, "temperature"))


def test_legacy_files_of_vtk_in_both_versions_and_orders(slicer, tmp_path):
    import vtk

    mesh = surface()
    for version in (42, 51):
        for text in (True, False):
            writer = vtk.vtkPolyDataWriter()
            writer.SetInputData(mesh)
            writer.SetFileVersion(version)
            writer.SetFileName(str(tmp_path / "in.vtk"))
            writer.SetFileType(1 if text else 2)
            writer.SetHeader("SPACE=RAS")
            writer.Write()
            move_points(tmp_path / "in.vtk", tmp_path / "out.vtk", MATRIX)
            points, moved = in_slicer(slicer, tmp_path / "out.vtk")
            assert np.abs(points - g.transform_points(MATRIX, array(mesh))).max() < 1e-3
            assert np.array_equal(array(moved, "temperature"), array(mesh, "temperature"))


# ----------------------------------------------------------------------------------------------------- markups
@pytest.mark.parametrize("frame", ["RAS", "LPS"])
def test_markups_keep_everything_but_their_places(tmp_path, frame):
    sign = 1 if frame == "RAS" else LPS
    turn = g.rotation_about([0, 0, 1], 0.3)
    data = {
        "@schema": "https://raw.githubusercontent.com/slicer/slicer/master/Markups/Resources/Schema/markups-v1.0.3.json#",
        "markups": [
            {
                "type": kind,
                "coordinateSystem": frame,
                "locked": False,
                "controlPoints": [
                    {"id": str(n), "label": f"Punkt {n} é", "position": (p * sign).tolist(), "orientation":
                     turn.ravel().tolist(), "selected": n % 2 == 0} for n, p in enumerate(POINTS)
                ] + [{"id": "x", "label": "unset", "positionStatus": "undefined"}],
                "measurements": [{"name": "length", "value": 12.5}],
                "display": {"color": [0.1, 0.2, 0.3]},
            }
            for kind in ("Fiducial", "Curve", "Line")
        ],
    }  # fmt: skip
    source, target = tmp_path / "in.mrk.json", tmp_path / "out.mrk.json"
    source.write_text(json.dumps(data), encoding="utf-8")
    move_points(source, target, MATRIX)
    moved = json.loads(target.read_text(encoding="utf-8"))
    assert moved["@schema"] == data["@schema"]
    for before, after in zip(data["markups"], moved["markups"]):
        positions = np.array([point["position"] for point in after["controlPoints"][:-1]]) * sign
        assert np.allclose(positions, g.transform_points(MATRIX, POINTS))
        orientation = np.reshape(after["controlPoints"][0]["orientation"], (3, 3))
        assert np.allclose(orientation.T @ orientation, np.eye(3)) and not np.allclose(orientation, turn)
        assert "measurements" not in after and after["display"] == before["display"]
        assert after["controlPoints"][-1] == before["controlPoints"][-1]
        assert [p["label"] for p in after["controlPoints"]] == [p["label"] for p in before["controlPoints"]]


SIMILARITY = g.from_parts(1.3 * g.rotation_about([2, -1, 3], 0.7), (11.5, -22.2, 33.1))


def plane_or_box(slicer, kind, folder, frame="LPS"):
    """A plane or a box as Slicer itself writes it; (node, what reads and writes its kind)."""
    import vtk

    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode" if "ox" in kind else "vtkMRMLMarkupsPlaneNode")
    if kind == "plane":
        node.SetCenter([10, 20, 30])
        node.SetNormal([1, 2, 3])
        node.SetSize([40, 60])
    elif kind == "plane of three points":
        node.SetPlaneType(node.PlaneType3Points)
        for point in ([0, 0, 0], [30, 0, 5], [0, 40, 0]):
            node.AddControlPoint(vtk.vtkVector3d(*point))
    elif kind == "box":
        node.SetCenter([10, 20, 30])
        node.SetSize([10, 20, 30])
        turn = vtk.vtkTransform()
        turn.RotateWXYZ(30, 1, 2, 3)
        node.ApplyTransform(turn)
    else:
        node.SetROIType(node.ROITypeBoundingBox)
        for point in POINTS:
            node.AddControlPoint(vtk.vtkVector3d(*point))
    storage = slicer.vtkMRMLMarkupsROIJsonStorageNode if "ox" in kind else slicer.vtkMRMLMarkupsPlaneJsonStorageNode
    written = storage()
    written.SetFileName(str(folder / "in.mrk.json"))
    written.SetCoordinateSystem(written.CoordinateSystemRAS if frame == "RAS" else written.CoordinateSystemLPS)
    assert written.WriteData(node)
    return scene, node, storage


def shape_of(node):
    """Its corners in RAS, as Slicer has them."""
    import vtk

    if node.IsA("vtkMRMLMarkupsPlaneNode"):
        matrix = vtk.vtkMatrix4x4()
        node.GetObjectToWorldMatrix(matrix)
    else:
        matrix = node.GetObjectToNodeMatrix()
    to_ras = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
    half = np.zeros(3)
    size = np.array(node.GetSize())
    half[: len(size)] = size / 2
    corners = np.array([half * (2 * np.array(corner) - 1) for corner in np.ndindex(2, 2, 2)])
    return g.transform_points(to_ras, corners)


@pytest.mark.parametrize(
    "kind, frame",
    [
        ("plane", "LPS"),
        ("plane", "RAS"),
        ("plane of three points", "LPS"),
        ("plane of three points", "RAS"),
        ("box", "LPS"),  # of boxes in RAS Slicer reads the orientation as if it were in LPS, its own ones too
        ("bounding box", "LPS"),
    ],
)
def test_planes_and_boxes_move_as_slicer_moves_them(slicer, tmp_path, kind, frame):
    import vtk

    kept, node, storage = plane_or_box(slicer, kind, tmp_path, frame)
    turned = kind != "bounding box"  # Slicer lays it along the axes anew
    matrix = SIMILARITY if turned else g.from_parts(1.3 * np.eye(3), SIMILARITY[:3, 3])
    move_points(tmp_path / "in.mrk.json", tmp_path / "out.mrk.json", matrix)
    read = kept.AddNewNodeByClass(node.GetClassName())
    reader = storage()
    reader.SetFileName(str(tmp_path / "out.mrk.json"))
    assert reader.ReadData(read)
    change = vtk.vtkMatrix4x4()
    change.DeepCopy(matrix.ravel())
    expected = g.transform_points(matrix, shape_of(node))
    node.ApplyTransformMatrix(change)
    np.testing.assert_allclose(shape_of(read), expected, atol=1e-3)
    np.testing.assert_allclose(read.GetSize(), node.GetSize(), rtol=1e-5)
    for index in range(node.GetNumberOfControlPoints()):
        np.testing.assert_allclose(read.GetNthControlPointPosition(index), node.GetNthControlPointPosition(index),
                                   atol=1e-4)  # fmt: skip


def test_markups_that_an_affine_does_not_keep_are_refused(tmp_path):
    for kind in ("Plane", "ROI"):
        path = tmp_path / "a.mrk.json"
        path.write_text(json.dumps({"markups": [{"type": kind, "coordinateSystem": "LPS", "controlPoints": []}]}))
        for matrix in (MATRIX, SIMILARITY @ np.diag([1.0, 1.0, 1.001, 1.0]), np.diag([-1.0, 1.0, 1.0, 1.0])):
            with pytest.raises(InputError, match=f"holds a {kind}, which shear"):
                move_points(path, tmp_path / "b.mrk.json", matrix)
    path.write_text('{"markups": [{"type": "Molecule", "coordinateSystem": "LPS", "controlPoints": []}]}')
    with pytest.raises(InputError, match="holds a Molecule"):
        move_points(path, tmp_path / "b.mrk.json", np.eye(4))
    for content in (
        "{",
        "[]",
        '{"markups": 3}',
        '{"markups": [{"type": "Line", "controlPoints": [{"position": ["a"]}]}]}',
    ):
        path.write_text(content)
        with pytest.raises(InputError, match="damaged or no markups file"):
            move_points(path, tmp_path / "b.mrk.json", MATRIX)
    assert not (tmp_path / "b.mrk.json").exists()


@pytest.mark.parametrize("frame, sign", [("LPS", LPS), ("RAS", 1), ("0", 1), ("1", LPS), (None, LPS)])
def test_fiducials_in_a_table(tmp_path, frame, sign):
    head = "# Markups fiducial file version = 4.11\n"
    head += f"# CoordinateSystem = {frame}\n" if frame else ""
    head += "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    rows = [f"vtk_{n},{','.join(map(str, p * sign))},0,0,0,1,1,1,0,F-{n},a b,\n" for n, p in enumerate(POINTS)]
    source, target = tmp_path / "in.fcsv", tmp_path / "out.fcsv"
    source.write_text(head + "".join(rows))
    move_points(source, target, MATRIX)
    lines = target.read_text().splitlines()
    assert lines[: head.count("\n")] == head.splitlines()
    fields = [line.split(",") for line in lines[head.count("\n") :]]
    places = np.array([[float(v) for v in row[1:4]] for row in fields]) * sign
    assert np.allclose(places, g.transform_points(MATRIX, POINTS))
    assert [row[4:] for row in fields] == [row.strip("\n").split(",")[4:] for row in rows]


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_damaged_files_are_refused_in_a_sentence(tmp_path, ending):
    for content in (b"", b"nothing of the kind " * 20, b"\0\xff" * 300):
        (tmp_path / f"a{ending}").write_bytes(content)
        if ending == ".fcsv":
            continue  # a table without rows is empty
        with pytest.raises(InputError, match=f"a{ending}"):
            move_points(tmp_path / f"a{ending}", tmp_path / f"b{ending}", MATRIX)
        assert not (tmp_path / f"b{ending}").exists()
    with pytest.raises(InputError, match="does not exist"):
        move_points(tmp_path / f"none{ending}", tmp_path / f"b{ending}", MATRIX)
    other = ".stl" if ending != ".stl" else ".ply"
    with pytest.raises(InputError, match=f"must end in {ending}"):
        move_points(tmp_path / f"a{ending}", tmp_path / f"b{other}", MATRIX)
    assert extension_of(f"X{ending.upper()}") == ending and extension_of("a.nii.gz") is None


# ------------------------------------------------------------------------------------------------ segmentations
HEADER = g.from_parts(g.rotation_about([1, 2, 3], 0.3) * [2.0, 2.5, 3.0], (-20, 10, 5))


def segmentation(layers=1):
    shape = (20, 22, 24)
    labels = [np.zeros(shape, np.uint8) for _ in range(layers)]
    for n, layer in enumerate(labels):
        layer[4 + n : 12, 5:15, 6:18] = 1
        layer[12:16, 5:15, 6:18] = 2
    entries = [("Segmentation_MasterRepresentation", "Binary labelmap"),
               ("Segmentation_ConversionParameters", "Reference image geometry|1;0;0|...&")]  # fmt: skip
    for n in range(2 * layers):
        entries += [(f"Segment{n}_ID", f"Segment_{n}"), (f"Segment{n}_Name", ("tumor", "Gefäß", "c", "d")[n]),
                    (f"Segment{n}_Color", f"0.{n + 1} 0.5 0.25"), (f"Segment{n}_LabelValue", str(n % 2 + 1)),
                    (f"Segment{n}_Layer", str(n // 2)), (f"Segment{n}_Extent", "4 16 5 14 6 17"),
                    (f"Segment{n}_Tags", "Segmentation.Status:inprogress|")]  # fmt: skip
    return segmentation_file.Segmentation(tuple(Volume(data, HEADER, "s") for data in labels), tuple(entries))


def segments_in_slicer(slicer, path):
    """{name: (color, RAS mm of the middle of its voxels, how many)} as Slicer reads a segmentation."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    found = {}
    segments = node.GetSegmentation()
    for n in range(segments.GetNumberOfSegments()):
        segment = segments.GetNthSegment(n)
        image = segment.GetRepresentation("Binary labelmap")
        values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1]).T
        matrix, extent = vtk.vtkMatrix4x4(), image.GetExtent()
        image.GetImageToWorldMatrix(matrix)
        matrix = np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])
        voxels = np.argwhere(values == segment.GetLabelValue()) + [extent[0], extent[2], extent[4]]
        place = g.transform_points(matrix, voxels).mean(0)
        found[segment.GetName()] = np.array(segment.GetColor()), place, len(voxels)
    return found


@pytest.mark.parametrize("layers", [1, 2])
def test_a_segmentation_keeps_names_and_colors_and_lands_where_its_volume_does(slicer, tmp_path, layers):
    if not hasattr(slicer, "vtkMRMLSegmentationStorageNode"):
        pytest.skip("this slicer-core does not read segmentations")
    before = segmentation(layers)
    source, target, transform = tmp_path / "in.seg.nrrd", tmp_path / "out.seg.nrrd", tmp_path / "t.tfm"
    segmentation_file.save_segmentation(before, source)
    old = segments_in_slicer(slicer, source)
    reference = Volume(np.zeros((60, 70, 90), np.uint8), g.from_parts(np.eye(3) * 2.0, (-60, -80, -20)), "ref")
    volume_file.save(reference, tmp_path / "ref.nii.gz")
    write_transform(MATRIX, transform)
    assert (
        main(["apply", str(transform), str(source), "--reference", str(tmp_path / "ref.nii.gz"), "-o", str(target)])
        == 0
    )
    new = segments_in_slicer(slicer, target)
    assert list(new) == list(old) == ["tumor", "Gefäß", "c", "d"][: 2 * layers]
    for name, (color, place, count) in new.items():
        assert np.allclose(color, old[name][0])
        assert np.abs(place - g.transform_points(MATRIX, old[name][1][None])[0]).max() < 1.0
        volume = old[name][2] * np.linalg.det(HEADER[:3, :3]) * np.linalg.det(MATRIX[:3, :3])
        assert count * 8.0 == pytest.approx(abs(volume), rel=0.05)


def test_a_segmentation_is_its_labels_moved_by_the_nearest_voxel(tmp_path):
    before = segmentation(2)
    path = tmp_path / "a.seg.nrrd"
    segmentation_file.save_segmentation(before, path)
    again = segmentation_file.load_segmentation(path)
    assert again.entries == before.entries and len(again.layers) == 2
    for one, other in zip(again.layers, before.layers):
        assert np.array_equal(one.data, other.data) and np.allclose(one.voxel_to_ras, other.voxel_to_ras)
    reference = Volume(np.zeros((30, 31, 32), np.uint8), g.from_parts(np.eye(3) * 3, (-40, -60, 0)))
    moved = again.moved(reference, MATRIX)
    for one, other in zip(moved.layers, before.layers):
        assert np.array_equal(one.data, resample(other, reference, MATRIX, "nearest").data)
    entries = dict(moved.entries)
    assert entries["Segment1_Name"] == "Gefäß" and entries["Segment3_Extent"] == "0 29 0 30 0 31"
    assert "Segmentation_ConversionParameters" not in entries
    with pytest.raises(InputError, match="must end in .seg.nrrd"):
        segmentation_file.save_segmentation(moved, tmp_path / "b.nrrd")


# -------------------------------------------------------------------------------------------------- the command
def test_apply_moves_points_without_a_reference_and_names_them_in_a_folder(tmp_path, capsys):
    write_transform(MATRIX, tmp_path / "t.tfm")
    rows = "".join(f"p{n},{','.join(map(str, p))},0,0,0,1\n" for n, p in enumerate(POINTS))
    for name in ("a.fcsv", "b.b.fcsv"):
        (tmp_path / name).write_text("# CoordinateSystem = RAS\n" + rows)
    names = [str(tmp_path / name) for name in ("a.fcsv", "b.b.fcsv")]
    assert main(["apply", str(tmp_path / "t.tfm"), *names, "-o", str(tmp_path / "moved")]) == 0
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["a_moved.fcsv", "b.b_moved.fcsv"]
    values = (tmp_path / "moved" / "a_moved.fcsv").read_text().splitlines()[1].split(",")[1:4]
    assert np.allclose([float(value) for value in values], MATRIX[:3, 3])
    back = str(tmp_path / "back.fcsv")
    assert (
        main(["apply", str(tmp_path / "t.tfm"), str(tmp_path / "moved" / "a_moved.fcsv"), "-o", back, "--invert"]) == 0
    )
    values = (tmp_path / "back.fcsv").read_text().splitlines()[2].split(",")[1:4]
    assert np.allclose([float(value) for value in values], POINTS[1], atol=1e-9)
    capsys.readouterr()
    volume_file.save(Volume(np.ones((5, 5, 5)), np.eye(4)), tmp_path / "v.nii")
    assert main(["apply", str(tmp_path / "t.tfm"), str(tmp_path / "v.nii"), "-o", str(tmp_path / "w.nii")]) == 2
    assert "--reference" in capsys.readouterr().err
    assert main(["apply", str(tmp_path / "t.tfm"), names[0], "-o", str(tmp_path / "w.ply")]) == 1
    assert "must end in .fcsv" in capsys.readouterr().err
