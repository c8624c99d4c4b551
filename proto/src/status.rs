//! The only mapping between what an error asks of its caller and a gRPC code, both ways.

use tonic::{Code, Status};
use types::{Classify, Kind};

/// Returns the gRPC code for a kind.
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Aborted => Code::Aborted,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Cancelled => Code::Cancelled,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::DataLoss => Code::DataLoss,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}

/// Returns what a status asks of its caller. One that this process's transport made up because the peer's answer did not
/// come, whatever code it chose, says that the peer is away, or that the caller's own time was over.
pub fn kind(status: &Status) -> Kind {
    let cause = std::error::Error::source(status);
    if std::iter::successors(cause, |error| error.source()).any(|error| error.is::<tonic::TimeoutExpired>()) {
        return Kind::DeadlineExceeded;
    }
    let made_here = cause.is_some() && matches!(status.code(), Code::Internal | Code::Cancelled);
    if made_here { Kind::Unavailable } else { kind_of_code(status.code()) }
}

fn kind_of_code(code: Code) -> Kind {
    match code {
        Code::InvalidArgument => Kind::InvalidArgument,
        Code::OutOfRange => Kind::OutOfRange,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::AlreadyExists,
        Code::FailedPrecondition => Kind::FailedPrecondition,
        Code::Aborted => Kind::Aborted,
        Code::ResourceExhausted => Kind::ResourceExhausted,
        Code::Unavailable => Kind::Unavailable,
        Code::DeadlineExceeded => Kind::DeadlineExceeded,
        Code::Cancelled => Kind::Cancelled,
        Code::PermissionDenied | Code::Unauthenticated => Kind::PermissionDenied,
        Code::DataLoss => Kind::DataLoss,
        Code::Unimplemented => Kind::Unimplemented,
        // No server of ours says Unknown: it is the transport's word for a stream that ended without a status.
        Code::Unknown => Kind::Unavailable,
        Code::Ok | Code::Internal => Kind::Internal,
    }
}

/// Makes the status for an error: its kind's code, and its message followed by those of its causes.
pub fn status(error: &(impl Classify + std::error::Error)) -> Status {
    Status::new(code(error.kind()), message(error))
}

/// Returns an error's message and those of its causes, joined by `: `, each said once.
pub fn message(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_survives_the_wire() {
        for sent in [
            Kind::InvalidArgument,
            Kind::OutOfRange,
            Kind::NotFound,
            Kind::AlreadyExists,
            Kind::FailedPrecondition,
            Kind::Aborted,
            Kind::ResourceExhausted,
            Kind::Unavailable,
            Kind::DeadlineExceeded,
            Kind::Cancelled,
            Kind::PermissionDenied,
            Kind::DataLoss,
            Kind::Unimplemented,
            Kind::Internal,
        ] {
            assert_eq!(kind(&Status::new(code(sent), "")), sent);
        }
    }

    #[test]
    fn an_answer_that_did_not_come_may_come_yet() {
        let broken = || -> Box<dyn std::error::Error + Send + Sync> { "transport error".into() };
        assert_eq!(kind(&Status::from_error(broken())), Kind::Unavailable);
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(kind(&Status::from_error(Box::new(reset))), Kind::Unavailable);
        let mut made_here = Status::internal("h2 protocol error");
        assert_eq!(kind(&made_here), Kind::Internal, "a server said so");
        made_here.set_source(broken().into());
        assert_eq!(kind(&made_here), Kind::Unavailable);
    }
}
