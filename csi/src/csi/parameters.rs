//! Parameters of storage classes, snapshot classes and volume attributes classes. An unknown one is refused: a typo must
//! not make another volume than was meant.

use std::collections::{BTreeMap, HashMap};

use types::ResourceName;

use super::error::Error;

/// What the sidecars add with `--extra-create-metadata`; they are kept as they are, and ask for nothing.
const SIDECAR: &str = "csi.storage.k8s.io/";

/// Where a volume may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mobility {
    /// Anywhere: it follows its pod, fenced by publishing.
    #[default]
    Floating,
    /// On the node where it was made, for the scheduler.
    Pinned,
}

impl Mobility {
    /// The word in parameters and attributes.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Floating => "floating",
            Self::Pinned => "pinned",
        }
    }

    /// Reads the word.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "floating" => Some(Self::Floating),
            "pinned" => Some(Self::Pinned),
            _ => None,
        }
    }
}

/// The parameters of a storage class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The template that a volume without another source begins as.
    pub template: Option<ResourceName>,
    /// Where the volume may be used.
    pub mobility: Mobility,
    /// The dedup domain, or empty.
    pub domain: String,
    /// The claim that it is for, as `namespace/name`, or empty.
    pub claim: String,
}

impl Parameters {
    /// Parses the parameters of CreateVolume.
    ///
    /// # Errors
    /// One is unknown or has a value that it does not take.
    pub(crate) fn parse(given: &HashMap<String, String>) -> Result<Self, Error> {
        let mut parameters = Self::default();
        let sorted: BTreeMap<&String, &String> = given.iter().collect();
        for (key, value) in sorted {
            let wrong = |reason: String| Error::Parameter { key: key.chars().take(80).collect(), reason };
            match key.as_str() {
                "template" => {
                    let name = value.parse().map_err(|error: types::InvalidId| wrong(error.to_string()))?;
                    parameters.template = Some(name);
                }
                "mobility" => {
                    parameters.mobility =
                        Mobility::parse(value).ok_or_else(|| wrong("is floating or pinned".to_owned()))?;
                }
                "domain" => {
                    value.parse::<types::Domain>().map_err(|error| wrong(error.to_string()))?;
                    parameters.domain.clone_from(value);
                }
                other if other.starts_with(SIDECAR) => {}
                _ => return Err(wrong("is not known; template, mobility and domain are".to_owned())),
            }
        }
        let extra = |key: &str| given.get(&format!("{SIDECAR}{key}")).map(String::as_str);
        if let (Some(namespace), Some(name)) = (extra("pvc/namespace"), extra("pvc/name")) {
            parameters.claim = format!("{namespace}/{name}").chars().take(512).collect();
        }
        Ok(parameters)
    }

    /// One line that is the same for the same parameters; the claim is not one.
    pub(crate) fn fingerprint(&self) -> String {
        let template = self.template.as_ref().map_or("", |template| template.as_str());
        format!("template={template} mobility={} domain={}", self.mobility.as_str(), self.domain)
    }
}

/// Refuses parameters of snapshots: there are none, but for those of the sidecars.
///
/// # Errors
/// There is one.
pub(crate) fn none(given: &HashMap<String, String>) -> Result<(), Error> {
    match given.keys().find(|key| !key.starts_with(SIDECAR)) {
        Some(key) => {
            let reason = "is not known; snapshots take none".to_owned();
            Err(Error::Parameter { key: key.chars().take(80).collect(), reason })
        }
        None => Ok(()),
    }
}

/// Parses the parameters of a volume attributes class into attributes of the volume.
///
/// # Errors
/// One is unknown or has a value that it does not take.
pub(crate) fn mutable(given: &HashMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    let mut attributes = BTreeMap::new();
    let sorted: BTreeMap<&String, &String> = given.iter().collect();
    for (key, value) in sorted {
        let attribute = crate::settings::attribute(key, value);
        let attribute =
            attribute.map_err(|reason| Error::Parameter { key: key.chars().take(80).collect(), reason })?;
        attributes.insert(attribute.to_owned(), value.clone());
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn known_parameters_are_read_and_unknown_ones_refused() {
        let parameters = Parameters::parse(&given(&[
            ("template", "node-22"),
            ("mobility", "pinned"),
            ("csi.storage.k8s.io/pvc/name", "db"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
        ]))
        .unwrap();
        assert_eq!(parameters.mobility, Mobility::Pinned);
        assert_eq!(parameters.claim, "shop/db");
        for wrong in [("tempalte", "x"), ("mobility", "nailed"), ("template", "../x"), ("", "")] {
            let error = Parameters::parse(&given(&[wrong])).unwrap_err();
            assert!(error.to_string().contains(wrong.0), "{error}");
        }
    }

    #[test]
    fn the_claim_does_not_make_a_retry_another_request() {
        let one = Parameters::parse(&given(&[("csi.storage.k8s.io/pvc/name", "a")])).unwrap();
        let two = Parameters::parse(&given(&[])).unwrap();
        assert_eq!(one.fingerprint(), two.fingerprint());
    }
}
