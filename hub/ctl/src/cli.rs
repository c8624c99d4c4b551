//! The command line: names, arguments and their help.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use orchestrator::{Quota, VolumeRef};
use types::{ByteSize, Domain, NodeName, RequestId, ResourceName, VolumePath};

use crate::limit::Limit;
use crate::target::{FileTarget, VersionTarget};

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 the request is wrong (usage, malformed id or path); \
3 not found, or the present state does not allow it; 124 timed out.";

/// See, use and repair workspace storage.
#[derive(Debug, Parser)]
#[command(name = "sailctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// The context file that `dev up` wrote [default: ~/.config/sailctl/context.json].
    #[arg(long, global = true, env = "SAILCTL_CONTEXT", value_name = "FILE")]
    pub context: Option<PathBuf>,
    /// How to print what was asked for.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Gives up after this long: 90s, 5m, 1h [default: 10m; 6h where data is copied].
    #[arg(long, global = true, value_name = "DURATION")]
    pub timeout: Option<Limit>,
    /// Prints no progress and no remarks.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Logs what is done to standard error.
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Forms of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: one document, whose fields are a contract.
    Json,
}

/// Everything that can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a cluster on this machine with the real daemons.
    #[command(subcommand)]
    Dev(DevCommand),
    /// Lists the nodes.
    Nodes,
    /// Makes a volume: empty, or from a template.
    Create(CreateArgs),
    /// Lists volumes, or the files at VOL:PATH.
    Ls(LsArgs),
    /// Shows all that is known of a volume.
    Describe(VolumeArgs),
    /// Makes copy-on-write copies of a volume.
    Fork(ForkArgs),
    /// Keeps the present state on the timeline, by name.
    Snapshot(SnapshotArgs),
    /// Shows a volume's timeline, newest first.
    Log(VolumeArgs),
    /// Takes a volume back to an earlier state, or a file or directory of it alone. Of a whole volume the present state is
    /// kept as a branch.
    Restore(RestoreArgs),
    /// Names points of a timeline, which are then never thinned.
    #[command(subcommand)]
    Branch(BranchCommand),
    /// Keeps points of a timeline for as long as somebody needs them.
    #[command(subcommand)]
    Pin(PinCommand),
    /// Publishes states that never change, and makes volumes from them.
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Makes the present state durable in the store.
    Sync(VolumeArgs),
    /// Moves a volume to another node.
    Move(MoveArgs),
    /// Puts a volume to sleep: it keeps no node and costs only its bytes in the store.
    Hibernate(VolumeArgs),
    /// Makes a volume usable on a node, from the store or from a dead node's last sync.
    Wake(WakeArgs),
    /// Deletes volumes.
    Rm(RmArgs),
    /// Makes and lists templates.
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Copies files and directories into a volume or out of one.
    Cp(CpArgs),
    /// Prints a file.
    Cat(CatArgs),
    /// Says what is at a path, with its etag.
    Stat(CatArgs),
    /// Shows a directory and all below it.
    Tree(CatArgs),
    /// Tells which paths differ between two points in time.
    Diff(DiffArgs),
    /// Writes a file from standard input: whole or not at all.
    Write(WriteArgs),
    /// Reads a whole version from the store and checks every byte against its hash.
    Verify(VerifyArgs),
    /// Collects garbage in the store now: what nothing names any more is deleted, and sparse packs are rewritten.
    ///
    /// Works straight on the store, beside running nodes and hubs. Waits for every live session to follow.
    Gc(GcArgs),
    /// Shows what the nodes' own reading of the store found damaged; with --now reads everything from here.
    Scrub(ScrubArgs),
    /// Restores what is whole of a damaged version into a directory, and lists what is lost.
    Rescue(RescueArgs),
    /// Finds every version in the store from its packs alone, where records are lost; with VERSION and DIR restores what is
    /// whole of one.
    Reindex(ReindexArgs),
    /// Puts what is damaged of a volume in the store back from the snapshots of its node.
    Repair(VolumeArgs),
    /// Checks hub, nodes, kernels and store, and says what to do about what is wrong.
    Doctor,
}

