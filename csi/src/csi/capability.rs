//! Volume capabilities: what a caller wants to do with a volume, parsed once.

use proto::convert::InvalidField;
use proto::csi::v1::VolumeCapability;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessType, MountVolume};

use super::error::Error;

/// How a volume is to be used: always as a mounted directory of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Nobody may write.
    pub readonly: bool,
    /// One publication and no more.
    pub exclusive: bool,
    /// Options of the mount.
    pub options: MountOptions,
}

/// Options of a bind mount. `nosuid` and `nodev` hold unless asked away; reads never write (`noatime`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Read-only.
    pub readonly: bool,
    /// Setuid bits count.
    pub suid: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Programs cannot be run.
    pub noexec: bool,
}

impl MountOptions {
    fn parse(mount: &MountVolume) -> Result<Self, Error> {
        let mut options = Self::default();
        for flag in mount.mount_flags.iter().flat_map(|flags| flags.split(',')) {
            match flag.trim() {
                "ro" => options.readonly = true,
                "suid" => options.suid = true,
                "nosuid" => options.suid = false,
                "dev" => options.dev = true,
                "nodev" => options.dev = false,
                "noexec" => options.noexec = true,
                "exec" => options.noexec = false,
                // How it is anyway.
                "" | "rw" | "noatime" | "nodiratime" | "defaults" | "bind" => {}
                other => {
                    return Err(Error::Capability {
                        reason: format!(
                            "mount flag {other:?} is not one of ro, rw, suid, nosuid, dev, nodev, exec, noexec, noatime"
                        ),
                    });
                }
            }
        }
        Ok(options)
    }
}

/// Parses one capability.
///
/// # Errors
/// It is missing, incomplete or not offered.
pub fn access(capability: Option<&VolumeCapability>) -> Result<Access, Error> {
    let capability = capability.ok_or(InvalidField::Missing { field: "volume_capability" })?;
    let not_offered = |reason: &str| Error::Capability { reason: reason.to_owned() };
    let mount = match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => {
            return Err(not_offered("block volumes are not offered: these are directories"));
        }
        None => return Err(InvalidField::Missing { field: "volume_capability.access_type" }.into()),
    };
    if !matches!(mount.fs_type.as_str(), "" | "btrfs") {
        return Err(Error::Capability {
            reason: format!("fs_type {:?} is not offered, only btrfs", mount.fs_type),
        });
    }
    if !mount.volume_mount_group.is_empty() {
        return Err(not_offered("volume_mount_group is not offered"));
    }
    let mode = capability.access_mode.as_ref().map_or(Mode::Unknown, |mode| mode.mode());
    let (readonly, exclusive) = match mode {
        Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter => (false, false),
        Mode::SingleNodeReaderOnly => (true, false),
        Mode::SingleNodeSingleWriter => (false, true),
        Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => {
            return Err(Error::Capability {
                reason: format!("{} is not offered: one node at a time has a volume", mode.as_str_name()),
            });
        }
        Mode::Unknown => return Err(InvalidField::Missing { field: "volume_capability.access_mode" }.into()),
    };
    let options = MountOptions::parse(mount)?;
    Ok(Access { readonly: readonly || options.readonly, exclusive, options })
}

/// Parses a list of capabilities, of which there must be one.
///
/// # Errors
/// There is none, or one of them is not offered.
pub fn accesses(capabilities: &[VolumeCapability]) -> Result<Vec<Access>, Error> {
    if capabilities.is_empty() {
        return Err(InvalidField::Missing { field: "volume_capabilities" }.into());
    }
    capabilities.iter().map(|capability| access(Some(capability))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::csi::v1::volume_capability::{AccessMode, BlockVolume};

    fn capability(mode: Mode, flags: &[&str], fs_type: &str) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: fs_type.to_owned(),
                mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
                volume_mount_group: String::new(),
            })),
        }
    }

    #[test]
    fn modes_of_one_node_are_offered_and_no_others() {
        for (mode, expected) in [
            (Mode::SingleNodeWriter, Some((false, false))),
            (Mode::SingleNodeMultiWriter, Some((false, false))),
            (Mode::SingleNodeSingleWriter, Some((false, true))),
            (Mode::SingleNodeReaderOnly, Some((true, false))),
            (Mode::MultiNodeReaderOnly, None),
            (Mode::MultiNodeSingleWriter, None),
            (Mode::MultiNodeMultiWriter, None),
            (Mode::Unknown, None),
        ] {
            let got = access(Some(&capability(mode, &[], ""))).ok();
            assert_eq!(got.map(|access| (access.readonly, access.exclusive)), expected, "{mode:?}");
        }
    }

    #[test]
    fn what_is_not_offered_is_refused_and_not_ignored() {
        let block =
            VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..Default::default() };
        for wrong in [
            None,
            Some(VolumeCapability::default()),
            Some(block),
            Some(capability(Mode::SingleNodeWriter, &["nodatacow"], "")),
            Some(capability(Mode::SingleNodeWriter, &[], "ext4")),
        ] {
            let error = access(wrong.as_ref()).unwrap_err();
            assert_eq!(types::Classify::kind(&error), types::Kind::InvalidArgument, "{error}");
        }
        let access =
            access(Some(&capability(Mode::SingleNodeWriter, &["ro,suid", "noexec"], "btrfs"))).unwrap();
        assert_eq!(access.options, MountOptions { readonly: true, suid: true, dev: false, noexec: true });
        assert!(access.readonly);
    }
}
