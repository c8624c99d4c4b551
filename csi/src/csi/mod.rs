//! The Container Storage Interface 1.12: Identity and Node beside the node daemon, Identity, Controller and
//! GroupController over the hub's client.
//!
//! Invariants:
//! - Ids are data: one that does not parse is one that does not exist, and never becomes a path.
//! - A target is only ever unmounted and `rmdir`ed. Nothing here deletes recursively.
//! - Mounts live in the kernel: what is published here is read from mountinfo each time, never remembered.
//! - A volume is published at one node at a time: the attribute that says where is written to the record under the
//!   condition that there is none, so it holds whatever hub or controller dies.
//! - A capability that is not built is not advertised. Requests are never logged: they may hold secrets.

pub mod capability;
pub mod controller;
mod ephemeral;
pub mod error;
pub(crate) mod facts;
pub mod identity;
mod mount;
pub mod node;
mod parameters;
pub mod serve;

/// The driver's name where nobody chose another.
pub const DRIVER: &str = "btrfs.csi.tesslate.io";

/// Names that CSI gives have at most this many bytes.
const LONGEST_NAME: usize = 128;

/// Parses the id of something that may exist. One that cannot be an id names nothing.
fn id(what: &'static str, field: &'static str, text: &str) -> Result<types::VolumeId, error::Error> {
    if text.is_empty() {
        return Err(proto::convert::InvalidField::Missing { field }.into());
    }
    text.parse().map_err(|_| error::Error::NotFound { what, id: text.chars().take(128).collect() })
}

/// Checks a name that CSI gives.
fn name(text: &str) -> Result<&str, error::Error> {
    if text.is_empty() {
        return Err(proto::convert::InvalidField::Missing { field: "name" }.into());
    }
    if text.len() > LONGEST_NAME {
        let reason = format!("is longer than {LONGEST_NAME} bytes");
        return Err(proto::convert::InvalidField::Malformed { field: "name", reason }.into());
    }
    Ok(text)
}
