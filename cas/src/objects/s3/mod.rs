//! A store in a bucket of AWS S3 or a server that speaks its protocol, over the AWS SDK.
//!
//! Each call is one request: the SDK sends nothing again. Reads are tried again by [`PatientStore`](super::PatientStore)
//! around this; a write whose answer is lost is [`ObjectError::Unavailable`], and only the caller knows what to do then
//! (PROTOCOL.md, rule U): if anything below sent it again, a write that had happened would come back as 412, or a later
//! one be overtaken.

mod error;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Builder, ProvideCredentials as _, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::ServerSideEncryption;
use aws_smithy_http_client::Builder as HttpBuilder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use bytes::Bytes;
use types::Timestamp;

use super::memory::check_size;
use super::url::{S3Url, Sse, StoreUrl};
use super::{Condition, Etag, Key, MAX_OBJECT_BYTES, Meta, Object, ObjectError, Objects, Page};
use error::{Call, garbled};

/// How long a connection may take. A server that is there answers in one round trip.
const CONNECT: Duration = Duration::from_secs(4);

/// How long one attempt may take: the largest pack over a line of 1 MB/s. `PatientStore` has closer bounds.
const ATTEMPT: Duration = Duration::from_secs(90);

/// What S3 itself puts at most into one page.
const PAGE_ENTRIES: i32 = 1000;

/// A store in a bucket. Clones share their connections.
#[derive(Debug, Clone)]
pub struct S3Store {
    url: S3Url,
    client: Client,
}

impl S3Store {
    /// Prepares for a bucket, with credentials from the SDK's default chain. The bucket is not asked yet.
    pub async fn connect(url: &S3Url) -> Result<Self, ObjectError> {
        let http = HttpBuilder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let timeouts =
            TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT).build();
        let mut loader =
            aws_config::defaults(BehaviorVersion::latest()).http_client(http).timeout_config(timeouts);
        if let Some(region) = &url.region {
            loader = loader.region(Region::new(region.clone()));
        }
        let shared = loader.load().await;

        let what = || {
            format!(
                "{}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role",
                StoreUrl::S3(url.clone())
            )
        };
        let provider = shared.credentials_provider().ok_or_else(|| ObjectError::Denied {
            what: what(),
            source: "the SDK has no credentials provider".into(),
        })?;
        provider
            .provide_credentials()
            .await
            .map_err(|error| ObjectError::Denied { what: what(), source: error.into() })?;

        let region = shared.region().cloned().unwrap_or_else(|| Region::from_static("us-east-1"));
        let mut config = Builder::from(&shared)
            .region(region)
            .force_path_style(url.path_style.unwrap_or(url.endpoint.is_some()))
            // Everything stored carries its own hash; other servers do not know the newer trailers.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &url.endpoint {
            config = config.endpoint_url(endpoint);
        }
        let client = Client::from_conf(config.retry_config(RetryConfig::disabled()).build());
        Ok(Self { url: url.clone(), client })
    }

    /// The name in the bucket of what this store calls `key`.
    fn name(&self, key: &str) -> String {
        match &self.url.prefix {
            Some(prefix) => format!("{prefix}/{key}"),
            None => key.to_owned(),
        }
    }

    fn call<'a>(&'a self, verb: &'static str, key: &'a Key) -> Call<'a> {
        Call { store: &self.url, verb, key: Some(key), target: key.as_str() }
    }

    /// Asks once for an object or a part of it.
    async fn fetch(
        &self,
        key: &Key,
        range: Option<String>,
    ) -> Result<(Meta, Option<u64>, Bytes), ObjectError> {
        let call = self.call("get", key);
        let request = self.client.get_object().bucket(&self.url.bucket).key(self.name(key.as_str()));
        let answer = request.set_range(range).send().await.map_err(|error| call.failed(error))?;
        let size = length(answer.content_length()).ok_or_else(|| garbled(&call, "no length"))?;
        if size > MAX_OBJECT_BYTES {
            return Err(ObjectError::TooLarge { key: key.clone(), size, limit: MAX_OBJECT_BYTES });
        }
        let etag = etag(answer.e_tag()).ok_or_else(|| garbled(&call, "no ETag"))?;
        let modified = timestamp(answer.last_modified()).ok_or_else(|| garbled(&call, "no Last-Modified"))?;
        // `bytes 0-9/120`
        let whole = answer.content_range().and_then(|text| text.rsplit_once('/')?.1.parse().ok());
        let body = answer
            .body
            .collect()
            .await
            .map_err(|error| ObjectError::Unavailable { what: call.to_string(), source: error.into() })?;
        let bytes = body.into_bytes();
        if bytes.len() as u64 != size {
            let source = "the answer broke off".into();
            return Err(ObjectError::Unavailable { what: call.to_string(), source });
        }
        Ok((Meta { key: key.clone(), size, etag, modified }, whole, bytes))
    }
}

