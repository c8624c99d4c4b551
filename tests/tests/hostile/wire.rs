//! Calls of frames: the bytes of a request go out as they are, those of the answers come back as they are.

use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Answers that go on are read up to here.
const MOST_MESSAGES: usize = 64;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) took: Duration,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Frames;

impl Codec for Frames {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Frames {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, frame: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&frame);
        Ok(())
    }
}

impl Decoder for Frames {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut frame = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut frame);
        Ok(Some(frame))
    }
}

/// Calls `path` with these frames and a deadline, and waits for the answer a little longer than that.
pub(crate) async fn call(channel: Channel, path: &str, frames: Vec<Vec<u8>>, deadline: Duration) -> Answer {
    let started = Instant::now();
    let mut bytes = Vec::new();
    let called = tokio::time::timeout(deadline * 2, talk(channel, path, frames, deadline, &mut bytes)).await;
    let status = match called {
        Ok(Ok(())) => Status::ok(""),
        Ok(Err(status)) => status,
        Err(_) => Status::unknown("no answer at all"),
    };
    Answer { code: status.code(), message: status.message().to_owned(), took: started.elapsed(), bytes }
}

async fn talk(
    channel: Channel,
    path: &str,
    frames: Vec<Vec<u8>>,
    deadline: Duration,
    bytes: &mut Vec<u8>,
) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unknown(format!("the daemon cannot be dialed: {error}")))?;
    let mut request = Request::new(tokio_stream::iter(frames));
    request.set_timeout(deadline);
    let path = path.parse().map_err(|_| Status::unknown("a path"))?;
    let mut answers = grpc.streaming(request, path, Frames).await?.into_inner();
    for _ in 0..MOST_MESSAGES {
        match answers.message().await? {
            Some(frame) => bytes.extend(frame),
            None => return Ok(()),
        }
    }
    Ok(())
}
