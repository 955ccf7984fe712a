"""Any labelled folder as a data set."""
