//! Where a store is, as people write it on a command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::{DirStore, Key, MemoryStore, ObjectError, Objects, PatientStore, S3Store};

/// The address of a store. It holds no secrets: those come from the SDK's own chain (environment, files, roles).
///
/// - `dir:///abs/path`: a directory of a local filesystem. The path is taken as it is; nothing is decoded.
/// - `s3://bucket[/prefix][?endpoint=URL&region=NAME&path_style=true|false&sse=AES256|aws:kms&sse_kms_key_id=ID]`: a
///   bucket of AWS S3 or another server.
/// - `memory:`: a new, empty store in this process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StoreUrl {
    /// A directory, by its absolute path.
    Dir(PathBuf),
    /// A bucket.
    S3(S3Url),
    /// Nothing that stays.
    Memory,
}

/// The address of a bucket, or of a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct S3Url {
    /// The bucket's name.
    pub bucket: String,
    /// What comes before each key, without a `/` at the end.
    pub prefix: Option<Key>,
    /// A server other than AWS.
    pub endpoint: Option<String>,
    /// The region; otherwise the SDK's own (`AWS_REGION`, the profile), or `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket is in the path rather than the host name. By default if there is an endpoint.
    pub path_style: Option<bool>,
    /// How the server is to encrypt what is written; otherwise as the bucket is set.
    pub sse: Option<Sse>,
}

/// Encryption at rest by the server. What is stored is decrypted by it for whoever may read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Sse {
    /// With keys of the server (`AES256`).
    Aes256,
    /// With a key of its key service (`aws:kms`): this one, or the account's own.
    Kms(Option<String>),
}

/// A text that is no address of a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no store: {why}; accepted are dir:///abs/path, \
     s3://bucket[/prefix][?endpoint=URL&region=NAME&path_style=true|false&sse=AES256|aws:kms&sse_kms_key_id=ID], \
     and memory:"
)]
pub struct InvalidStoreUrl {
    text: String,
    why: String,
}

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;

    fn from_str(text: &str) -> Result<Self, InvalidStoreUrl> {
        // A person may have put a secret before an '@'; errors get logged.
        let shown = if text.contains('@') { "(not shown: it has an '@')" } else { text };
        parse(text).map_err(|why| InvalidStoreUrl { text: shown.chars().take(120).collect(), why })
    }
}

fn parse(text: &str) -> Result<StoreUrl, String> {
    if text == "memory:" {
        return Ok(StoreUrl::Memory);
    }
    if let Some(path) = text.strip_prefix("dir://") {
        if !path.starts_with('/') {
            return Err("the path of dir:// is not absolute (three slashes)".to_owned());
        }
        if path.contains('\0') || path.len() > 4000 {
            return Err("the path has a NUL or is too long".to_owned());
        }
        return Ok(StoreUrl::Dir(path.into()));
    }
    if let Some(rest) = text.strip_prefix("s3://") {
        return parse_s3(rest).map(StoreUrl::S3);
    }
    match text.split_once(':') {
        Some((scheme, _)) => Err(format!("unknown scheme {:?}", scheme.chars().take(20).collect::<String>())),
        None => Err("it has no scheme".to_owned()),
    }
}

fn parse_s3(rest: &str) -> Result<S3Url, String> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    // Some servers allow '_' and upper case in old buckets.
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(letters) {
        return Err("the bucket's name is not 3 to 63 of A-Z a-z 0-9 . - _".to_owned());
    }
    let prefix = prefix.trim_end_matches('/');
    let prefix =
        if prefix.is_empty() { None } else { Some(prefix.parse::<Key>().map_err(|e| e.to_string())?) };
    let mut url = S3Url {
        bucket: bucket.to_owned(),
        prefix,
        endpoint: None,
        region: None,
        path_style: None,
        sse: None,
    };
    let mut kms_key = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "endpoint" => {
                let host = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"));
                if host.is_none_or(|host| {
                    host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '@')
                }) {
                    return Err("the endpoint is no http:// or https:// URL without credentials".to_owned());
                }
                url.endpoint = Some(value.trim_end_matches('/').to_owned());
            }
            "region"
                if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
            {
                url.region = Some(value.to_owned());
            }
            "path_style" => {
                url.path_style = Some(value.parse().map_err(|_| "path_style is true or false".to_owned())?);
            }
            "region" => return Err("the region is no name".to_owned()),
            "sse" => {
                url.sse = Some(match value {
                    "AES256" => Sse::Aes256,
                    "aws:kms" => Sse::Kms(None),
                    _ => return Err("sse is AES256 or aws:kms".to_owned()),
                });
            }
            "sse_kms_key_id"
                if !value.is_empty()
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_/:".contains(&b)) =>
            {
                kms_key = Some(value.to_owned());
            }
            "sse_kms_key_id" => return Err("the id of the key is no name".to_owned()),
            _ => return Err(format!("unknown setting {:?}", name.chars().take(20).collect::<String>())),
        }
    }
    match (&mut url.sse, kms_key) {
        (_, None) => {}
        (Some(Sse::Kms(key)), kms_key) => *key = kms_key,
        (_, Some(_)) => return Err("sse_kms_key_id needs sse=aws:kms".to_owned()),
    }
    Ok(url)
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir://{}", path.display()),
            Self::S3(url) => url.fmt(f),
            Self::Memory => f.write_str("memory:"),
        }
    }
}

