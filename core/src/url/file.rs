//! The URLs of lock files.

use std::path::PathBuf;

use super::query::{Query, decode, flag};
use super::{invalid, plain_id};
use crate::error::{Error, Result};

const FILE_KEYS: &[&str] = &["mode", "remotefs"];

/// A lock file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileTarget {
    /// Which file.
    pub place: FilePlace,
    /// `mode=`: the permissions of a file that is created; `None` is 0600.
    pub mode: Option<u32>,
    /// `remotefs=1`: accept a network file system.
    pub remote_fs: bool,
}

/// How a lock file was named.
#[derive(Clone, Debug, PartialEq)]
pub enum FilePlace {
    /// A name in the default directory.
    Id(String),
    /// A path; a relative one counts from the working directory at open.
    Path(PathBuf),
}

pub(super) fn target(scheme: &str, body: &str, query: &Query) -> Result<FileTarget> {
    query.only(FILE_KEYS)?;
    let path = if scheme == "file" { strip_file_authority(body)? } else { body };
    let place = if path.starts_with('/') || path.starts_with("./") {
        let path = decode(path, "path")?;
        if path.ends_with('/') {
            return Err(invalid("the path ends in `/`").with_help("name the lock file itself"));
        }
        FilePlace::Path(PathBuf::from(path))
    } else if scheme == "file" {
        return Err(invalid("`file:` needs a path").with_help("write file:/path/to/lock, or mpm:<id> for a name"));
    } else {
        let id = plain_id(&decode(path, "id")?);
        let is_path =
            |error: Error| if path.contains('/') { error.with_help("a path begins with `/` or `./`") } else { error };
        FilePlace::Id(id.map_err(is_path)?)
    };
    let mode = query.read("mode", "an octal mode such as 0660, without a right for others", |value| {
        u32::from_str_radix(value, 8).ok().filter(|mode| mode & !0o660 == 0 && mode & 0o600 == 0o600)
    })?;
    let remote_fs = query.read("remotefs", "1, 0", flag)?.unwrap_or(false);
    Ok(FileTarget { place, mode, remote_fs })
}

fn strip_file_authority(body: &str) -> Result<&str> {
    let Some(rest) = body.strip_prefix("//") else { return Ok(body) };
    let path = rest.find('/').map(|at| rest.split_at(at));
    match path {
        Some(("" | "localhost", path)) => Ok(path),
        _ => Err(invalid("`file:` names a file of this host").with_help("write file:/path or file:///path")),
    }
}
