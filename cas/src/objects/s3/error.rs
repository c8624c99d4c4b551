//! What an answer of an S3 server means. The only place that knows its status codes.

use std::error::Error;
use std::fmt;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::objects::probe::NO_CONDITIONS;
use crate::objects::url::{S3Url, StoreUrl};
use crate::objects::{Key, ObjectError, Source};

/// A call, for messages.
pub(super) struct Call<'a> {
    pub(super) store: &'a S3Url,
    pub(super) verb: &'static str,
    /// The key, if the call has one.
    pub(super) key: Option<&'a Key>,
    /// The key or prefix.
    pub(super) target: &'a str,
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} in {}", self.verb, self.target, StoreUrl::S3(self.store.clone()))
    }
}

/// What is known of a failed call, taken out of the SDK's types.
struct Failure {
    status: Option<u16>,
    code: String,
    /// The request was never made: the settings do not allow it.
    unsent: bool,
    source: Source,
}

impl Call<'_> {
    pub(super) fn failed<E>(&self, error: SdkError<E>) -> ObjectError
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        // A body that could not be parsed after a success tells nothing of the outcome.
        let answered = matches!(error, SdkError::ServiceError(_));
        let failure = Failure {
            status: error.raw_response().filter(|_| answered).map(|response| response.status().as_u16()),
            code: error.code().unwrap_or_default().to_owned(),
            unsent: matches!(error, SdkError::ConstructionFailure(_)),
            source: error.into(),
        };
        self.sort(failure)
    }

    fn sort(&self, failure: Failure) -> ObjectError {
        let Failure { status, code, unsent, source } = failure;
        let what = if code.is_empty() { self.to_string() } else { format!("{self}: {code}") };
        // Names that servers use with various status codes.
        match code.as_str() {
            "NoSuchBucket" => {
                let what = format!("{self}: there is no such bucket; make it first");
                return ObjectError::Misconfigured { what, source };
            }
            "XMinioStorageFull" | "InsufficientStorage" | "QuotaExceeded" => {
                return ObjectError::Full { what, source };
            }
            "NotImplemented" if self.verb == "put" => {
                let what = format!("{self}: the server {NO_CONDITIONS}");
                return ObjectError::Misconfigured { what, source };
            }
            "SlowDown"
            | "SlowDownRead"
            | "SlowDownWrite"
            | "TooManyRequests"
            | "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded" => {
                return ObjectError::Busy { what, source };
            }
            "RequestTimeout" | "OperationAborted" if self.verb != "put" => {
                return ObjectError::Unavailable { what, source };
            }
            // What arrived is not what was signed: something on the way changed or cut it. The same again may pass.
            "XAmzContentSHA256Mismatch" | "BadDigest" | "IncompleteBody" => {
                return ObjectError::Unavailable { what, source };
            }
            _ => {}
        }
        match (status, self.key.cloned()) {
            (Some(404), Some(key)) => ObjectError::NotFound { key },
            (Some(412), Some(key)) => ObjectError::Precondition { key },
            (Some(409), Some(key)) if self.verb == "put" => ObjectError::Conflict { key },
            (Some(416), Some(key)) => ObjectError::Range { key, range: 0..0, size: None },
            (Some(401 | 403), _) => ObjectError::Denied { what, source },
            (Some(429), _) => ObjectError::Busy { what, source },
            (Some(507), _) => ObjectError::Full { what, source },
            (Some(501), _) if self.verb == "put" => {
                let what = format!("{self}: the server {NO_CONDITIONS}");
                ObjectError::Misconfigured { what, source }
            }
            (Some(301 | 307 | 308), _) => {
                let what = format!("{self}: the bucket is elsewhere; correct the region or the endpoint");
                ObjectError::Misconfigured { what, source }
            }
            // 400 is also RequestTimeout: the body did not arrive whole, so nothing was written.
            (Some(408 | 500..=599), _) | (None, _) if !unsent => ObjectError::Unavailable { what, source },
            (Some(400), _) if code == "RequestTimeout" => ObjectError::Unavailable { what, source },
            (Some(400 | 405), _) | (None, _) => {
                let what =
                    format!("{what}: the server refuses the request; check endpoint, bucket and region");
                ObjectError::Misconfigured { what, source }
            }
            (Some(_), _) => ObjectError::Internal { what, source },
        }
    }
}

/// An answer that S3 does not give.
pub(super) fn garbled(call: &Call<'_>, why: &'static str) -> ObjectError {
    ObjectError::Internal { what: call.to_string(), source: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_says_what_to_do() {
        let url: StoreUrl = "s3://bucket".parse().unwrap();
        let StoreUrl::S3(store) = &url else { panic!("{url}") };
        let key: Key = "vol/a".parse().unwrap();
        for (status, code, verb, expected) in [
            (Some(412), "PreconditionFailed", "put", "Precondition"),
            (Some(409), "ConditionalRequestConflict", "put", "Conflict"),
            (Some(404), "NoSuchKey", "put", "NotFound"),
            (Some(404), "", "head", "NotFound"),
            (Some(404), "NoSuchBucket", "get", "Misconfigured"),
            (Some(403), "AccessDenied", "put", "Denied"),
            (Some(403), "", "head", "Denied"),
            (Some(403), "InvalidAccessKeyId", "list", "Denied"),
            (Some(416), "InvalidRange", "get", "Range"),
            (Some(500), "InternalError", "put", "Unavailable"),
            (Some(503), "", "head", "Unavailable"),
            (Some(503), "SlowDown", "put", "Busy"),
            (Some(503), "SlowDown", "get", "Busy"),
            (Some(429), "", "put", "Busy"),
            (Some(429), "TooManyRequests", "list", "Busy"),
            (Some(400), "XAmzContentSHA256Mismatch", "put", "Unavailable"),
            (Some(400), "BadDigest", "put", "Unavailable"),
            (Some(507), "XMinioStorageFull", "put", "Full"),
            (Some(501), "NotImplemented", "put", "Misconfigured"),
            (Some(501), "NotImplemented", "get", "Unavailable"),
            (Some(301), "PermanentRedirect", "get", "Misconfigured"),
            (Some(400), "RequestTimeout", "put", "Unavailable"),
            (Some(400), "AuthorizationHeaderMalformed", "put", "Misconfigured"),
            (Some(418), "", "get", "Internal"),
            (None, "", "put", "Unavailable"),
        ] {
            let call = Call { store, verb, key: Some(&key), target: key.as_str() };
            let failure = Failure { status, code: code.to_owned(), unsent: false, source: "x".into() };
            let error = format!("{:?}", call.sort(failure));
            assert!(error.starts_with(expected), "{status:?} {code} of {verb}: {error}");
        }
    }
}
