//! Files of a volume.

use proto::files;
use serde::Serialize;
use types::Timestamp;

use super::{Time, some};
use crate::output::{Fields, Row, dash, size};

/// A file, directory or other entry of a tree.
#[derive(Debug, Serialize)]
pub struct File {
    /// Below the volume's root; what is not UTF-8 in it is shown as U+FFFD.
    pub path: String,
    /// Its bytes in hex, where they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// file, directory, symlink, fifo, socket, char device, block device.
    #[serde(rename = "type")]
    pub kind: String,
    /// In bytes.
    pub size: u64,
    /// Permission bits, octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content changed.
    pub modified: Option<Time>,
    /// BLAKE3 of the content, or a weak one, where it is known.
    pub etag: Option<String>,
    /// Of a symlink.
    pub target: Option<String>,
}

impl From<files::Entry> for File {
    fn from(entry: files::Entry) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            kind: kind(entry.r#type()).to_owned(),
            path: text(&entry.path),
            path_hex: std::str::from_utf8(&entry.path).is_err().then(|| hex(&entry.path)),
            size: entry.size,
            mode: format!("{:04o}", entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            modified: entry.modified.map(|time| Time(proto::convert::time(time))),
            target: some(text(&entry.target)),
            etag: some(entry.etag),
        }
    }
}

fn kind(kind: files::FileType) -> &'static str {
    match kind {
        files::FileType::Unspecified => "unknown",
        files::FileType::File => "file",
        files::FileType::Directory => "directory",
        files::FileType::Symlink => "symlink",
        files::FileType::Fifo => "fifo",
        files::FileType::Socket => "socket",
        files::FileType::CharDevice => "char device",
        files::FileType::BlockDevice => "block device",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Row for File {
    const HEADS: &'static [&'static str] = &["TYPE", "MODE", "OWNER", "SIZE", "MODIFIED", "PATH"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        let path = match &self.target {
            Some(target) => format!("{} -> {target}", self.path),
            None => self.path.clone(),
        };
        vec![
            self.kind.clone(),
            self.mode.clone(),
            format!("{}:{}", self.uid, self.gid),
            self.size.to_string(),
            dash(self.modified.map(|time| time.0).as_ref()),
            path,
        ]
    }
}

impl Fields for File {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("path", self.path.clone()),
            ("type", self.kind.clone()),
            ("mode", self.mode.clone()),
            ("owner", format!("{}:{}", self.uid, self.gid)),
            ("size", self.size.to_string()),
            ("modified", dash(self.modified.map(|time| time.0).as_ref())),
        ];
        fields.extend(self.etag.iter().map(|etag| ("etag", etag.clone())));
        fields.extend(self.target.iter().map(|target| ("target", target.clone())));
        fields
    }
}

/// How a path differs between two points in time.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// added, removed, modified, metadata.
    pub change: String,
    /// Below the root; what is not UTF-8 in it is shown as U+FFFD.
    pub path: String,
    /// Its bytes in hex, where they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
}

impl From<files::Difference> for Difference {
    fn from(difference: files::Difference) -> Self {
        use files::difference::Kind;
        let change = match difference.kind() {
            Kind::Unspecified => "unknown",
            Kind::Added => "added",
            Kind::Removed => "removed",
            Kind::Modified => "modified",
            Kind::Metadata => "metadata",
        };
        Self {
            change: change.to_owned(),
            path: String::from_utf8_lossy(&difference.path).into_owned(),
            path_hex: std::str::from_utf8(&difference.path).is_err().then(|| hex(&difference.path)),
        }
    }
}

impl Row for Difference {
    const HEADS: &'static [&'static str] = &["CHANGE", "PATH"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![self.change.clone(), self.path.clone()]
    }
}

/// What restoring a part of a volume answers.
#[derive(Debug, Serialize)]
pub struct RestoredPart {
    /// The volume's id.
    pub id: String,
    /// What stands there now.
    #[serde(flatten)]
    pub file: File,
    /// Something stood there before.
    pub replaced: bool,
    /// Names that are no directories.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Fields for RestoredPart {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            (if self.replaced { "replaced" } else { "made" }, format!("{}:{}", self.id, self.file.path)),
            ("files", format!("{} ({})", self.files, size(self.bytes))),
        ]
    }
}

/// What was written.
#[derive(Debug, Serialize)]
pub struct Written {
    /// The volume's id.
    pub id: String,
    /// The file as it is now.
    #[serde(flatten)]
    pub file: File,
    /// There was nothing at the path before.
    pub created: bool,
}

impl Fields for Written {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            (if self.created { "created" } else { "replaced" }, format!("{}:{}", self.id, self.file.path)),
            ("size", self.file.size.to_string()),
            ("etag", dash(self.file.etag.as_ref())),
        ]
    }
}

/// What a copy answers.
#[derive(Debug, Default, Serialize)]
pub struct Copied {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Content, in bytes.
    pub bytes: u64,
    /// Devices, sockets and fifos, which are left out.
    pub skipped: u64,
}

impl Fields for Copied {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("files", format!("{} ({})", self.files, size(self.bytes))),
            ("directories", self.directories.to_string()),
            ("symlinks", self.symlinks.to_string()),
        ];
        if self.skipped > 0 {
            fields.push(("skipped", format!("{} devices, sockets and fifos", self.skipped)));
        }
        fields
    }
}
