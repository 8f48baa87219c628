"""Writes pictures as slides of several formats, with the formats' own libraries."""

import json

import numpy as np

TILE = 128


def write_pyramid(path, image, *, mpp=0.25, num_levels=3, **options):
    """Writes a TIFF with a page per level, as scanners do."""
    import tifffile

    options = {"photometric": "rgb" if image.ndim == 3 else "minisblack", "tile": (TILE, TILE)} | options
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(num_levels):
            step = 2**level
            size = (1e4 / (mpp * step),) * 2
            levels = {"subfiletype": 1} if level else {}
            file.write(image[::step, ::step], resolution=size, resolutionunit=3, **levels, **options)


def write_ome_tiff(path, image, *, axes="YXS", mpp=0.25, num_levels=3, metadata=None, **options):
    """Writes an OME-TIFF with the levels as sub-directories."""
    import tifffile

    options = {"photometric": "rgb" if "S" in axes else "minisblack", "tile": (TILE, TILE)} | options
    about = {"axes": axes, "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp} | (metadata or {})
    steps = [
        tuple(slice(None, None, 2**level if axis in "YX" else None) for axis in axes) for level in range(num_levels)
    ]
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        file.write(image, subifds=num_levels - 1, metadata=about, **options)
        for step in steps[1:]:
            file.write(image[step], subfiletype=1, metadata=None, **options)


def write_ome_zarr(path, image, *, axes="cyx", mpp=0.25, version="0.5", num_levels=3, channels=None):
    """Writes OME-Zarr 0.4 or 0.5."""
    import zarr

    zarr_format = 2 if version == "0.4" else 3
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    datasets = []
    for level in range(num_levels):
        step = 2**level
        pixels = image[tuple(slice(None, None, step if axis in "yx" else None) for axis in axes)]
        chunks = tuple(
            min(TILE, length) if axis in "yx" else 1 for axis, length in zip(axes, pixels.shape, strict=True)
        )
        group.create_array(str(level), shape=pixels.shape, dtype=pixels.dtype, chunks=chunks)[...] = pixels
        scale = [mpp * step if axis in "yx" else 1.0 for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"c": "channel", "t": "time"}
    named = [
        {"name": axis, "type": kinds.get(axis, "space")} | ({"unit": "micrometer"} if axis in "zyx" else {})
        for axis in axes
    ]
    about = {"multiscales": [{"name": "image", "axes": named, "datasets": datasets}]}
    if channels is not None:
        about["omero"] = {"channels": channels}
    if version == "0.4":
        about["multiscales"][0]["version"] = "0.4"
        group.attrs.update(about)
    else:
        group.attrs["ome"] = {"version": version, **about}


def write_dicom(folder, image, *, mpp=0.25, num_levels=3, bits=8, planes=1, optical_paths=("1",), series=None):
    """Writes a whole slide as DICOM, uncompressed, a file per level; several planes are [planes, h, w, ...].

    The attributes are those of PS3.3, A.32.8, that readers need.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    series = series or generate_uid()
    study, frame_of_reference, pyramid = generate_uid(), generate_uid(), generate_uid()
    stack = image if planes > 1 else image[None]
    for level in range(num_levels):
        step = 2**level
        pixels = stack[:, ::step, ::step]
        height, width = pixels.shape[1:3]
        samples = 1 if pixels.ndim == 3 else 3
        down, across = -(-height // TILE), -(-width // TILE)
        room = ((0, 0), (0, down * TILE - height), (0, across * TILE - width)) + ((0, 0),) * (pixels.ndim - 3)
        padded = np.pad(pixels, room, constant_values=2**bits - 1)
        frames = [
            padded[plane, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            for _ in optical_paths
            for plane in range(planes)
            for row in range(down)
            for column in range(across)
        ]
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.FrameOfReferenceUID, data.PyramidUID = frame_of_reference, pyramid
        data.PatientID = data.PatientName = data.StudyID = data.ContainerIdentifier = "drawn"
        data.PatientBirthDate = data.PatientSex = data.AccessionNumber = data.ReferringPhysicianName = ""
        data.StudyDate, data.StudyTime = "20260101", "000000"
        data.ContentDate, data.ContentTime, data.AcquisitionDateTime = "20260101", "000000", "20260101000000"
        data.Modality, data.Manufacturer, data.SeriesNumber, data.InstanceNumber = "SM", "drawn", 1, level + 1
        data.ImageType = [
            "ORIGINAL" if level == 0 else "DERIVED",
            "PRIMARY",
            "VOLUME",
            "NONE" if level == 0 else "RESAMPLED",
        ]
        data.SamplesPerPixel = samples
        data.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
        if samples == 3:
            data.PlanarConfiguration = 0
        data.BitsAllocated = 8 if bits <= 8 else 16
        data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, 0
        data.Rows = data.Columns = TILE
        data.NumberOfFrames = len(frames)
        data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = height, width
        data.TotalPixelMatrixFocalPlanes = planes
        data.ImagedVolumeWidth, data.ImagedVolumeHeight = (side * mpp * step / 1000 for side in (width, height))
        data.ImagedVolumeDepth = 1.0
        data.DimensionOrganizationType = "TILED_FULL"
        data.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
        origin = Dataset()
        origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
        data.TotalPixelMatrixOriginSequence = [origin]
        data.SpecimenLabelInImage, data.BurnedInAnnotation, data.FocusMethod = "NO", "NO", "AUTO"
        data.ExtendedDepthOfField, data.VolumetricProperties = "NO", "VOLUME"
        data.LossyImageCompression = "00"
        paths = []
        for identifier in optical_paths:
            optical_path = Dataset()
            optical_path.OpticalPathIdentifier = identifier
            paths.append(optical_path)
        data.OpticalPathSequence, data.NumberOfOpticalPaths = paths, len(paths)
        measures, groups = Dataset(), Dataset()
        measures.PixelSpacing = [mpp * step / 1000] * 2
        measures.SliceThickness, measures.SpacingBetweenSlices = 0.001, 0.001
        groups.PixelMeasuresSequence = [measures]
        data.SharedFunctionalGroupsSequence = [groups]
        data.PixelData = b"".join(np.ascontiguousarray(frame).tobytes() for frame in frames)
        data["PixelData"].VR = "OB" if bits <= 8 else "OW"
        pydicom.dcmwrite(folder / f"level_{level}.dcm", data, enforce_file_format=True)


def change_json(path, change):
    """Changes the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
