//! Whether a restore should write frames as they are (`ENCODED_WRITE`) and share what it has written already (reflinks):
//! each on and off, in turn, on the data set.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use btrfs::Dir;
use btrfs::encoded::{self, RAW_MAX};
use tests::figures::{Figure, Target, median};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use crate::bench::{Bench, Source, pool_of, pool_path};

const GROUP: &str = "encoded";

/// Files from this size have cells, and so could be written as they are.
const LARGE: u64 = 1 << 20;

/// Cells in a frame as the store has them.
const CELLS: usize = 8;

/// Smaller files lie in the tree of the filesystem: there is nothing to share.
const SHARED_MIN: u64 = 4 << 10;

const TARGET: &str = "bench-encoded";

/// A file in frames.
struct Framed {
    name: String,
    size: usize,
    frames: Vec<Frame>,
}

struct Frame {
    offset: usize,
    raw_len: usize,
    hash: blake3::Hash,
    /// As it is where compression does not pay.
    stored: Result<Vec<u8>, Vec<u8>>,
}

impl Framed {
    fn of(name: String, bytes: &[u8], frame: usize, compressor: &mut Compressor<'_>) -> Result<Self> {
        let frames = bytes.chunks(frame).enumerate().map(|(number, raw)| {
            let stored = compressor.compress(raw)?;
            let stored =
                if stored.len() + raw.len() / 32 < raw.len() { Ok(stored) } else { Err(raw.to_vec()) };
            Ok(Frame { offset: number * frame, raw_len: raw.len(), hash: blake3::hash(raw), stored })
        });
        Ok(Self { name, size: bytes.len(), frames: frames.collect::<Result<_>>()? })
    }

    fn stored(&self) -> usize {
        self.frames.iter().map(|frame| frame.stored.as_ref().unwrap_or_else(|raw| raw).len()).sum()
    }

    /// Makes the file. Its bytes are proved either way, so they are decompressed either way.
    fn make(&self, directory: &Path, decompressor: &mut Decompressor<'_>, as_it_is: bool) -> Result<()> {
        let file = File::create(directory.join(&self.name))?;
        file.set_len(self.size as u64)?;
        for Frame { offset, raw_len, hash, stored } in &self.frames {
            let at = *offset as u64;
            match stored {
                Err(raw) => {
                    ensure!(blake3::hash(raw) == *hash, "a frame is damaged");
                    file.write_all_at(raw, at)?;
                }
                Ok(frame) => {
                    let raw = decompressor.decompress(frame, *raw_len)?;
                    ensure!(blake3::hash(&raw) == *hash, "a frame is damaged");
                    if as_it_is {
                        encoded::write(file.as_fd(), at, frame, *raw_len)?;
                    } else {
                        file.write_all_at(&raw, at)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Bench {
    /// Both, on and off.
    pub(crate) fn encoded(&self, source: &Source, repetitions: usize) -> Result<Vec<Figure>> {
        let mut figures = self.as_it_is(source, repetitions)?;
        figures.extend(self.shared(source, repetitions)?);
        Ok(figures)
    }

    fn as_it_is(&self, source: &Source, repetitions: usize) -> Result<Vec<Figure>> {
        let mut compressor = Compressor::new(3)?;
        let mut cells = Compressor::new(3)?;
        cells.set_parameter(CParameter::WindowLog(17))?;
        let (mut ours, mut single, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (number, path) in files(&self.data, LARGE)?.into_iter().enumerate() {
            let content = fs::read(path)?;
            bytes += content.len();
            ours.push(Framed::of(number.to_string(), &content, CELLS * RAW_MAX, &mut compressor)?);
            single.push(Framed::of(number.to_string(), &content, RAW_MAX, &mut cells)?);
        }
        let (mut off, mut on) = (Vec::new(), Vec::new());
        let mut decompressor = Decompressor::new()?;
        for _ in 0..repetitions {
            for (files, as_it_is, took) in [(&ours, false, &mut off), (&single, true, &mut on)] {
                took.push(timed(source, |target| {
                    files.iter().try_for_each(|file| file.make(target, &mut decompressor, as_it_is))
                })?);
            }
        }
        let stored = |files: &[Framed]| megabytes(files.iter().map(Framed::stored).sum::<usize>());
        let what = format!("{} files from 1 MiB, {:.0} MB", ours.len(), megabytes(bytes));
        Ok(vec![
            Figure::new(
                GROUP,
                format!("{what}, with ENCODED_WRITE"),
                (median(&on).as_secs_f64(), "s"),
                ("without, flushed both", median(&off).as_secs_f64()),
                Target::Beside,
            ),
            Figure::new(
                GROUP,
                "stored for it, in frames of a cell",
                (stored(&single), "MB"),
                ("in frames of eight", stored(&ours)),
                Target::Beside,
            ),
        ])
    }

    fn shared(&self, source: &Source, repetitions: usize) -> Result<Vec<Figure>> {
        let mut firsts: HashMap<blake3::Hash, PathBuf> = HashMap::new();
        let (mut pairs, mut bytes) = (Vec::new(), 0);
        for path in files(&self.data, SHARED_MIN)? {
            let content = fs::read(&path)?;
            match firsts.get(&blake3::hash(&content)) {
                Some(first) => {
                    bytes += content.len();
                    pairs.push((first.clone(), content));
                }
                None => drop(firsts.insert(blake3::hash(&content), path)),
            }
        }
        let (mut off, mut on) = (Vec::new(), Vec::new());
        for _ in 0..repetitions {
            for (shares, took) in [(false, &mut off), (true, &mut on)] {
                took.push(timed(source, |target| {
                    for (number, (first, content)) in pairs.iter().enumerate() {
                        let file = File::create(target.join(number.to_string()))?;
                        if shares {
                            // The source has the very file: what a restore would have written a moment ago.
                            let first = source.path.join(first.strip_prefix(&self.data)?);
                            rustix::fs::ioctl_ficlone(&file, File::open(first)?)?;
                        } else {
                            file.write_all_at(content, 0)?;
                        }
                    }
                    Ok(())
                })?);
            }
        }
        Ok(vec![Figure::new(
            GROUP,
            format!("{} equal files from 4 KiB, {:.0} MB, by reflink", pairs.len(), megabytes(bytes)),
            (median(&on).as_secs_f64(), "s"),
            ("written, flushed both", median(&off).as_secs_f64()),
            Target::Beside,
        )])
    }
}

/// How long it takes to make files in a fresh subvolume, flushed.
fn timed(source: &Source, make: impl FnOnce(&Path) -> Result<()>) -> Result<Duration> {
    let pool = pool_of(source)?;
    drop(pool.create_subvolume(TARGET, None)?);
    let target = pool_path(source).join(TARGET);
    let started = Instant::now();
    make(&target)?;
    btrfs::commit::sync_all(&Dir::open(&target)?)?;
    let took = started.elapsed();
    pool.delete_subvolume(TARGET)?;
    Ok(took)
}

#[expect(clippy::cast_precision_loss, reason = "megabytes")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Regular files from a size, by path.
fn files(root: &Path, least: u64) -> Result<Vec<PathBuf>> {
    let (mut found, mut queue) = (Vec::new(), vec![root.to_owned()]);
    while let Some(next) = queue.pop() {
        for entry in fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let entry = entry?;
            let facts = entry.metadata()?;
            if facts.is_dir() {
                queue.push(entry.path());
            } else if facts.is_file() && facts.len() >= least {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
