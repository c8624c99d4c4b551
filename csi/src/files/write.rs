//! Write: one header, then data; a small file costs one entry into the kernel's door.

use bytes::Bytes;
use proto::convert;
use proto::files::write_request::Part;
use proto::files::{WriteHeader, WriteRequest, WriteResponse};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::error::Error;
use super::spool::{Order, Spool};
use super::{CHUNK_BYTES, FilesService, IDLE, LiveVolumes};

/// A client that sends single bytes has them written before they pile up.
const MAX_PARTS: usize = 1_024;

/// What came and is not written yet.
#[derive(Debug, Default)]
struct Gathered {
    parts: Vec<Bytes>,
    bytes: usize,
}

impl<V: LiveVolumes> FilesService<V> {
    pub(super) async fn write_file(
        &self,
        mut parts: Streaming<WriteRequest>,
    ) -> Result<WriteResponse, Status> {
        let Some(Part::Header(header)) = next(&mut parts).await? else { return Err(Error::NotAWrite.into()) };
        let order = order(&header)?;
        let volume = self.open(&header.volume_id).await?;
        let mut spool: Option<Spool> = None;
        let mut gathered = Gathered::default();
        // A stream that breaks off is an error here, and the nameless file goes with the spool.
        while let Some(part) = next(&mut parts).await? {
            let Part::Data(data) = part else { return Err(Error::NotAWrite.into()) };
            gathered.bytes += data.len();
            gathered.parts.push(data);
            if gathered.bytes >= CHUNK_BYTES || gathered.parts.len() >= MAX_PARTS {
                let (order, ready) = (order.clone(), std::mem::take(&mut gathered));
                spool = Some(
                    self.run(&volume, move |root| {
                        let mut spool = spool.map_or_else(|| Spool::open(root, &order), Ok)?;
                        append(&mut spool, &ready, &order)?;
                        Ok(spool)
                    })
                    .await?,
                );
            }
        }
        // tonic shows a request that its client has cancelled as one that has ended. Giving way once lets the connection
        // look: it drops this call if the stream was reset, before half a file becomes a whole one.
        tokio::task::yield_now().await;
        let (entry, created) = self
            .run(&volume, move |root| {
                let mut spool = spool.map_or_else(|| Spool::open(root, &order), Ok)?;
                append(&mut spool, &gathered, &order)?;
                spool.finish(root, &order)
            })
            .await?;
        Ok(WriteResponse { entry: Some(entry), created })
    }
}

fn append(spool: &mut Spool, gathered: &Gathered, order: &Order) -> Result<(), Error> {
    gathered.parts.iter().try_for_each(|part| spool.append(part, &order.path))
}

async fn next(parts: &mut Streaming<WriteRequest>) -> Result<Option<Part>, Status> {
    let message =
        timeout(IDLE, parts.message()).await.map_err(|_| Error::Idle { seconds: IDLE.as_secs() })??;
    message.map(|message| message.part.ok_or_else(|| Error::NotAWrite.into())).transpose()
}

fn order(header: &WriteHeader) -> Result<Order, Status> {
    if let Some(mode) = header.mode {
        check_mode(mode)?;
    }
    Ok(Order {
        path: convert::path("path", &header.path)?,
        mode: header.mode,
        owner: (header.uid, header.gid),
        modified: header.modified.map(convert::time),
        if_match: header.if_match.clone(),
        if_absent: header.if_absent,
        parents: header.parents,
        in_place: header.in_place,
        sync: header.sync,
    })
}

/// Refuses bits that are not permissions.
pub(super) fn check_mode(mode: u32) -> Result<(), Error> {
    if mode & !0o7777 == 0 { Ok(()) } else { Err(Error::Mode { mode }) }
}