impl Command {
    /// How long this may take where nothing was said.
    pub fn default_timeout(&self) -> Duration {
        const DATA: Duration = Duration::from_secs(6 * 3600);
        const OTHER: Duration = Duration::from_secs(600);
        match self {
            Self::Cp(_)
            | Self::Restore(_)
            | Self::Bundle(_)
            | Self::Tree(_)
            | Self::Gc(_)
            | Self::Verify(_)
            | Self::Scrub(_)
            | Self::Rescue(_)
            | Self::Reindex(_)
            | Self::Repair(_)
            | Self::Template(_)
            | Self::Cat(_)
            | Self::Write(_) => DATA,
            Self::Dev(_)
            | Self::Nodes
            | Self::Create(_)
            | Self::Ls(_)
            | Self::Describe(_)
            | Self::Fork(_)
            | Self::Snapshot(_)
            | Self::Log(_)
            | Self::Branch(_)
            | Self::Pin(_)
            | Self::Stat(_)
            | Self::Diff(_)
            | Self::Sync(_)
            | Self::Move(_)
            | Self::Hibernate(_)
            | Self::Wake(_)
            | Self::Rm(_)
            | Self::Doctor => OTHER,
        }
    }
}

/// A cluster on this machine.
#[derive(Debug, Subcommand)]
pub enum DevCommand {
    /// Starts a hub and nodes with loop pools, and waits until all are live. Needs root.
    Up(UpArgs),
    /// Stops the cluster. Its data stays; `dev up` with the same directory goes on with it.
    Down(DownArgs),
    /// Ends one daemon (a node's name, or `hub`) with SIGKILL, as a crash would.
    Kill(DaemonArgs),
    /// Starts a daemon that was killed, and waits until it is live.
    Start(DaemonArgs),
    /// Shows the daemons and where their logs are.
    Status(DirArgs),
}

/// Where a cluster lives.
#[derive(Debug, Args)]
pub struct DirArgs {
    /// Pools, store, logs and context file go here [default: ~/.local/share/opensail-dev].
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// Arguments of `dev up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Where the cluster lives.
    #[command(flatten)]
    pub place: DirArgs,
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: u16,
    /// dir:///abs/path or s3://bucket/prefix?endpoint=...&path_style=true [default: a directory inside DIR].
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// Size of each node's pool (a sparse file).
    #[arg(long, default_value = "8Gi")]
    pub pool_size: String,
    /// How often a node makes changes durable by itself.
    #[arg(long, default_value = "60s")]
    pub sync_interval: Limit,
    /// After how long without a sign a node counts as dead.
    #[arg(long, default_value = "6s")]
    pub dead: Limit,
    /// `off` where the kernel has no simple quotas (before 6.7).
    #[arg(long, default_value = "on", value_parser = ["on", "off"])]
    pub quota: String,
}

/// Arguments of `dev down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// Where the cluster lives.
    #[command(flatten)]
    pub place: DirArgs,
    /// Deletes pools, logs and the directory store too. A store given by `--store` is never touched.
    #[arg(long)]
    pub purge: bool,
}

/// Arguments of `dev kill` and `dev start`.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// A node's name, or `hub`.
    pub daemon: String,
    /// Where the cluster lives.
    #[command(flatten)]
    pub place: DirArgs,
}

/// One volume.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// The volume's id, or its name.
    pub volume: VolumeRef,
}

/// Arguments of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// A name for people.
    pub name: Option<ResourceName>,
    /// Begins as a copy of this template.
    #[arg(long, visible_alias = "from")]
    pub template: Option<ResourceName>,
    /// Makes it on this node, or fails.
    #[arg(long)]
    pub node: Option<NodeName>,
    /// The most it may hold: 10Gi, or `unlimited` [default: the hub's, 5Gi].
    #[arg(long, value_parser = quota)]
    pub quota: Option<Quota>,
    /// The same request id again is answered with the same volume.
    #[arg(long)]
    pub request_id: Option<RequestId>,
    /// Dedup domain.
    #[arg(long)]
    pub domain: Option<Domain>,
    /// Something to remember with the volume: KEY=VALUE, as often as needed.
    #[arg(long = "attribute", value_parser = key_value)]
    pub attributes: Vec<(String, String)>,
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// VOL:PATH or VOL@VERSION:PATH; without it, the volumes are listed.
    pub what: Option<FileTarget>,
    /// Only the volumes on this node.
    #[arg(long, conflicts_with = "what")]
    pub node: Option<NodeName>,
    /// Templates and other sealed records too.
    #[arg(short, long, conflicts_with = "what")]
    pub all: bool,
    /// Descends into directories.
    #[arg(short, long, requires = "what")]
    pub recursive: bool,
}

