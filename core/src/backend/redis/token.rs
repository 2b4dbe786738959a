//! Names that nobody else has.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// An owner token: what the key holds. 128 random bits, in hex.
pub(super) type Token = Arc<str>;

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(ErrorKind::Resource, "acquire", format!("no random numbers: {error}")))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For a process.
pub(super) fn name() -> Result<String> {
    Ok(hex(&random::<8>()?))
}

/// A token that nobody had before: asked of the kernel each time, so that a fork copies no state.
pub(super) fn new_token() -> Result<Token> {
    Ok(hex(&random::<16>()?).into())
}
