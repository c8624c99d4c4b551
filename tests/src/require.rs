//! What a test needs of its machine. A test that cannot run says so loudly, and fails where `REQUIRE_BTRFS=1`.

use anyhow::{Result, bail};

/// Tells if this process may make btrfs pools on loop devices.
///
/// # Errors
/// It may not, and `REQUIRE_BTRFS=1` says that it must.
pub fn btrfs() -> Result<bool> {
    let missing = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if !btrfs::features::kernel_has_btrfs() {
        "a kernel with btrfs"
    } else if !std::path::Path::new("/dev/loop-control").exists() {
        "loop devices"
    } else {
        return Ok(true);
    };
    if std::env::var("REQUIRE_BTRFS").is_ok_and(|value| value == "1") {
        bail!("this test needs {missing}, and REQUIRE_BTRFS=1 does not allow it to be skipped");
    }
    eprintln!("SKIPPED: this test needs {missing}");
    Ok(false)
}
