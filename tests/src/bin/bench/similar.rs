//! Projects that have most of their packages in common, one after the other, each on the other node than the last.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use tests::figures::{Figure, Target};

use crate::bench::{Bench, count, quote, shell};
use crate::tool::{empty, megabytes};

const GROUP: &str = "similar";

impl Bench {
    /// What the projects take in the store, and in repositories of the peers.
    pub(crate) async fn similar(&self, projects: &[PathBuf]) -> Result<Vec<Figure>> {
        ensure!(!projects.is_empty(), "there are no projects: hack/w100 makes them");
        let (restic, borg) = (empty(&self.work, "similar-restic")?, empty(&self.work, "similar-borg")?);
        let environment = format!(
            "export RESTIC_PASSWORD=bench BORG_BASE_DIR={0}.cache BORG_RELOCATED_REPO_ACCESS_IS_OK=yes \
             BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes; ",
            borg.display()
        );
        shell(&format!("{environment}restic -q init -r {}", quote(&restic)))?;
        shell(&format!("{environment}borg init -e none {}", quote(&borg)))?;
        let (mut stored, mut first, mut files, mut bytes) = (0, 0, 0, 0);
        for (number, project) in projects.iter().enumerate() {
            let name = format!("bench-similar-{number}");
            let node = format!("node-{}", number % 2 + 1);
            let volume = self.volume_of(&name, "similar", &node, project).await?;
            (files, bytes) = (files + volume.files, bytes + volume.bytes);
            let synced = self.sync(&volume.id).await?;
            stored += synced.bytes_uploaded;
            if number == 0 {
                first = synced.bytes_uploaded;
            }
            // In the shape of a person's backups: one repository, one snapshot for each project.
            shell(&format!(
                "{environment}cd {} && restic -q backup -r {} --no-cache . && borg create --compression zstd,3 {}::{name} .",
                quote(project),
                quote(&restic),
                borg.display()
            ))?;
            self.delete(volume.id).await?;
        }
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        let (ours, first, logical) = (stored as f64 / 1e6, first as f64 / 1e6, bytes as f64 / 1e6);
        let what = format!("stored of {} similar projects ({files} files, {logical:.0} MB)", projects.len());
        let (restic, borg) = (megabytes(&restic)?, megabytes(&borg)?);
        ensure!(count(&projects[0])?.0 > 0, "a project is empty");
        Ok(vec![
            Figure::new(GROUP, what, (ours, "MB"), ("restic", restic), Target::Times(1.0 / 1.15)),
            Figure::new(GROUP, "the same", (ours, "MB"), ("borg zstd,3", borg), Target::Times(1.0 / 1.10)),
            Figure::new(GROUP, "the same", (ours, "MB"), ("the first project alone", first), Target::Beside),
        ])
    }
}
