//! The Node addon: JavaScript in, core out.
