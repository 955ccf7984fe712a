"""Drawn patients as DICOM series and NIfTI volumes, in HU and marked as synthetic; one patient gives the same bytes.

The picture's columns lead to the patient's left and its rows to the back, its slices from the feet to the head.
Z slices, S pixels a side.
"""

import gzip
import io
from collections.abc import Iterator
from typing import NamedTuple

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from bhcnet_jax.datasets.ct.hounsfield import BRAIN

NAME = 'PHANTOM'  # of every patient, with a number
TOLD = 'PHANTOM: drawn, no patient'
INTERCEPT = -1024  # HU that are stored as 0


class Patient(NamedTuple):
    """A drawn patient.

    Attributes:
      name: that tells it from all others, as '2022-003'.
      hu: int16 [Z, S, S], at least INTERCEPT.
      height: float [Z], mm of the slices towards the head, evenly spaced.
      spacing: mm between slices, rows and columns.
    """

    name: str
    hu: np.ndarray
    height: np.ndarray
    spacing: np.ndarray

    @property
    def corner(self) -> tuple[float, float]:
        """mm to the left and to the back, of the first pixel from the middle of the picture."""
        rows, columns = self.hu.shape[1:]
        return -(columns - 1) / 2 * float(self.spacing[2]), -(rows - 1) / 2 * float(self.spacing[1])


def dicom(patient: Patient) -> Iterator[bytes]:
    """A file for each slice, from the feet to the head: CT Image Storage, uncompressed."""
    study, series, frame = (_uid(patient, what) for what in ('study', 'series', 'frame'))
    for place, hu in enumerate(patient.hu):
        dataset = _described(patient)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.SOPInstanceUID = _uid(patient, str(place))
        dataset.InstanceNumber = place + 1
        position = [*patient.corner, float(patient.height[place])]
        dataset.ImagePositionPatient = [f'{each:.6g}' for each in position]
        dataset.SliceLocation = f'{position[2]:.6g}'
        dataset.Rows, dataset.Columns = hu.shape
        dataset.PixelData = (hu.astype(np.int32) - INTERCEPT).astype('<u2').tobytes()
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, dataset.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta, written = meta, io.BytesIO()
        dataset.save_as(written, enforce_file_format=True)
        yield written.getvalue()


def _uid(patient: Patient, what: str) -> str:
    return generate_uid(entropy_srcs=[NAME, patient.name, what])


def _described(patient: Patient) -> Dataset:
    """What all slices of a patient say of themselves; what a scanner would know more is empty."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.PatientName, dataset.PatientID = f'{NAME}^{patient.name}', f'{NAME}-{patient.name}'
    dataset.ImageType = ['DERIVED', 'PRIMARY', 'AXIAL']
    dataset.Modality, dataset.BodyPartExamined, dataset.PatientPosition = 'CT', 'HEAD', 'HFS'
    dataset.Manufacturer, dataset.StudyID, dataset.SeriesNumber = 'bhcnet_jax', NAME, 1
    dataset.StudyDescription = dataset.SeriesDescription = dataset.ImageComments = TOLD
    for empty in ('StudyDate', 'StudyTime', 'AccessionNumber', 'ReferringPhysicianName', 'PatientBirthDate',
                  'PatientSex', 'PositionReferenceIndicator', 'AcquisitionNumber', 'KVP'):  # fmt: skip
        setattr(dataset, empty, None if empty in ('AcquisitionNumber', 'KVP') else '')
    dataset.SliceThickness = dataset.SpacingBetweenSlices = f'{patient.spacing[0]:.6g}'
    dataset.PixelSpacing = [f'{each:.6g}' for each in patient.spacing[1:]]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, 'MONOCHROME2', 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = INTERCEPT, 1, 'HU'
    dataset.WindowCenter, dataset.WindowWidth = BRAIN.level, BRAIN.width
    return dataset


def nifti(patient: Patient, values: np.ndarray) -> bytes:
    """A .nii.gz of values of the patient, [Z, S, S], as HU or the mask, in a dtype that NIfTI has."""
    left, back = patient.corner
    gap, rows, columns = map(float, patient.spacing)
    affine = np.diag([-columns, -rows, gap, 1.0])  # NIfTI's x leads to the right, its y to the front
    affine[:3, 3] = -left, -back, float(patient.height[0])
    image = nibabel.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), affine)
    image.header['descrip'] = TOLD
    image.header.set_xyzt_units('mm')
    return gzip.compress(image.to_bytes(), mtime=0)
