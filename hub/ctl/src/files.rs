//! Files of a volume: ls, cat, write.

use std::os::fd::AsFd as _;

use futures::stream;
use orchestrator::{Location, NodeState, Projects, RecordKind, VolumeRef};
use proto::files::files_client::FilesClient;
use proto::files::write_request::Part;
use proto::files::{
    DiffRequest, Entry, ListRequest, ListResponse, ReadRequest, RestoreRequest, WriteHeader, WriteRequest,
    WriteResponse,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::oneshot;
use tonic::codegen::Bytes;
use tonic::transport::Channel;
use types::VolumePath;

use crate::cli::{DiffArgs, WriteArgs};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::target::{FileTarget, VersionTarget};
use crate::timeline;
use crate::view::{Difference, File, RestoredPart, Written};

/// Contents travel in pieces of this size: a quarter of the largest message.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Entries asked for at once.
const PAGE: u32 = 10_000;

/// A volume's files, now or at a point of its timeline, and the node that answers.
#[derive(Debug, Clone)]
pub struct Files {
    /// The volume's id, with the point where one was asked for.
    pub volume: String,
    client: FilesClient<Channel>,
}

impl Files {
    /// Finds a node that answers for what is read: that which holds the volume, or any where it is read from the store.
    ///
    /// # Errors
    /// There is no such volume or point, or no node that answers.
    pub async fn open_for_reading(context: &Context, target: &FileTarget) -> Result<Self> {
        let projects = context.projects()?;
        let asked = Error::asked(format!("look up {}", target.volume));
        let project = projects.get(&target.volume).await.map_err(asked)?;
        if let Some(words) = &target.version {
            let entry = timeline::resolve(&projects, &target.volume, words).await?;
            return any(&projects, format!("{}@{entry}", project.id)).await;
        }
        if project.kind != RecordKind::Volume || project.node.is_none() {
            return any(&projects, project.id.to_string()).await;
        }
        Self::open(context, &target.volume).await
    }

    /// Finds the node that holds a volume now.
    ///
    /// # Errors
    /// There is no such volume, or it is not live on a node.
    pub async fn open(context: &Context, target: &VolumeRef) -> Result<Self> {
        let projects = context.projects()?;
        let volume = projects.get(target).await.map_err(Error::asked(format!("look up {target}")))?.id;
        let location =
            projects.locate(&volume).await.map_err(Error::asked(format!("find the node of {target}")))?;
        let asleep = |message: String| Error::state(message, format!("`sailctl wake {target}`, then again"));
        match location {
            Location::Cached { address, .. } => {
                let channel = proto::client::channel(&address).map_err(|error| {
                    Error::call(format!("reach {target}"), tonic::Status::internal(error.to_string()))
                })?;
                Ok(Self { client: proto::client::files(channel), volume: volume.to_string() })
            }
            Location::Asleep { .. } => Err(asleep(format!("{target} sleeps"))),
            Location::Restoring { .. } => Err(asleep(format!("{target} is on its way to a node"))),
            Location::OwnerUnreachable { node } => {
                let node = node.map_or_else(|| "the node".to_owned(), |node| node.to_string());
                Err(asleep(format!("{node} that holds {target} does not answer")))
            }
        }
    }

    /// Makes a client of its own; connections are shared.
    pub fn client(&self) -> FilesClient<Channel> {
        self.client.clone()
    }

    /// Asks what is at a path.
    ///
    /// # Errors
    /// Other than that there is nothing.
    pub async fn stat(&self, path: &VolumePath) -> Result<Option<Entry>> {
        let request = proto::files::StatRequest {
            volume_id: self.volume.clone(),
            path: path.as_bytes().to_vec().into(),
            with_etag: false,
        };
        match self.client().stat(request).await {
            Ok(entry) => Ok(Some(entry.into_inner())),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(Error::call(format!("look at {}:{path}", self.volume), status)),
        }
    }

    /// Lists a directory page by page and hands each page on.
    ///
    /// # Errors
    /// It is none, the node went away, or `each` fails.
    pub async fn list(
        &self,
        path: &VolumePath,
        recursive: bool,
        mut each: impl FnMut(Vec<Entry>) -> Result<()>,
    ) -> Result<()> {
        let failed = |status| Error::call(format!("list {}:{path}", self.volume), status);
        let mut after = Bytes::new();
        loop {
            let request = ListRequest {
                volume_id: self.volume.clone(),
                path: path.as_bytes().to_vec().into(),
                recursive,
                limit: PAGE,
                after,
            };
            let mut stream = self.client().list(request).await.map_err(failed)?.into_inner();
            after = Bytes::new();
            while let Some(ListResponse { entries, next }) = stream.message().await.map_err(failed)? {
                after = next;
                each(entries)?;
            }
            if after.is_empty() {
                return Ok(());
            }
        }
    }

    /// Writes one file from a reader: the header, then its content in pieces.
    ///
    /// # Errors
    /// The node says no, or the reader fails; then there is no file.
    pub async fn write(
        &self,
        header: WriteHeader,
        reader: impl AsyncRead + Send + Unpin + 'static,
        what: &str,
    ) -> Result<WriteResponse> {
        // The stream owns the reader. Where the call is given up, the file is never half: the stream does not end
        // before the reader does, and where the reader fails it never ends.
        let (report, failure) = oneshot::channel();
        let pieces =
            stream::unfold((Some(header), reader, report), |(header, mut reader, report)| async move {
                if let Some(header) = header {
                    return Some((WriteRequest { part: Some(Part::Header(header)) }, (None, reader, report)));
                }
                let mut piece = Vec::new();
                match (&mut reader).take(CHUNK_BYTES as u64).read_to_end(&mut piece).await {
                    Ok(0) => None,
                    Ok(_) => {
                        Some((WriteRequest { part: Some(Part::Data(piece.into())) }, (None, reader, report)))
                    }
                    Err(error) => {
                        // Nobody waits for it where the call is over already.
                        drop(report.send(error));
                        std::future::pending().await
                    }
                }
            });
        let mut client = self.client();
        tokio::select! {
            answer = client.write(pieces) => {
                answer.map(tonic::Response::into_inner).map_err(|status| Error::call(format!("write {what}"), status))
            }
            Ok(error) = failure => Err(Error::local("read", what, error)),
        }
    }
}

/// A node that is live: what is read from the store is read by any.
async fn any(projects: &Projects, volume: String) -> Result<Files> {
    let nodes = projects.nodes().await.map_err(Error::asked("list the nodes"))?;
    let live = nodes.into_iter().find(|node| node.state == NodeState::Live);
    let live = live.ok_or_else(|| {
        Error::state(format!("no node is live that could read {volume}"), "`sailctl nodes` shows them")
    })?;
    let channel = proto::client::channel(&live.address).map_err(|error| {
        Error::call(format!("reach {}", live.name), tonic::Status::internal(error.to_string()))
    })?;
    Ok(Files { client: proto::client::files(channel), volume })
}

/// Lists what is at a path.
///
/// # Errors
/// There is nothing.
pub async fn list(context: &Context, output: &Output, target: &FileTarget, recursive: bool) -> Result<()> {
    let files = Files::open_for_reading(context, target).await?;
    let Some(entry) = files.stat(&target.path).await? else {
        return Err(Error::call(format!("list {target}"), tonic::Status::not_found("there is nothing")));
    };
    let mut entries = Vec::new();
    if entry.r#type() == proto::files::FileType::Directory {
        files
            .list(&target.path, recursive, |page| {
                entries.extend(page.into_iter().map(File::from));
                Ok(())
            })
            .await?;
    } else {
        entries.push(File::from(entry));
    }
    output.list(&entries)
}

