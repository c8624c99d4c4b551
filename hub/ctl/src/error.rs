//! What went wrong, which exit code it is, and what to do about it.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use types::{Classify, Kind};

use crate::target::InvalidTarget;

/// The outcome of a command.
pub type Result<T> = std::result::Result<T, Error>;

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request makes no sense as written.
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    /// The request makes no sense in this combination.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        remedy: String,
    },
    /// There is no such thing, or the present state does not allow what was asked.
    #[error("{message}")]
    State {
        /// What is the case.
        message: String,
        /// What to do.
        remedy: String,
    },
    /// A server said no, or could not be reached.
    #[error("cannot {action}: {}", status.message())]
    Call {
        /// What was asked, as in "cannot ...".
        action: String,
        /// The answer.
        status: Box<tonic::Status>,
    },
    /// Something on this machine.
    #[error("cannot {action} {what}: {source}")]
    Local {
        /// A verb.
        action: &'static str,
        /// A path or a thing.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The store, or what is in it.
    #[error("cannot {action}: {message}")]
    Store {
        /// What was asked, as in "cannot ...".
        action: String,
        /// The error and its causes.
        message: String,
        /// What it asks of the caller.
        kind: Kind,
    },
    /// The work was done and found something wrong.
    #[error("{message}")]
    Found {
        /// What.
        message: String,
        /// What to do.
        remedy: String,
    },
    /// A daemon did not come up.
    #[error("{daemon} did not start: {message}")]
    Daemon {
        /// Which one.
        daemon: String,
        /// Its last words.
        message: String,
        /// What to do.
        remedy: String,
    },
    /// It took too long.
    #[error("not done within {} s", limit.as_secs_f64())]
    Timeout {
        /// How long it was given.
        limit: Duration,
    },
}

impl Error {
    /// Makes the error of a call.
    pub fn call(action: impl Into<String>, status: tonic::Status) -> Self {
        Self::Call { action: action.into(), status: Box::new(status) }
    }

    /// Makes the error of a question to the hub.
    pub fn asked(action: impl Into<String>) -> impl FnOnce(orchestrator::Error) -> Self {
        let action = action.into();
        move |error| match error {
            orchestrator::Error::Hub { status, .. } => Self::call(action, status),
            orchestrator::Error::Address { .. } => {
                Self::usage(error.to_string(), "correct the address in the context file")
            }
            orchestrator::Error::Answer(_) => {
                Self::call(action, tonic::Status::internal(proto::status::message(&error)))
            }
        }
    }

    /// Makes the error of something on this machine.
    pub fn local(action: &'static str, what: impl Into<String>, source: io::Error) -> Self {
        Self::Local { action, what: what.into(), source }
    }

    /// Makes the error of a path on this machine.
    pub fn path(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::local(action, path.display().to_string(), source)
    }

    /// Makes the error of the store.
    pub fn store(action: impl Into<String>, error: &(impl Classify + std::error::Error)) -> Self {
        Self::Store { action: action.into(), message: proto::status::message(error), kind: error.kind() }
    }

    /// Makes the errors of one piece of work on the store.
    pub fn of_store(action: impl Into<String>) -> impl Fn(cas::Error) -> Self {
        let action = action.into();
        move |error| Self::store(action.clone(), &error)
    }

    /// Makes an error that says what to do.
    pub fn state(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::State { message: message.into(), remedy: remedy.into() }
    }