impl fmt::Display for S3Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if let Some(prefix) = &self.prefix {
            write!(f, "/{prefix}")?;
        }
        let settings = [
            self.endpoint.as_ref().map(|endpoint| format!("endpoint={endpoint}")),
            self.region.as_ref().map(|region| format!("region={region}")),
            self.path_style.map(|path_style| format!("path_style={path_style}")),
            self.sse.as_ref().map(|sse| match sse {
                Sse::Aes256 => "sse=AES256".to_owned(),
                Sse::Kms(None) => "sse=aws:kms".to_owned(),
                Sse::Kms(Some(key)) => format!("sse=aws:kms&sse_kms_key_id={key}"),
            }),
        ];
        for (i, setting) in settings.into_iter().flatten().enumerate() {
            write!(f, "{}{setting}", if i == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl StoreUrl {
    /// Opens the store. A directory is made if it is absent in one that exists; a bucket is not.
    ///
    /// Reaches for credentials, not yet for the bucket: [`probe`](super::probe()) does that.
    pub async fn connect(&self) -> Result<Arc<dyn Objects>, ObjectError> {
        Ok(match self {
            Self::Dir(path) => Arc::new(DirStore::create_or_open(path).await?),
            Self::S3(url) => Arc::new(PatientStore::new(Arc::new(S3Store::connect(url).await?))),
            Self::Memory => Arc::new(MemoryStore::new()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_a_round_trip() {
        for text in [
            "memory:",
            "dir:///var/lib/opensail/store",
            "dir:///with a space/and?a=b",
            "s3://bucket",
            "s3://bucket/some/prefix",
            "s3://bucket?endpoint=http://127.0.0.1:9000&region=eu-central-1&path_style=true",
            "s3://bucket/p?endpoint=https://r2.example&path_style=false",
            "s3://bucket?sse=AES256",
            "s3://bucket?region=eu-central-1&sse=aws:kms",
            "s3://bucket?sse=aws:kms&sse_kms_key_id=arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab",
        ] {
            assert_eq!(text.parse::<StoreUrl>().unwrap().to_string(), text);
        }
        let url = "s3://bucket/p/?endpoint=http://h/".parse::<StoreUrl>().unwrap();
        assert_eq!(url.to_string(), "s3://bucket/p?endpoint=http://h");
    }

    #[test]
    fn what_is_no_address_says_what_is() {
        for text in [
            "",
            "/var/lib",
            "gs://bucket",
            "dir://relative",
            "dir:/x",
            "dir://",
            "s3://",
            "s3://a",
            "s3://b\0cket",
            "s3://bucket/../x",
            "s3://bucket?endpoint=ftp://x",
            "s3://bucket?endpoint=",
            "s3://bucket?secret=x",
            "s3://bucket?path_style=1",
            "memory:x",
            "s3://bucket?region=",
            "s3://bucket?sse=aes",
            "s3://bucket?sse_kms_key_id=x",
            "s3://bucket?sse=AES256&sse_kms_key_id=x",
            "s3://bucket?sse=aws:kms&sse_kms_key_id=a%20b",
            "file:///x",
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains("accepted are dir:///abs/path"), "{error}");
        }
    }

    #[test]
    fn a_secret_in_an_address_is_not_repeated() {
        for text in ["s3://key:secret@bucket", "s3://bucket?endpoint=http://key:secret@host"] {
            assert!(!text.parse::<StoreUrl>().unwrap_err().to_string().contains("secret"));
        }
    }
}
