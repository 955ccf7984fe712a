"""CT slices in Hounsfield units (HU), from DICOM and NIfTI files."""