    /// Makes an error that says what to write instead.
    pub fn usage(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), remedy: remedy.into() }
    }

    /// The exit code: 2 for a wrong request, 3 for a state that does not allow it, 124 for too long, else 1.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.kind() {
            Kind::InvalidArgument | Kind::OutOfRange => 2,
            Kind::NotFound | Kind::AlreadyExists | Kind::FailedPrecondition => 3,
            Kind::DeadlineExceeded => 124,
            Kind::Aborted
            | Kind::ResourceExhausted
            | Kind::Unavailable
            | Kind::Cancelled
            | Kind::PermissionDenied
            | Kind::DataLoss
            | Kind::Unimplemented
            | Kind::Internal => 1,
        })
    }

    /// What to do about it, in one line.
    pub fn remedy(&self) -> String {
        match self {
            Self::Usage { remedy, .. }
            | Self::State { remedy, .. }
            | Self::Found { remedy, .. }
            | Self::Daemon { remedy, .. } => remedy.clone(),
            Self::Target(_) => "`sailctl ls` shows the volumes; a file is written VOL:PATH".to_owned(),
            Self::Local { source, .. } => local_remedy(source).to_owned(),
            Self::Timeout { .. } => {
                "ask again (what was begun goes on and is joined), or give --timeout more".to_owned()
            }
            Self::Call { .. } | Self::Store { .. } => remedy(self.kind()).to_owned(),
        }
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Target(_) | Self::Usage { .. } => Kind::InvalidArgument,
            Self::State { .. } => Kind::FailedPrecondition,
            Self::Call { status, .. } => proto::status::kind(status),
            Self::Local { source, .. } => {
                let kind = source.kind();
                let there = kind == io::ErrorKind::NotFound || kind == io::ErrorKind::AlreadyExists;
                if there { Kind::NotFound } else { Kind::Internal }
            }
            Self::Store { kind, .. } => *kind,
            Self::Found { .. } => Kind::DataLoss,
            Self::Daemon { .. } => Kind::Unavailable,
            Self::Timeout { .. } => Kind::DeadlineExceeded,
        }
    }
}

fn local_remedy(source: &io::Error) -> &'static str {
    const REMEDIES: [(io::ErrorKind, &str); 5] = [
        (io::ErrorKind::NotFound, "check the path"),
        (io::ErrorKind::PermissionDenied, "check the permissions, or run it as root"),
        (io::ErrorKind::StorageFull, "make room there"),
        (io::ErrorKind::QuotaExceeded, "make room there"),
        (io::ErrorKind::ReadOnlyFilesystem, "choose a place that can be written"),
    ];
    let known = REMEDIES.iter().find(|(kind, _)| *kind == source.kind());
    known.map_or("see the reason above", |(_, remedy)| remedy)
}

fn remedy(kind: Kind) -> &'static str {
    match kind {
        Kind::InvalidArgument | Kind::OutOfRange => {
            "correct the request; `sailctl help COMMAND` shows its form"
        }
        Kind::NotFound => {
            "`sailctl ls` shows the volumes, `sailctl log VOL` their timeline, `sailctl ls VOL:DIR` their files"
        }
        Kind::AlreadyExists => "choose another name, or use the one that is there",
        Kind::FailedPrecondition => "`sailctl describe VOL` and `sailctl nodes` show the present state",
        Kind::Aborted => "something else works on it: try again in a moment",
        Kind::ResourceExhausted => {
            "free something (`sailctl ls`, `sailctl rm`), or give more room, and try again"
        }
        Kind::Unavailable => "`sailctl doctor` shows what cannot be reached; then try again",
        Kind::DeadlineExceeded => "ask again: what was begun goes on and is joined; or give --timeout more",
        Kind::Cancelled => "try again",
        Kind::PermissionDenied => "check the credentials and the rights on the store or the file",
        Kind::DataLoss => {
            "do not delete anything; `sailctl verify VOL` shows what is damaged, `sailctl log VOL` what came before"
        }
        Kind::Unimplemented => "the server is older than this sailctl: update it",
        Kind::Internal => "this is a bug: report it with the daemons' logs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_says_what_to_do() {
        let status = |code| Error::call("fork v", tonic::Status::new(code, "no"));
        for code in 1..=16 {
            let error = status(tonic::Code::from(code));
            assert!(!error.remedy().is_empty(), "{error}");
            assert_eq!(error.to_string(), "cannot fork v: no");
        }
    }

    #[test]
    fn exit_codes_tell_the_request_from_the_state_and_from_failure() {
        let code = |code| format!("{:?}", Error::call("x", tonic::Status::new(code, "")).exit_code());
        let number = |number: u8| format!("{:?}", ExitCode::from(number));
        for (given, expected) in [
            (tonic::Code::InvalidArgument, 2),
            (tonic::Code::OutOfRange, 2),
            (tonic::Code::NotFound, 3),
            (tonic::Code::AlreadyExists, 3),
            (tonic::Code::FailedPrecondition, 3),
            (tonic::Code::DeadlineExceeded, 124),
            (tonic::Code::Unavailable, 1),
            (tonic::Code::Internal, 1),
            (tonic::Code::DataLoss, 1),
        ] {
            assert_eq!(code(given), number(expected), "{given:?}");
        }
        assert_eq!(
            format!("{:?}", Error::Timeout { limit: Duration::from_secs(1) }.exit_code()),
            number(124)
        );
    }
}
