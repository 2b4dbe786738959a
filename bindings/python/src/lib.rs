//! The Python extension module: Python in, core out.
