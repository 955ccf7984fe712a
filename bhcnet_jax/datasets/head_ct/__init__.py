"""The 200 real head-CT images."""
