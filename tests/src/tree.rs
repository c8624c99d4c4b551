//! What a volume should hold: the oracle of the tests that kill things.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

/// A file's bytes, kept as what makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Seeds the bytes.
    pub seed: u64,
    /// How many.
    pub length: usize,
}

impl Content {
    /// Makes the bytes. They do not compress, so that moving them takes its time.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        SmallRng::seed_from_u64(self.seed).fill_bytes(&mut bytes);
        bytes
    }

    /// Draws a content: mostly small, sometimes megabytes, so that a sync lasts long enough to be killed.
    pub fn draw(rng: &mut SmallRng) -> Self {
        let length = match rng.random_range(0..10) {
            0 => 0,
            1..=5 => rng.random_range(1..4_000),
            6..=8 => rng.random_range(4_000..300_000),
            _ => rng.random_range(1_000_000..6_000_000),
        };
        Self { seed: rng.random(), length }
    }
}

/// Files by path.
pub type Tree = BTreeMap<String, Content>;

/// Compares a directory with what it should hold.
///
/// # Errors
/// The directory cannot be read, or differs: the error says where.
pub fn compare(expected: &Tree, directory: &Path) -> anyhow::Result<()> {
    let mut found = Vec::new();
    collect(directory, String::new(), &mut found)?;
    found.sort();
    let wanted: Vec<&String> = expected.keys().collect();
    anyhow::ensure!(
        found.iter().collect::<Vec<_>>() == wanted,
        "{}: holds {found:?}, should hold {wanted:?}",
        directory.display()
    );
    for (path, content) in expected {
        let bytes = fs::read(directory.join(path))?;
        anyhow::ensure!(
            bytes == content.bytes(),
            "{}/{path}: {} bytes that differ from the {} that were written",
            directory.display(),
            bytes.len(),
            content.length
        );
    }
    Ok(())
}

fn collect(directory: &Path, prefix: String, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().into_string().expect("the tests write UTF-8 names");
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}
