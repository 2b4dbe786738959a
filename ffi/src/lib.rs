//! The C interface: C in, core out.
