//! What must not grow: the cost of a sync and of a restore with the number of versions; and what a small read takes.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use tests::figures::{Figure, Target};

use crate::bench::{Bench, Source};
use crate::tool::{Runs, empty, number};
use crate::whole::price;

const GROUP: &str = "cost";

/// Versions in the long history, and files that they change in turn.
const VERSIONS: usize = 10_000;
const FILES: usize = 500;

impl Bench {
    /// Sync and restore at 10 and at 10,000 versions.
    pub(crate) fn history(&self) -> Result<Vec<Figure>> {
        let source = empty(&self.work, "history-source")?;
        for file in 0..FILES {
            let path = source.join(format!("file-{file}"));
            fs::write(&path, format!("first {file}\n").repeat(30))?;
            // Times as different as 10,000 changes leave them: equal ones take less room in the node.
            let scattered = u32::try_from(file * 1_618_033 % 999_983)? * 1_000;
            let modified =
                SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000 + 37 * file as u64, scattered);
            fs::File::options().write(true).open(&path)?.set_modified(modified)?;
        }
        let (store, target) = (empty(&self.work, "history-store")?, self.work.join("history-target"));
        let arguments = [
            "history",
            &source.display().to_string(),
            &format!("dir://{}", store.display()),
            &target.display().to_string(),
            &VERSIONS.to_string(),
        ];
        let told = Runs::default().store_op(&[], &arguments)?;
        let early = "at 10 versions";
        let of = |part: &str, field: &str| number(&told[part], field);
        let mut figures = Vec::new();
        for (name, part, field, unit, scale, target) in [
            ("one file, processor time", "sync", "cpu_seconds", "ms", 1e3, Target::Times(1.1)),
            ("one file, bytes sent", "sync", "bytes", "B", 1.0, Target::Times(1.1)),
            ("restore, processor time", "restore", "cpu_seconds", "ms", 1e3, Target::Beside),
            ("restore, requests", "restore", "gets", "GETs", 1.0, Target::Times(1.0)),
            ("packs that the version names", "restore", "packs", "packs", 1.0, Target::Beside),
        ] {
            let name = format!("{name}, at {VERSIONS} versions");
            let late = of(&format!("{part}_late"), field)? * scale;
            let limit = (early, of(&format!("{part}_early"), field)? * scale);
            figures.push(Figure::new(GROUP, name, (late, unit), limit, target));
        }
        Ok(figures)
    }

    /// The first bytes of one small file of a version that nobody has read.
    pub(crate) fn cold_read(&self, source: &Source) -> Result<Vec<Figure>> {
        let store = format!("dir://{}", empty(&self.work, "read-store")?.display());
        let mut runs = Runs::default();
        let told = runs.store_op(&[], &["put", &source.path.display().to_string(), &store])?;
        let tree = told["tree"].as_str().context("a version")?;
        let path = small_file(&source.path)?;
        let read = runs.store_op(&[], &["read", &store, tree, &path])?;
        let (puts, gets) = (number(&told, "puts")?, number(&read, "gets")?);
        Ok(vec![
            Figure::new(
                GROUP,
                format!("cold read of {path}"),
                (gets, "GETs"),
                ("3 GETs", 3.0),
                Target::Limit,
            ),
            Figure::new(
                GROUP,
                "time of it",
                (number(&read, "seconds")? * 1e3, "ms"),
                ("10 ms", 10.0),
                Target::Beside,
            ),
            Figure::new(
                GROUP,
                "list price of it",
                (price(0.0, gets) * 1e6, "USD-6"),
                ("the first sync", price(puts, 0.0) * 1e6),
                Target::Beside,
            ),
        ])
    }
}

/// A file in the middle of the packages.
fn small_file(root: &Path) -> Result<String> {
    let mut packages: Vec<_> =
        fs::read_dir(root.join("node_modules"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    packages.sort();
    let named = packages.iter().skip(packages.len() / 2).map(|package| package.join("package.json"));
    let path = named.into_iter().find(|path| path.is_file()).context("no package has a package.json")?;
    Ok(path.strip_prefix(root)?.display().to_string())
}
