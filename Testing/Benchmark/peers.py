"""The peers, each called as its documentation shows; needs numpy and the peer only, so that it runs in any Python.

Those that are programs of their own are in peer_programs.py.

Every method has ``load(array, voxel_to_ras)`` → the peer's own image (not timed) and ``run(moving, fixed, seed)`` →
the 4×4 moving → fixed matrix in RAS mm. Threads are set by the environment (see runner.py).
"""

from __future__ import annotations

import os

import numpy as np

from . import peer_programs

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def lps_geometry(voxel_to_ras):
    """(origin, spacing, direction) as ITK has them."""
    lps = LPS_RAS @ voxel_to_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return lps[:3, 3], spacing, lps[:3, :3] / spacing


def ras_moving_to_fixed(lps_fixed_to_moving) -> np.ndarray:
    """ITK's fixed → moving in LPS as moving → fixed in RAS."""
    return np.linalg.inv(LPS_RAS @ lps_fixed_to_moving @ LPS_RAS)


def centered(linear, translation, center) -> np.ndarray:
    """4×4 of ITK's x → linear·(x − center) + center + translation."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.asarray(translation) + center - linear @ np.asarray(center)
    return matrix


class Centers:
    """Centers of mass put on each other."""

    def load(self, array, voxel_to_ras):
        return array, voxel_to_ras

    def run(self, moving, fixed, seed):
        places = []
        for array, to_ras in (moving, fixed):
            profiles = [array.sum(axis=tuple(a for a in range(3) if a != axis), dtype=float) for axis in range(3)]
            voxel = [(np.arange(len(p)) * p).sum() / p.sum() for p in profiles]
            places.append(to_ras[:3, :3] @ voxel + to_ras[:3, 3])
        matrix = np.eye(4)
        matrix[:3, 3] = places[1] - places[0]
        return matrix


class Ants:
    """ants.registration, which starts at the centers of mass; its time includes the volumes that it resamples."""

    def __init__(self, kind):
        self.kind = kind
        import ants

        self.ants = ants

    def load(self, array, voxel_to_ras):
        origin, spacing, direction = lps_geometry(voxel_to_ras)
        return self.ants.from_numpy(array, origin=origin.tolist(), spacing=spacing.tolist(), direction=direction)

    def run(self, moving, fixed, seed):
        result = self.ants.registration(
            fixed=fixed, moving=moving, type_of_transform=self.kind, random_seed=seed + 1, verbose=False
        )
        files = set(result["fwdtransforms"] + result["invtransforms"])
        transform = self.ants.read_transform(result["fwdtransforms"][0])
        numbers, center = np.array(transform.parameters), np.array(transform.fixed_parameters)
        for file in files:
            os.unlink(file)
        return ras_moving_to_fixed(centered(numbers[:9].reshape(3, 3), numbers[9:], center))


class Elastix:
    """itk-elastix: default parameters of rigid, then affine (four resolutions each), from the centers of mass."""

    def __init__(self):
        import itk

        self.itk = itk

    def load(self, array, voxel_to_ras):
        origin, spacing, direction = lps_geometry(voxel_to_ras)
        image = self.itk.image_from_array(np.ascontiguousarray(array.T, dtype=np.float32))
        image.SetOrigin(origin.tolist())
        image.SetSpacing(spacing.tolist())
        image.SetDirection(self.itk.matrix_from_array(np.ascontiguousarray(direction)))
        return image

    def run(self, moving, fixed, seed):
        parameters = self.itk.ParameterObject.New()
        for kind in ("rigid", "affine"):
            values = parameters.GetDefaultParameterMap(kind, 4)
            values["AutomaticTransformInitialization"] = ["true"]
            values["AutomaticTransformInitializationMethod"] = ["CenterOfGravity"]
            values["RandomSeed"] = [str(seed + 1)]
            values["WriteResultImage"] = ["false"]
            parameters.AddParameterMap(values)
        _, result = self.itk.elastix_registration_method(
            fixed, moving, parameter_object=parameters, log_to_console=False, number_of_threads=1
        )
        total = np.eye(4)
        for index in range(result.GetNumberOfParameterMaps()):
            total = elastix_matrix(result.GetParameterMap(index)) @ total
        return ras_moving_to_fixed(total)


def elastix_matrix(values) -> np.ndarray:
    """4×4 (LPS) of an elastix Euler or affine parameter map."""
    numbers = np.array([float(v) for v in values["TransformParameters"]])
    center = np.array([float(v) for v in values["CenterOfRotationPoint"]])
    if values["Transform"][0] == "AffineTransform":
        return centered(numbers[:9].reshape(3, 3), numbers[9:], center)
    turns = []
    for axis, angle in enumerate(numbers[:3]):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        turns.append(turn)
    x, y, z = turns
    zyx = "ComputeZYX" in values and values["ComputeZYX"][0] == "true"
    return centered(z @ y @ x if zyx else z @ x @ y, numbers[3:], center)


def sitk_image(sitk, array, voxel_to_ras):
    """A SimpleITK image of an (I, J, K) array."""
    origin, spacing, direction = lps_geometry(voxel_to_ras)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T, dtype=np.float32))
    image.SetOrigin(origin.tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    return image


class Greedy:
    """picsl_greedy: 12 degrees of freedom, NMI, image centers; optionally a search over 1000 random poses first."""

    def __init__(self, search=""):
        import SimpleITK
        from picsl_greedy import Greedy3D

        self.sitk, self.make, self.search = SimpleITK, Greedy3D, search

    def load(self, array, voxel_to_ras):
        return sitk_image(self.sitk, array, voxel_to_ras)

    def run(self, moving, fixed, seed):
        greedy = self.make()
        greedy.execute(
            f"-threads 1 -a -dof 12 -n 100x50x10 -m NMI -ia-image-centers {self.search} -i fixed moving -o found",
            fixed=fixed,
            moving=moving,
            found=None,
        )
        return np.linalg.inv(np.array(greedy["found"]))  # fixed → moving, in RAS


class Mattes:
    """SimpleITK: Mattes mutual information, affine, three levels, from the moments, in the manner of BRAINSFit."""

    def __init__(self):
        import SimpleITK

        self.sitk = SimpleITK
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def load(self, array, voxel_to_ras):
        return sitk_image(self.sitk, array, voxel_to_ras)

    def run(self, moving, fixed, seed):
        sitk = self.sitk
        total = None
        for transform in (sitk.VersorRigid3DTransform(), sitk.AffineTransform(3)):
            if total is None:
                transform = sitk.CenteredTransformInitializer(
                    fixed, moving, transform, sitk.CenteredTransformInitializerFilter.MOMENTS
                )
            else:
                transform.SetCenter(total.GetCenter())
                transform.SetMatrix(total.GetMatrix())
                transform.SetTranslation(total.GetTranslation())
            method = sitk.ImageRegistrationMethod()
            method.SetMetricAsMattesMutualInformation(50)
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(0.1, seed + 1)
            method.SetInterpolator(sitk.sitkLinear)
            method.SetOptimizerAsRegularStepGradientDescent(
                learningRate=1.0, minStep=1e-4, numberOfIterations=300, relaxationFactor=0.6
            )
            method.SetOptimizerScalesFromPhysicalShift()
            method.SetShrinkFactorsPerLevel([4, 2, 1])
            method.SetSmoothingSigmasPerLevel([2, 1, 0])
            method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
            method.SetInitialTransform(transform, inPlace=True)
            method.Execute(fixed, moving)
            total = transform if hasattr(transform, "GetCenter") else transform.Downcast()
        return ras_moving_to_fixed(
            centered(np.array(total.GetMatrix()).reshape(3, 3), total.GetTranslation(), np.array(total.GetCenter()))
        )


METHODS = {
    "centers": Centers,
    "ants-affine": lambda: Ants("Affine"),
    "ants-affinefast": lambda: Ants("AffineFast"),
    "elastix": Elastix,
    "greedy": Greedy,
    "greedy-search": lambda: Greedy("-search 1000 any 10"),
    "mattes": Mattes,
    **peer_programs.METHODS,
}
