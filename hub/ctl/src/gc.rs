//! `gc`: garbage collection by hand, straight on the store.

use cas::gc::{Collector, Settings};

use crate::cli::GcArgs;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::store;
use crate::view::{Collected, Kept, WouldCollect};

/// Collects, or says what a collection would do.
///
/// # Errors
/// Something in the store cannot be read. Then nothing is half done.
pub async fn run(context: &Context, output: &Output, args: &GcArgs) -> Result<()> {
    let store = store::open(context).await?;
    let default = Settings::default();
    let settings = Settings {
        grace: args.grace.map_or(default.grace, |grace| grace.0),
        fence_after: args.fence_after.0,
        patience: args.patience.0,
        ..default
    };
    let mut collector = Collector::new(store, settings);
    let failed = Error::of_store("collect garbage; nothing is half done");
    if args.dry_run {
        let spinner = output.spinner("reading what names what");
        let explained = Box::pin(collector.explain()).await.map_err(failed)?;
        spinner.finish_and_clear();
        if args.explain {
            let rows: Vec<Kept> = explained.into_iter().map(Kept::from).collect();
            return output.list(&rows);
        }
        return output.one(&WouldCollect::of(&explained));
    }
    let spinner = output.spinner("collecting");
    let report = Box::pin(collector.round()).await.map_err(failed)?;
    spinner.finish_and_clear();
    let waiting = report.is_waiting();
    output.one(&Collected::from(report))?;
    if waiting {
        output.remark(
            "sessions that live do not follow yet; the next `sailctl gc`, or the hub, goes on from here",
        );
    }
    Ok(())
}
