//! What a file that is replaced hands on beside its owner and mode: its extended attributes, ACL included.

use std::fs::File;

use nix::errno::Errno;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};

/// Dropped as a write into the file drops it: it would hand the old program's rights to the new one.
const CAPABILITY: &[u8] = b"security.capability";

/// A new file has it from its directory's default ACL.
const ACL: &[u8] = b"system.posix_acl_access";

/// The kernel's own bound on a list and on a value.
const MAX_BYTES: usize = 64 << 10;

/// Gives `new` the attributes of `old`.
pub(super) fn keep(old: &File, new: &File) -> Result<(), Errno> {
    let mut names = vec![0; MAX_BYTES];
    let length = match flistxattr(old, names.as_mut_slice()) {
        Ok(length) => length,
        // A filesystem without them.
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(raw(errno)),
    };
    names.truncate(length);
    let names: Vec<&[u8]> = names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    if !names.contains(&ACL) {
        match fremovexattr(new, ACL) {
            Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(raw(errno)),
        }
    }
    let mut value = vec![0; if names.is_empty() { 0 } else { MAX_BYTES }];
    for name in names.into_iter().filter(|name| *name != CAPABILITY) {
        let length = match fgetxattr(old, name, value.as_mut_slice()) {
            Ok(length) => length,
            // Gone since it was listed.
            Err(rustix::io::Errno::NODATA) => continue,
            Err(errno) => return Err(raw(errno)),
        };
        fsetxattr(new, name, &value[..length], XattrFlags::empty()).map_err(raw)?;
    }
    Ok(())
}

fn raw(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}