#[async_trait]
impl Objects for S3Store {
    async fn get(&self, key: &Key) -> Result<Object, ObjectError> {
        let (meta, _, bytes) = self.fetch(key, None).await?;
        Ok(Object { meta, bytes })
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let outside = |size| ObjectError::Range { key: key.clone(), range: range.clone(), size };
        if range.start > range.end {
            return Err(outside(None));
        }
        if range.is_empty() {
            // HTTP has no word for it.
            let size = self.head(key).await?.size;
            return if range.end <= size { Ok(Bytes::new()) } else { Err(outside(Some(size))) };
        }
        let wanted = range.end - range.start;
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        match self.fetch(key, Some(header)).await {
            Ok((_, _, bytes)) if bytes.len() as u64 == wanted => Ok(bytes),
            // Beyond the end, S3 sends what there is.
            Ok((_, whole, _)) => Err(outside(whole)),
            Err(ObjectError::Range { .. }) => Err(outside(None)),
            Err(error) => Err(error),
        }
    }

    async fn head(&self, key: &Key) -> Result<Meta, ObjectError> {
        let call = self.call("head", key);
        let request = self.client.head_object().bucket(&self.url.bucket).key(self.name(key.as_str()));
        let answer = request.send().await.map_err(|error| call.failed(error))?;
        Ok(Meta {
            key: key.clone(),
            size: length(answer.content_length()).ok_or_else(|| garbled(&call, "no length"))?,
            etag: etag(answer.e_tag()).ok_or_else(|| garbled(&call, "no ETag"))?,
            modified: timestamp(answer.last_modified()).ok_or_else(|| garbled(&call, "no Last-Modified"))?,
        })
    }

    async fn put(&self, key: &Key, bytes: Bytes, condition: &Condition) -> Result<Etag, ObjectError> {
        check_size(key, bytes.len() as u64)?;
        let call = self.call("put", key);
        let request = self
            .client
            .put_object()
            .bucket(&self.url.bucket)
            .key(self.name(key.as_str()))
            .content_type("application/octet-stream")
            .body(ByteStream::from(bytes));
        let request = match &self.url.sse {
            None => request,
            Some(Sse::Aes256) => request.server_side_encryption(ServerSideEncryption::Aes256),
            Some(Sse::Kms(key)) => {
                request.server_side_encryption(ServerSideEncryption::AwsKms).set_ssekms_key_id(key.clone())
            }
        };
        let request = match condition {
            Condition::IfAbsent => request.if_none_match("*"),
            Condition::IfMatch(etag) => request.if_match(etag.as_str()),
        };
        let answer = request.send().await.map_err(|error| call.failed(error))?;
        etag(answer.e_tag()).ok_or_else(|| garbled(&call, "no ETag"))
    }

    async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        // Sent again, a delete could remove an object that was made in between.
        let request = self.client.delete_object().bucket(&self.url.bucket).key(self.name(key.as_str()));
        match request.send().await.map_err(|error| self.call("delete", key).failed(error)) {
            Ok(_) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
        let call = Call { store: &self.url, verb: "list", key: None, target: prefix };
        if !Key::is_prefix(prefix) {
            // MinIO refuses `..`, and XML cannot say a NUL.
            return Ok(Page::default());
        }
        let cut = self.name("").len();
        let mut after = after.map(|key| self.name(key.as_str()));
        let mut entries = Vec::new();
        loop {
            let request = self.client.list_objects_v2().bucket(&self.url.bucket).prefix(self.name(prefix));
            let request = request.set_start_after(after.clone()).max_keys(PAGE_ENTRIES);
            let answer = request.send().await.map_err(|error| call.failed(error))?;
            let mut last_is_ours = true;
            for object in answer.contents() {
                let name = object.key().ok_or_else(|| garbled(&call, "an entry without a key"))?;
                if after.as_deref().is_some_and(|after| name <= after) {
                    return Err(garbled(&call, "the listing is not sorted; use a general purpose bucket"));
                }
                after = Some(name.to_owned());
                // What is no key of ours was put there by somebody else.
                let key = name.get(cut..).and_then(|key| key.parse::<Key>().ok());
                last_is_ours = key.is_some();
                let Some(key) = key else { continue };
                entries.push(Meta {
                    key,
                    size: length(object.size()).ok_or_else(|| garbled(&call, "an entry without a size"))?,
                    etag: etag(object.e_tag()).ok_or_else(|| garbled(&call, "an entry without an ETag"))?,
                    modified: timestamp(object.last_modified())
                        .ok_or_else(|| garbled(&call, "an entry without a time"))?,
                });
            }
            if !answer.is_truncated().unwrap_or(false) {
                return Ok(Page { entries, next: None });
            }
            if answer.contents().is_empty() {
                return Err(garbled(&call, "an empty page that is not the last"));
            }
            if last_is_ours {
                let next = entries.last().map(|meta: &Meta| meta.key.clone());
                return Ok(Page { entries, next });
            }
        }
    }

    fn describe(&self) -> String {
        StoreUrl::S3(self.url.clone()).to_string()
    }
}

fn length(length: Option<i64>) -> Option<u64> {
    u64::try_from(length?).ok()
}

/// The etag in one form: some servers leave out the quotes in listings.
fn etag(text: Option<&str>) -> Option<Etag> {
    let text = text?.trim_matches('"');
    (!text.is_empty()).then(|| Etag::new(format!("\"{text}\"")))
}

/// The time in whole seconds: HTTP has no more, and listings that do would disagree with it.
fn timestamp(time: Option<&DateTime>) -> Option<Timestamp> {
    time?.secs().checked_mul(1_000_000_000).map(Timestamp)
}