/// Prints a file.
///
/// # Errors
/// There is none, or standard output is closed.
pub async fn cat(context: &Context, output: &Output, target: &FileTarget) -> Result<()> {
    let files = Files::open_for_reading(context, target).await?;
    let failed = |status| Error::call(format!("read {target}"), status);
    let request = ReadRequest {
        volume_id: files.volume.clone(),
        path: target.path.as_bytes().to_vec().into(),
        ..Default::default()
    };
    let mut stream = files.client().read(request).await.map_err(failed)?.into_inner();
    while let Some(piece) = stream.message().await.map_err(failed)? {
        output.bytes(&piece.data)?;
    }
    Ok(())
}

/// Says what is at a path, with its etag.
///
/// # Errors
/// There is nothing.
pub async fn stat(context: &Context, output: &Output, target: &FileTarget) -> Result<()> {
    let files = Files::open_for_reading(context, target).await?;
    let request = proto::files::StatRequest {
        volume_id: files.volume.clone(),
        path: target.path.as_bytes().to_vec().into(),
        with_etag: true,
    };
    let entry = files.client().stat(request).await;
    let entry = entry.map_err(|status| Error::call(format!("look at {target}"), status))?.into_inner();
    output.one(&File::from(entry))
}

/// Shows a directory and all below it as a tree.
///
/// # Errors
/// There is no such directory.
pub async fn tree(context: &Context, output: &Output, target: &FileTarget) -> Result<()> {
    let files = Files::open_for_reading(context, target).await?;
    let mut entries = Vec::new();
    files
        .list(&target.path, true, |page| {
            entries.extend(page.into_iter().map(File::from));
            Ok(())
        })
        .await?;
    output.tree(&target.to_string(), target.path.segments().count(), &entries)
}

