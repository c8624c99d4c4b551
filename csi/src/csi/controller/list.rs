//! Lists: volumes in order of their ids, so a token is the last id that was shown, and stays good whatever comes and goes.

use proto::csi::v1 as csi;
use proto::hub;
use proto::node::RecordKind;
use types::VolumeId;

use super::{CsiController, bounded};
use crate::csi::error::Error;
use crate::csi::facts;
use proto::convert::InvalidField;

/// The most that one answer holds: a message has a size.
pub(super) const LARGEST_PAGE: usize = 2000;

/// How a token begins, so that nothing else looks like one.
const TOKEN: &str = "after:";

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page {
    /// How many.
    pub size: usize,
    /// After which id.
    pub after: String,
}

impl Page {
    /// Reads a request's size and token.
    pub(super) fn parse(max_entries: i32, starting_token: &str) -> Result<Self, Error> {
        let size = usize::try_from(max_entries).map_err(|_| InvalidField::Malformed {
            field: "max_entries",
            reason: "is negative".to_owned(),
        })?;
        let size = if size == 0 { LARGEST_PAGE } else { size.min(LARGEST_PAGE) };
        if starting_token.is_empty() {
            return Ok(Self { size, after: String::new() });
        }
        let wrong = || Error::Token { token: starting_token.chars().take(128).collect() };
        let after = starting_token.strip_prefix(TOKEN).ok_or_else(wrong)?;
        after.parse::<VolumeId>().map_err(|_| wrong())?;
        Ok(Self { size, after: after.to_owned() })
    }

    /// Makes the token for what follows `last`.
    pub(super) fn token(last: &str) -> String {
        format!("{TOKEN}{last}")
    }
}

/// Which records a list shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filter<'a> {
    /// Of which kind.
    pub kind: RecordKind,
    /// With this attribute and value; empty: all.
    pub attribute: (&'a str, &'a str),
    /// Made from this record; empty: all.
    pub origin: &'a str,
}

impl CsiController {
    /// Returns a page of records and the token of the next one.
    pub(super) async fn records(
        &self,
        filter: Filter<'_>,
        page: &Page,
    ) -> Result<(Vec<hub::Volume>, String), Error> {
        let mut records: Vec<hub::Volume> = Vec::new();
        let mut page_token = page.after.clone();
        loop {
            let wanted = page.size - records.len();
            let request = hub::ListVolumesRequest {
                page_size: u32::try_from(wanted).unwrap_or(u32::MAX),
                page_token,
                kind: filter.kind.into(),
                attribute: filter.attribute.0.to_owned(),
                attribute_value: filter.attribute.1.to_owned(),
                origin_volume_id: filter.origin.to_owned(),
                brief: true,
                ..Default::default()
            };
            let answer = bounded("listing", self.hub().list_volumes(request)).await?;
            records.extend(answer.volumes);
            if answer.next_page_token.is_empty() {
                return Ok((records, String::new()));
            }
            if records.len() >= page.size {
                let last = records.last().map_or("", |last| last.volume_id.as_str());
                let token = Page::token(last);
                return Ok((records, token));
            }
            page_token = answer.next_page_token;
        }
    }

    pub(super) async fn volumes(
        &self,
        request: csi::ListVolumesRequest,
    ) -> Result<csi::ListVolumesResponse, Error> {
        use csi::list_volumes_response::{Entry, VolumeStatus};
        let page = Page::parse(request.max_entries, &request.starting_token)?;
        let filter = Filter { kind: RecordKind::Volume, attribute: ("", ""), origin: "" };
        let (volumes, next_token) = self.records(filter, &page).await?;
        let entries = volumes.iter().map(|volume| Entry {
            volume: Some(facts::volume(&self.driver, volume)),
            status: Some(VolumeStatus {
                published_node_ids: facts::published(volume),
                volume_condition: Some(facts::condition(volume.health(), &volume.detail)),
            }),
        });
        Ok(csi::ListVolumesResponse { entries: entries.collect(), next_token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Classify as _, Kind};

    #[test]
    fn only_tokens_of_this_list_are_taken() {
        let page = Page::parse(3, &Page::token("vol-1")).unwrap();
        assert_eq!(page, Page { size: 3, after: "vol-1".to_owned() });
        assert_eq!(Page::parse(0, "").unwrap().size, LARGEST_PAGE);
        for wrong in ["invalid-token", "after:", "after:../x", "vol-1"] {
            assert_eq!(Page::parse(1, wrong).unwrap_err().kind(), Kind::Aborted, "{wrong}");
        }
        assert_eq!(Page::parse(-1, "").unwrap_err().kind(), Kind::InvalidArgument);
    }
}
