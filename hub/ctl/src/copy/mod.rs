//! `cp`: files and directories into a volume and out of one, with modes, times and symlinks.
//!
//! Every file appears whole or not at all, on both sides. Owners are those of the destination. Directories first,
//! then files many at a time, symlinks last: nothing is ever written through a link that the copy itself made.

mod inward;
mod local;
mod outward;

use std::ffi::OsString;
use std::path::Path;

use crate::cli::CpArgs;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::target::Side;
use crate::view::Copied;

/// Files on their way at once: enough to hide the latency of a call, few enough for any limit on open files.
const FILES_AT_ONCE: usize = 16;

/// Changes sent in one batch: far below the largest message even with the longest paths.
const CHANGES_AT_ONCE: usize = 250;

/// Copies what is asked.
///
/// # Errors
/// A source is missing, a destination does not fit, or one side fails; what was copied before that stays.
pub async fn run(context: &Context, output: &Output, args: CpArgs) -> Result<()> {
    let mut sides =
        args.paths.iter().map(|path| Side::parse(path)).collect::<std::result::Result<Vec<_>, _>>()?;
    let destination = sides.pop().expect("clap asks for two");
    let mut copied = Copied::default();
    match destination {
        Side::Volume { target, contents } => {
            let sources = sides
                .into_iter()
                .map(|side| match side {
                    Side::Local(path) => Ok(path),
                    Side::Volume { .. } => Err(wrong("both sides are in volumes")),
                })
                .collect::<Result<Vec<OsString>>>()?;
            inward::copy(context, output, &sources, &target, contents, &mut copied).await?;
        }
        Side::Local(destination) => {
            for side in sides {
                let Side::Volume { target, contents } = side else {
                    return Err(wrong("neither side is in a volume"));
                };
                outward::copy(context, output, &target, contents, Path::new(&destination), &mut copied)
                    .await?;
            }
        }
    }
    output.one(&copied)
}

fn wrong(message: &str) -> Error {
    Error::usage(
        message,
        "write VOL:PATH for one side, as in `sailctl cp ./src app:/src`; `fork` copies volumes",
    )
}