/// Arguments of `fork`.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// The volume to copy.
    pub volume: VolumeRef,
    /// A name for people; with several forks, NAME-1, NAME-2, ...
    pub name: Option<ResourceName>,
    /// How many.
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: u32,
    /// An entry or version of its timeline (or its first digits) [default: the present state].
    #[arg(long)]
    pub at: Option<String>,
    /// Where to put it if possible [default: beside its source].
    #[arg(long)]
    pub node: Option<NodeName>,
    /// The most each may hold [default: as its source].
    #[arg(long, value_parser = quota)]
    pub quota: Option<Quota>,
}

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// The volume.
    pub volume: VolumeRef,
    /// What the timeline says of it.
    #[arg(short, long, default_value = "")]
    pub label: String,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// VOL@VERSION, or VOL@VERSION:PATH for a file or directory alone.
    pub what: FileTarget,
    /// Instead of @VERSION: an entry or version that `log` shows, or its first digits.
    pub version: Option<String>,
    /// Where in the volume the file or directory goes [default: where it was].
    #[arg(long, value_name = "PATH", value_parser = volume_path)]
    pub to: Option<VolumePath>,
}

/// Branches.
#[derive(Debug, Subcommand)]
pub enum BranchCommand {
    /// Lists the branches of a volume.
    Ls(VolumeArgs),
    /// Makes a branch.
    Set(BranchArgs),
    /// Removes a branch; its entry is thinned like any other from then on.
    Rm(NameArgs),
}

/// Arguments of `branch set`.
#[derive(Debug, Args)]
pub struct BranchArgs {
    /// VOL@VERSION; VOL is its durable head.
    pub at: VersionTarget,
    /// The branch's name.
    pub name: String,
    /// Moves a branch that names another entry.
    #[arg(long = "move")]
    pub may_move: bool,
}

/// A branch or pin of a volume.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// The volume.
    pub volume: VolumeRef,
    /// The branch, or who pins.
    pub name: String,
}

/// Pins.
#[derive(Debug, Subcommand)]
pub enum PinCommand {
    /// Lists the pins of a volume.
    Ls(VolumeArgs),
    /// Pins an entry in somebody's name, in place of the one that this name pinned before.
    Set(PinArgs),
    /// Lets go of what a name pinned.
    Rm(NameArgs),
}

/// Arguments of `pin set`.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// VOL@VERSION; VOL is its durable head.
    pub at: VersionTarget,
    /// Who needs it.
    pub name: String,
}

/// Bundles.
#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Publishes a state of a volume. The same state is the same bundle.
    Publish(PublishArgs),
    /// Lists the bundles.
    Ls,
    /// Makes a volume from a bundle.
    Install(InstallArgs),
    /// Deletes a bundle from which nothing that is there was made.
    Rm(BundleArgs),
}

/// Arguments of `bundle publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// VOL@VERSION; VOL is its present state.
    pub what: VersionTarget,
    /// A name to find it by, which from then on means this bundle.
    #[arg(long)]
    pub name: Option<ResourceName>,
}

/// Arguments of `bundle install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// The bundle's id, or its name.
    pub bundle: VolumeRef,
    /// A name for the new volume.
    pub name: Option<ResourceName>,
    /// Where to put it if possible.
    #[arg(long)]
    pub node: Option<NodeName>,
    /// The most it may hold [default: as what was published].
    #[arg(long, value_parser = quota)]
    pub quota: Option<Quota>,
    /// The same request id again is answered with the same volume.
    #[arg(long)]
    pub request_id: Option<RequestId>,
}

/// One bundle or template.
#[derive(Debug, Args)]
pub struct BundleArgs {
    /// Its id, or its name.
    pub name: VolumeRef,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// VOL@VERSION; VOL is its durable head.
    pub earlier: VersionTarget,
    /// VOL@VERSION of the same volume or another; VOL is its durable head.
    pub later: VersionTarget,
    /// At most this many paths.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}

/// Arguments of `move`.
#[derive(Debug, Args)]
pub struct MoveArgs {
    /// The volume.
    pub volume: VolumeRef,
    /// The node that shall hold it.
    #[arg(long, value_name = "NODE")]
    pub to: NodeName,
}

/// Arguments of `wake`.
#[derive(Debug, Args)]
pub struct WakeArgs {
    /// The volume.
    pub volume: VolumeRef,
    /// Only there; may be given several times [default: any node].
    #[arg(long)]
    pub node: Vec<NodeName>,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The volumes.
    #[arg(required = true)]
    pub volumes: Vec<VolumeRef>,
}

/// Templates.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Makes a template from a directory of this machine.
    Create(TemplateArgs),
    /// Publishes a state of a volume as a template.
    Publish(TemplatePublishArgs),
    /// Lists the templates.
    Ls,
    /// Deletes a template from which nothing that is there was made.
    Rm(BundleArgs),
}