/// Tells what differs between two points in time, of one volume or of two.
///
/// # Errors
/// There is no such point.
pub async fn diff(context: &Context, output: &Output, args: &DiffArgs) -> Result<()> {
    let projects = context.projects()?;
    let point = async |target: &VersionTarget| -> Result<String> {
        let asked = Error::asked(format!("look up {}", target.volume));
        let id = projects.get(&target.volume).await.map_err(asked)?.id;
        Ok(match &target.version {
            Some(words) => format!("{id}@{}", timeline::resolve(&projects, &target.volume, words).await?),
            None => id.to_string(),
        })
    };
    let (earlier, later) = (point(&args.earlier).await?, point(&args.later).await?);
    let files = any(&projects, later.clone()).await?;
    let what = format!("compare {earlier} with {later}");
    let failed = |status| Error::call(what.clone(), status);
    let request = DiffRequest { earlier, later, limit: args.limit };
    let mut stream = files.client().diff(request).await.map_err(failed)?.into_inner();
    let (mut differences, mut cut) = (Vec::new(), false);
    while let Some(message) = stream.message().await.map_err(failed)? {
        cut = message.cut;
        differences.extend(message.differences.into_iter().map(Difference::from));
    }
    output.list(&differences)?;
    if cut {
        output.remark(&format!("only the first {} are shown; --limit shows more", differences.len()));
    }
    Ok(())
}

/// Makes a file or directory of a live volume what it was.
///
/// # Errors
/// It was not there, or the volume is not live.
pub async fn restore(
    context: &Context,
    output: &Output,
    target: &FileTarget,
    words: &str,
    to: Option<&VolumePath>,
) -> Result<()> {
    let projects = context.projects()?;
    let entry = timeline::resolve(&projects, &target.volume, words).await?;
    let files = Files::open(context, &target.volume).await?;
    let spinner = output.spinner(&format!("restoring {target}"));
    let request = RestoreRequest {
        volume_id: files.volume.clone(),
        from: format!("{}@{entry}", files.volume),
        path: target.path.as_bytes().to_vec().into(),
        to: to.map_or_else(Vec::new, |to| to.as_bytes().to_vec()).into(),
    };
    let answer = files.client().restore(request).await;
    let answer = answer.map_err(|status| Error::call(format!("restore {target}"), status))?.into_inner();
    spinner.finish_and_clear();
    output.one(&RestoredPart {
        id: files.volume,
        file: File::from(answer.entry.unwrap_or_default()),
        replaced: answer.replaced,
        files: answer.files,
        bytes: answer.bytes,
    })
}

/// Refuses to write to what was.
///
/// # Errors
/// A version is named.
pub fn refuse_past(target: &FileTarget) -> Result<()> {
    match &target.version {
        None => Ok(()),
        Some(_) => Err(Error::usage(
            format!("{target} is what was, which nothing can be written to"),
            format!("write to {}:{}, or fork that version", target.volume, target.path),
        )),
    }
}

/// Writes standard input to a file.
///
/// # Errors
/// The node says no, or standard input fails.
pub async fn write(context: &Context, output: &Output, args: WriteArgs) -> Result<()> {
    refuse_past(&args.file)?;
    let files = Files::open(context, &args.file.volume).await?;
    let header = WriteHeader {
        volume_id: files.volume.clone(),
        path: args.file.path.as_bytes().to_vec().into(),
        mode: args.mode,
        if_match: args.if_match.unwrap_or_default(),
        if_absent: args.if_absent,
        parents: args.parents,
        sync: true,
        ..Default::default()
    };
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let stdin = stdin.map_err(|error| Error::local("read", "standard input", error))?;
    let stdin = tokio::fs::File::from_std(stdin.into());
    let answer = files.write(header, stdin, &args.file.to_string()).await?;
    let file = File::from(answer.entry.unwrap_or_default());
    output.one(&Written { id: files.volume, file, created: answer.created })
}
