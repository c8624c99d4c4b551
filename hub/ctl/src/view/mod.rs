//! What `-o json` prints: these fields are a contract (README.md); tables show the same, shortened.

mod bundle;
mod collected;
mod damage;
mod file;
mod indexed;
mod node;
mod stored;
mod timeline;
mod volume;

pub use bundle::{Bundle, Gone, Named};
pub use collected::{Collected, Kept, WouldCollect};
pub use damage::{Repaired, Rescued, ScrubDone, TakenOut};
pub use file::{Copied, Difference, File, RestoredPart, Written};
pub use indexed::{Indexed, RescuedVersion};
pub use node::{Check, Node, Template};
pub use stored::{TemplateMade, Verified};
pub use timeline::{Entry, Restored, Synced};
pub use volume::{Origin, Removed, Volume, Woken};

use serde::{Serialize, Serializer};
use types::Timestamp;

/// A time, in JSON as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A text of the wire, where empty means that there is none.
fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