/// Arguments of `template publish`.
#[derive(Debug, Args)]
pub struct TemplatePublishArgs {
    /// VOL@VERSION; VOL is its present state.
    pub what: VersionTarget,
    /// The template's name, which from then on means this state.
    pub name: ResourceName,
}

/// Arguments of `template create`.
#[derive(Debug, Args)]
pub struct TemplateArgs {
    /// The template's name. One that exists is pointed to the new tree; volumes made from it stay as they are.
    pub name: ResourceName,
    /// The directory whose content it gets.
    #[arg(long)]
    pub from: PathBuf,
    /// Dedup domain: volumes made from it are in the same one.
    #[arg(long)]
    pub domain: Option<Domain>,
}

/// Arguments of `cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// Sources, then the destination. One side is VOL:PATH. `DIR/.` means what is in DIR.
    #[arg(required = true, num_args = 2.., value_name = "SRC... DST")]
    pub paths: Vec<OsString>,
    /// Taken as said: directories are always copied whole.
    #[arg(short, long, hide = true)]
    pub recursive: bool,
}

/// Arguments of `cat`, `stat` and `tree`.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// VOL:PATH, or VOL@VERSION:PATH
    pub file: FileTarget,
}

/// Arguments of `write`.
#[derive(Debug, Args)]
pub struct WriteArgs {
    /// VOL:PATH
    pub file: FileTarget,
    /// Permission bits of a new file, octal.
    #[arg(long, value_parser = octal)]
    pub mode: Option<u32>,
    /// Fails if there is something at the path.
    #[arg(long)]
    pub if_absent: bool,
    /// Fails if the file's etag is another one.
    #[arg(long, value_name = "ETAG", conflicts_with = "if_absent")]
    pub if_match: Option<String>,
    /// Makes missing directories.
    #[arg(short, long)]
    pub parents: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// VOL, or VOL@VERSION (an entry or version that `log` shows, or its first digits).
    pub volume: VersionTarget,
}

/// Arguments of `gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Changes nothing: says how much would stay, be rewritten and go.
    #[arg(long)]
    pub dry_run: bool,
    /// Says of each object why it stays or goes.
    #[arg(long, requires = "dry_run")]
    pub explain: bool,
    /// Volumes that were deleted longer ago than this are given up. As the hub's --gc-grace [default: 168h].
    #[arg(long, value_name = "DURATION")]
    pub grace: Option<Limit>,
    /// A session that does not follow is fenced when it gave no sign for this long.
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub fence_after: Limit,
    /// Gives up waiting for sessions after this long; the next collection goes on from there.
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub patience: Limit,
}

/// Arguments of `scrub`.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// Reads and proves every object of the store now.
    #[arg(long)]
    pub now: bool,
    /// The most bytes a second that are read.
    #[arg(long, value_name = "SIZE", requires = "now")]
    pub rate: Option<ByteSize>,
}

/// Arguments of `rescue`.
#[derive(Debug, Args)]
pub struct RescueArgs {
    /// VOL, or VOL@VERSION (an entry or version that `log` shows, or its first digits).
    pub volume: VersionTarget,
    /// Where it goes: an empty directory, or one that is made.
    pub directory: PathBuf,
}

/// Arguments of `reindex`.
#[derive(Debug, Args)]
pub struct ReindexArgs {
    /// A version that was found, or its first digits.
    #[arg(requires = "directory")]
    pub version: Option<String>,
    /// Where it goes: an empty directory, or one that is made.
    pub directory: Option<PathBuf>,
}

fn quota(text: &str) -> Result<Quota, String> {
    if text == "unlimited" {
        return Ok(Quota::Unlimited);
    }
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("a volume that holds nothing is of no use; `unlimited` is a word".to_owned()),
        Ok(bytes) => Ok(Quota::Bytes(bytes)),
        Err(error) => Err(error.to_string()),
    }
}

fn volume_path(text: &str) -> Result<VolumePath, String> {
    VolumePath::parse(text).map_err(|error| error.to_string())
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("write permission bits in octal, as 0644".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn unlimited_is_only_given_when_asked_for_by_word() {
        assert_eq!(quota("unlimited").unwrap(), Quota::Unlimited);
        assert_eq!(quota("1Gi").unwrap(), Quota::Bytes(ByteSize(1 << 30)));
        assert!(quota("0").is_err());
    }
}
